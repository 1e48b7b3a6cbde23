"""Rows of up to 48 classes in tiles, float32 throughout but for the sums, several tiles side by side.

What is done once a row is most of the time where classes are few, and a chain of operations. So it goes through several tiles at
once, and is short: exponentials are in units of a power of two, 2**N, as in other tiles; the sum d of all but the largest's, in
float64, times u = exp(N ln 2 - m) is relative to the largest, whose own share is then exactly 1:

    S = 1 + d u,    softmax_c = e_c u / S,    loss = log(1 + d u) + (m - x_t),    gradient_c = f e_c u / S,

    gradient_t = -f d u / S where the target is the largest, else f e_t u / S - f, where nothing cancels: e_t u / S is 1/2 at most.

(10 classes, loss and gradient: 0.71 to 0.55 ns an element; 4 classes 1.25 to 0.86. The logsumexp is m + log(1 + d u).)
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from fastswl.kernels.block import FAR_32, by_groups, larger
from fastswl.kernels.losses import factors_of_rows, index_of_rows, keep_losses, without_idle_rows
from fastswl.kernels.plan import LOG_SOFTMAX, LOSS, SOFTMAX
from fastswl.kernels.rows import LOSS_VALUE, ONES, smoothing_unit
from fastswl.kernels.tiles import Tiles
from fastswl.simd import (
    FLOAT64,
    VECTOR_BYTES,
    Running,
    absolute,
    any_lane_of,
    as_it_is,
    choose,
    fma,
    itemsize,
    joined,
    load_double,
    load_one,
    narrow,
    parted,
    prefetch_once,
    prefetch_second_level,
    select,
    steps,
    store_wide,
    to_float64,
    when,
    widen,
)
from fastswl.vectormath import (
    difference_in_two,
    exp_above,
    exp_for_float32,
    exp_reference,
    exp_unit,
    log1p_in_float64,
    log1p_of_sum,
    nearest_power,
    reduce_argument,
    split_float,
)

#: classes whose exponentials are added up in float32 before they go to the float64 sum
PAIR = 2
#: tiles whose exponentials are made in one loop where they are compared with the largest and the target: of four, what is summed up
#: is more than the registers hold (loss, loss and gradient, log_softmax of 5 to 48 classes 4 to 9 % slower)
OTHERS_TOGETHER = 2


class Next(NamedTuple):
    """What is read next: a line for each vector from `place` on, `step` bytes from one class to the next, `between` those of one tile
    and the next. Of how many tiles; and whether it is asked for first, into the first-level cache alone, and last, into the second
    one if it is in neither any more (without that, loss and gradient of 32 and 48 classes 1.2 to 1.3 times slower)."""

    place: Any
    step: Any
    between: Any
    n_tiles: int = 1
    first: bool = True
    last: bool = True

    def of(self, number, n_tiles):
        """For formulas: of some tiles of the step."""
        return self._replace(place=self.place + self.between * number, n_tiles=n_tiles)

    def share(self, i, n):
        """What the i-th of `n` loops asks for: the first and the last of them lines of all tiles, which may be neighbours (images of
        21 classes, one thread: each loop the lines of its own tiles 10 to 14 % slower)."""
        return self._replace(first=i == 0, last=i == n - 1)

    def ask_for(self, place):
        """For formulas: the lines of a class, of which the first is at `place`."""
        for _ in range(self.n_tiles):
            if self.first:
                prefetch_once(place)
            if self.last:
                prefetch_second_level(place)
            place = place + self.between


class Reference(NamedTuple):
    """Of each row the largest logit (NaN beside +inf where any is); whether it is finite; the same less what was subtracted from the
    row, 0 where it is not; the power of two that exponentials are relative to."""

    top: Any
    bounded: Any
    m: Any
    power: Any


class Sums(NamedTuple):
    """Of each row u, d u and S, float64, and log S."""

    unit: Any
    others: Any
    total: Any
    log_sum: Any


def several_classes(storage, plain, plan, losses, tables, following):
    """For formulas: from the logits in tiles to the results in place of them; losses are added to the sum in the table `losses`.
    (`plain`: neither smoothing nor logsumexp, for which less is written.)"""
    tiles = Tiles(storage, tables, plan.n_classes)
    is_loss = plan.operation == LOSS
    index = choose(is_loss, lambda: tiles.zero - 1.0, lambda: index_of_rows(storage, tables))
    mass = None if plain else EvenMass(storage, plan, losses)
    reference, weighed = reference_of(storage, tiles, mass)

    def softmax():
        total = raise_all(storage, tiles, reference, following) + rest_of_largest(storage, reference)
        total = select(reference.bounded, total, tiles.none + np.nan)
        scale, scale_low = split_float(storage, 1.0 / total)
        tiles.change(lambda c, e: fma(e, scale, e * scale_low))

    def past_the_largest():
        behind = VECTOR_BYTES * plan.n_classes
        behind = select(plan.operation == LOG_SOFTMAX, behind, 0) if plain else select(is_loss, behind, 0)
        distance = None if plain else mass.distance(tiles, reference, weighed)
        d, ties, x_target = raise_others(storage, tiles, reference, index, behind, following)
        sums = sums_of_rows(storage, tiles, reference, d, ties)

        def log_softmax():
            # beside +inf all that is finite is as good as -inf, but no NaN is
            log_sum = select(reference.top == np.inf, reference.top, sums.log_sum)
            tiles.change(lambda c, x: (x - reference.m) - log_sum)

        def loss():
            row = Row(reference, sums, index, x_target, d)
            loss_and_gradient(storage, plan, losses, tiles, row, mass, distance)

        def logsumexp():
            log_sum = log1p_in_float64(storage, sums.others)
            finite = widen(reference.top) + log_sum
            # nothing but -inf has no sum; NaN has one that is NaN
            other = select(reference.top == np.inf, tiles.none + np.inf, widen(reference.top) + d)
            for table, one in zip(tables, select(reference.bounded, finite, other), strict=True):
                store_wide(storage, table + LOSS_VALUE, one)

        # (in kernels for plain calls there is none)
        ways = [log_softmax, loss] if plain else [logsumexp, loss]
        choose(is_loss, *ways)

    choose(plan.operation == SOFTMAX, past_the_largest, softmax)


def reference_of(storage, tiles, mass):
    """For formulas: the reference of each row; what has to be subtracted from rows far from 0 is. And the sum of w x, if `mass` is not
    None."""

    def go_over(weigh=lambda c, x, sums: sums):
        top, weighed = Running(tiles.zero - np.inf), Running(tiles.none)
        for c in steps(0, tiles.n_classes):
            x = tiles.at(c)
            top.value = larger(x, top.value)
            weighed.value = weigh(c, x, weighed.value)
        return top.value, weighed.value

    if mass is None:
        top, weighed = go_over()
    else:
        way = select(mass.wanted, select(mass.weighted, 2, 1), 0)
        top, weighed = choose(way, go_over, lambda: go_over(mass.add), lambda: go_over(mass.add_weighted))
    top = Running(top)

    def nan_where_any():
        for c in steps(0, tiles.n_classes):
            x = tiles.at(c)
            top.value = select(x == x, top.value, x)

    when(any_lane_of(top.value == np.inf), nan_where_any)
    top = top.value
    bounded, near = absolute(top) < np.inf, absolute(top) < FAR_32

    def subtract_largest():
        shift = select(bounded & ~near, top, tiles.zero)
        tiles.change(lambda c, x: x - shift)

    when(any_lane_of(~near), subtract_largest)
    m = select(near, top, tiles.zero)
    return Reference(top, bounded, m, nearest_power(storage, m)), weighed


def raise_pairs(storage, tiles, reference, behind, following, add):
    """For formulas: the exponentials of all classes, so many bytes behind their logits; of some classes at a time `add` gets the
    first, the logits and the exponentials. What is read next is asked for meanwhile."""
    magic, lowest = exp_reference(storage, reference.power)
    line = Running(following.place)
    for c, count in by_groups(0, tiles.n_classes, PAIR):
        for _ in range(count):
            following.ask_for(line.value)
            line.value = as_it_is(line.value + following.step)
        x = [tiles.at(c + i) for i in range(count)]
        e = parted(exp_above(storage, joined(x), joined([magic] * count), joined([lowest] * count)), count)
        for i, one in enumerate(e):
            tiles.put(c + i, one, behind)
        add(c, x, e)


def raise_all(storage, tiles, reference, following):
    """For formulas: the exponentials in place of the logits, and the sum of all."""
    total = Running(tiles.none)

    def add(c, x, e):
        total.value = total.value + widen(sum(e[1:], e[0]))

    raise_pairs(storage, tiles, reference, 0, following, add)
    return total.value


def rest_of_largest(storage, reference):
    """For formulas: what the exponential of the largest logit has lost in float32: of a sum it may be most. (5 classes, 40,000 rows:
    3.1 to 2.5 ulp.)"""
    exact = exp_for_float32(reduced_reference(reference)) * exp_unit(storage)
    return exact - widen(exp_above(storage, reference.m, *exp_reference(storage, reference.power)))


def reduced_reference(reference):
    """For formulas: m - N ln 2 in float64."""
    return reduce_argument(FLOAT64, widen(reference.m), widen(reference.power))


def raise_others(storage, tiles, reference, index, behind, following):
    """For formulas: the exponentials, so many bytes behind the logits; the sum of those past the largest, how many are as large, and
    the logit at the target (0 for none)."""
    size = min(OTHERS_TOGETHER, len(tiles.tables))
    n_groups = len(tiles.tables) // size
    sums = []
    for i, (own_index, *own) in enumerate(zip(*(parted(line, n_groups) for line in (index, *reference)), strict=True)):
        group = Tiles(storage, tiles.tables[size * i : size * (i + 1)], tiles.n_classes)
        following_of_group = following.share(i, n_groups)
        sums.append(raise_others_of_group(storage, group, Reference(*own), own_index, behind, following_of_group))
    return [joined(each) for each in zip(*sums, strict=True)]


def raise_others_of_group(storage, tiles, reference, index, behind, following):
    """`raise_others` of as many tiles as go through one loop."""
    d, ties, x_target = Running(tiles.none), Running(tiles.zero), Running(tiles.zero)
    # (of a row that something was subtracted from, the largest is 0)
    largest = select(reference.bounded, reference.m, reference.top)

    def add(c, x, e):
        terms = []
        for i, (own, exponential) in enumerate(zip(x, e, strict=True)):
            is_largest = own == largest
            terms.append(select(is_largest, tiles.zero, exponential))
            ties.value = select(is_largest, ties.value + 1.0, ties.value)
            x_target.value = select(index == c + i, own, x_target.value)
        d.value = d.value + widen(sum(terms[1:], terms[0]))

    raise_pairs(storage, tiles, reference, behind, following, add)
    return d.value, ties.value, x_target.value


def sums_of_rows(storage, tiles, reference, d, ties):
    """For formulas: from the sum of the others to all that is relative to the largest; NaN of a row whose largest is not finite."""
    unit = exp_for_float32(-reduced_reference(reference)) * (1.0 / exp_unit(storage))
    others = fma(d, unit, widen(ties) - 1.0)
    others = select(reference.bounded, others, tiles.none + np.nan)
    return Sums(unit, others, 1.0 + others, log1p_of_sum(*split_float(storage, others)))


class Row(NamedTuple):
    """What a loss is made of; `d` is the sum of the exponentials past the largest."""

    reference: Reference
    sums: Sums
    index: Any
    x_target: Any
    d: Any


class EvenMass:
    """Mass of the classes that is the same for every row: unit * w."""

    def __init__(self, storage, plan, table):
        self.unit = smoothing_unit(plan)
        self.total = self.unit * plan.weight_total
        self.wanted, self.weighted = plan.operation == LOSS, plan.weight != 0
        self._plan, self._storage = plan, storage
        self._weights = select(self.weighted, plan.weight_vector, table + ONES)
        self._moves = select(self.weighted, itemsize(storage), 0)

    def add(self, c, x, sums):
        """`sums` and x more."""
        return sums + widen(x)

    def add_weighted(self, c, x, sums):
        """The same times w."""
        return fma(load_double(self._plan.weight + 8 * c), widen(x), sums)

    def of_class(self, c):
        """w of a class."""
        return load_one(self._storage, self._weights + self._moves * c)

    def distance(self, tiles, reference, weighed):
        """The sum of w (m - x), from that of w x; of rows where that is not enough, or an infinite one has no weight, one by one."""
        distance = self._plan.weight_total * widen(reference.m) - weighed
        serves = (absolute(distance) < np.inf) & (widen(reference.m) == widen(reference.top))

        def again():
            total = Running(tiles.none)
            for c in steps(0, tiles.n_classes):
                weight = tiles.none + to_float64(self.of_class(c))
                away = weight * (widen(reference.m) - widen(tiles.at(c)))
                total.value = total.value + select(weight == 0.0, tiles.none, away)
            return select(serves, distance, total.value)

        return choose(any_lane_of(~serves), lambda: distance, again)


def loss_and_gradient(storage, plan, losses, tiles, row, even, distance):
    """For formulas: the loss, and the gradient in place of the logits where it is wanted; without `even` the target has all mass."""
    reference, sums, index = row.reference, row.sums, row.index
    gap, gap_low = difference_in_two(reference.m, row.x_target)
    log_ratio = (sums.log_sum + gap_low) + gap
    has_penalty = plan.z_loss != 0.0
    lse = choose(has_penalty, lambda: tiles.none, lambda: widen(reference.top) + widen(sums.log_sum))
    keep = functools.partial(keep_losses, storage, plan, tiles.tables, losses, index, log_ratio)
    elsewhere = 2.0 * plan.z_loss * lse
    if even is None:
        choose(has_penalty, lambda: keep(None), lambda: keep(plan.z_loss * lse * lse))
    else:
        spread = even.total * widen(sums.log_sum) + even.unit * distance
        keep(fma(plan.z_loss * lse, lse, spread))
        elsewhere = elsewhere + even.total

    def gradient():
        behind = 0 if even is None else VECTOR_BYTES * tiles.n_classes
        unbounded = sums.log_sum != sums.log_sum

        def drop_ignored():
            # an ignored row is as if it were 0
            dropped = unbounded & (index == -1.0)
            tiles.change(lambda c, x: select(dropped, tiles.zero, x), behind)

        when(any_lane_of(unbounded), drop_ignored)
        own, own_narrow, factor = factors_of_rows(storage, plan, tiles.tables)
        only_target = ~has_penalty if even is None else False
        others = choose(only_target, lambda: elsewhere * factor, lambda: tiles.none)
        inverse = 1.0 / sums.total
        scale, scale_low = split_float(storage, (own + others) * inverse * sums.unit)
        is_largest = gap == 0.0
        # what is added at the target to f e u / S, or put in its place
        at_largest = narrow(storage, (others - own * sums.others) * inverse)
        pull = select(is_largest, at_largest, tiles.zero - own_narrow)
        kept = select(is_largest, tiles.zero, tiles.zero + 1.0)
        # (a target of -inf pulls at nothing)
        pull = select(row.x_target == -np.inf, tiles.zero, pull)
        of_mass = () if even is None else (narrow(storage, -factor * even.unit),)
        pull, scale, scale_low, *taken = without_idle_rows(
            index, reference.top, lambda: row.d == 0.0, pull, scale, scale_low, *of_mass
        )

        def of_class(c, e):
            own = fma(e, scale, e * scale_low)
            return select(index == c, fma(own, kept, pull), own)

        if even is None:
            tiles.change(of_class)
            return

        def with_mass(c):
            e = tiles.at(c, behind)
            return fma(*taken, even.of_class(c), of_class(c, e))

        # (there is no pull at what is -inf, unless the row is NaN)
        choose(
            any_lane_of(distance == np.inf),
            lambda: tiles.change(lambda c, x: with_mass(c)),
            lambda: tiles.change(lambda c, x: select(x == -np.inf, scale - scale, with_mass(c))),
        )

    when(plan.out != 0, gradient)
