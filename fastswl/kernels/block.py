"""Loops over a block: `n` vectors of the arithmetic type, end to end in scratch memory.

A block is a piece of one row (lanes are neighbouring classes; the last vector is filled up with -inf) or a tile of rows
(one vector a class, one lane a row). The loops are the same: what differs between lanes stands in vectors.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import routine
from fastswl.simd import (
    VECTOR_BYTES,
    Running,
    SideBySide,
    absolute,
    any_lane_of,
    arithmetic_of,
    as_it_is,
    by_type,
    choose,
    first_level_bytes,
    fma,
    formula,
    in_float64,
    itemsize,
    lane_numbers,
    lanes,
    least,
    load,
    log2_of,
    narrow,
    prefetch,
    prefetch_once,
    prefetch_second_level,
    quotient,
    same_storage,
    select,
    splat_like,
    steps,
    store,
    vectors_side_by_side,
    when,
    wide_zero,
    widen,
)
from fastswl.vectormath import (
    accumulate,
    exp_above,
    exp_of_sum_above,
    exp_within,
    softcapped,
    softcapped_a_little,
    split_float,
    times_in_two,
    two_sum,
)

#: pairs of vectors whose exponentials are computed side by side (one: 7 % slower, three: up to 8 %, four: no better)
PAIRS_SIDE_BY_SIDE = 2
#: bytes past what is read next, which come from main memory into the second-level cache meanwhile (loss alone, 1,000 classes:
#: 0.84 to 0.76 of a copy; twice or half of it: 0.76 to 0.78)
FAR_AHEAD = 8192
#: the same of rows that lie side by side, all classes together
STRIDED_AHEAD = 65536

#: a changed logit in two float32 has 47 bits, of which the last is 2**-26 here
LARGE_LOGIT = 2.0**20
#: a logit's distance from 0 from which on the row's maximum is subtracted first
FAR_32, FAR_64 = 1024.0, 4096.0


class Ahead(NamedTuple):
    """What is read next: a line for each vector that is computed, `step` bytes from the last one; into the second-level cache comes
    what lies `far` bytes behind it; or, where `once` is not None, that alone, and past that cache, which then need not hand it down
    either."""

    place: int
    step: int
    far: int
    once: bool | None = None


@formula
def once_ahead(plan):
    """The same of what comes into the first-level cache alone, where exponentials and results on their way out want room, too: a
    quarter of that cache, near half of it where nothing is written. (Of one of 48 KB, two threads: loss and gradient of 1,000
    classes 8 KB 5 % off, 20 KB 3 to 5 % slower; the loss of 32,768 8 KB 9 % slower, 20 KB 3 % off.)"""
    size = first_level_bytes()
    return select(plan.out == 0, size // 2 - 2048, size // 4)


@formula
def larger(x, top):
    """The larger of each lane; a NaN in `x` is dropped."""
    return select(x > top, x, top)


@formula
def smaller(x, bottom):
    """The smaller of each lane; a NaN in `x` is dropped."""
    return select(x < bottom, x, bottom)


def stored_bytes(storage):
    """For formulas: bytes of a vector as it lies in memory."""
    return lanes(storage) * itemsize(storage)


@formula
def block_maximum(storage, source, n):
    """The largest of each lane; NaN is dropped (the exponentials keep it)."""
    step = stored_bytes(storage)
    none = splat_like(load(storage, source), -np.inf)
    # two chains: each comparison waits for the one before
    top, other = Running(none), Running(none)
    for i in steps(0, n >> 1):
        place = source + 2 * step * i
        top.value = larger(load(storage, place), top.value)
        other.value = larger(load(storage, place + step), other.value)
    last = choose((n & 1) != 0, lambda: none, lambda: load(storage, source + step * (n - 1)))
    return larger(other.value, larger(last, top.value))


@formula
def nan_where_any(storage, source, n, top):
    """`top`, but NaN in lanes that hold a NaN: rows with +inf, where the exponentials can't tell."""
    result = Running(top)
    for i in steps(0, n):
        x = load(storage, source + stored_bytes(storage) * i)
        result.value = select(x == x, result.value, x)
    return result.value


def begin_of_groups(begin, end, size):
    """For formulas: from which number on those up to `end` fill groups of `size`."""
    return end - quotient(end - begin, size) * size


def by_groups(begin, end, size):
    """For formulas: the numbers from `begin` on by groups of `size`, as the first of each group and how many it has; those that fill
    no group come first, one by one."""
    odd = begin_of_groups(begin, end, size)
    for first in steps(begin, odd):
        yield first, 1
    for first in steps(odd, end, size):
        yield first, size


def loaded(vectors):
    """For formulas: vectors of which some are functions that load them, called as late as this: in a loop whose registers are all in
    use another order of its instructions can be 5 % slower."""
    return tuple(vector() if callable(vector) else vector for vector in vectors)


class Logits(NamedTuple):
    """Where vectors of logits lie, in pairs: at `place`, as they were `given`; but the pairs from `whole` on and the pair `patched`
    have been `put` in scratch memory with numbers of their own (-inf past a row's end and at the class that is left out), so that
    others need not be copied first. None for the last three: all are at `place`."""

    given: Any
    place: int
    low_parts: int | None  # of changed logits; 0 or None for none
    slopes: int | None = None  # by which the exponentials are multiplied that are stored; None for none
    put: int | None = None
    whole: int | None = None
    patched: int | None = None

    def vector_bytes(self):
        return stored_bytes(self.given)

    def given_at(self, pair):
        """What loads the two vectors as they were given."""
        place = self.place + 2 * self.vector_bytes() * pair
        return [functools.partial(load, self.given, place + behind) for behind in (0, self.vector_bytes())]

    def pair_at(self, storage, pair, own):
        """What loads the two vectors of a pair, in the arithmetic type; they are `own` if they lie where they were given, if these are
        loaded already."""
        if self.patched is None:
            return own or self.given_at(pair)

        def put_at(place):
            place = place + 2 * VECTOR_BYTES * pair
            return [functools.partial(load, storage, place + behind) for behind in (0, VECTOR_BYTES)]

        elsewhere = (pair == self.patched) | (pair >= self.whole)
        if same_storage(self.given, storage):
            return put_at(select(elsewhere, self.put, self.place))
        return choose(elsewhere, lambda: own or loaded(self.given_at(pair)), lambda: loaded(put_at(self.put)))


@formula
def exp_and_sum(storage, logits, target, keeps, first, n, magic, lowest, ahead, high, low, watch):
    """e = exp(x) in units of the reference into `target` (may be where the logits are), of the vectors from `first` (an even number)
    to `n`; the sum of each lane added to (high, low), float64. x instead, if `keeps` is not None.

    Vectors go in pairs, whose sum goes to the float64 one, and several pairs side by side. `n` is even where some pairs have been put
    elsewhere; the exponentials of those from `whole` on stay there. Meanwhile the lines that are read next are asked for, one a
    vector: what follows a row in memory comes while this one is computed.

    If `watch` is not None, it gets the number of each vector and the logits as they were given (not of what has been put elsewhere
    from `whole` on). Of logits some of which have been put elsewhere it is to see their bounds: none is compared with `lowest` then,
    and what has been put in place of one is at least that.
    """
    total, rest = Running(high), Running(low)

    line = Running(ahead.place + ahead.step * first)

    def ask_for_lines(count):
        for _ in range(count):
            if ahead.once is None:
                prefetch(line.value)
                prefetch_second_level(line.value + ahead.far)
            else:
                prefetch_once(line.value + ahead.far)
            # an address of its own for each line would take a register each, where several go side by side
            line.value = as_it_is(line.value + ahead.step)

    def add(e):
        total.value, rest.value = accumulate(storage, total.value, rest.value, e)

    def target_of(pair):
        return target if logits.patched is None else select(pair >= logits.whole, logits.put, target)

    def exponentials(x, targets, i, lowest):
        return exp_of_several(storage, loaded(x), logits, targets, keeps, i, magic, lowest)

    def sums_of_pairs(pair, count, lowest=lowest, own=(), target_of=target_of):
        x = [one for i in range(count) for one in logits.pair_at(storage, pair + i, own[2 * i : 2 * i + 2])]
        ask_for_lines(2 * count)
        targets = [target_of(pair + i) for i in range(count) for _ in range(2)]
        # (where registers are few and each lane has a reference of its own, one vector after the other: on AVX2 116 instructions a
        # pair for 122; with `watch` 124 for 116)
        together = 1 if side_by_side == 1 and watch is None else len(x)
        e = []
        for i in range(0, len(x), together):
            e += exponentials(x[i : i + together], targets[i : i + together], 2 * pair + i, lowest)
        return [e[2 * i] + e[2 * i + 1] for i in range(count)]

    def add_pairs(*args):
        for sum_of_pair in sums_of_pairs(*args):
            add(sum_of_pair)

    side_by_side = vectors_side_by_side(PAIRS_SIDE_BY_SIDE)
    first, n_pairs = first >> 1, n >> 1

    def note(pair, count):
        noted = []
        if watch is not None:
            for i, load_vector in enumerate([one for k in range(count) for one in logits.given_at(pair + k)]):
                noted.append(load_vector())
                watch(2 * pair + i, noted[-1])
        return tuple(noted)

    def add_groups(begin, end, lowest, target_of):
        # where there are registers for it, each sum waits for its float64 one until the next group has been computed: what hangs on
        # the last exponential of a group would hold the processor's queues (loss of 2,000 classes in cache: 0.138 to 0.131 ns)
        waiting = (
            [Running(narrow(storage, wide_zero(storage))) for _ in range(side_by_side)] if side_by_side > 1 else []
        )
        for pair in steps(begin, end, side_by_side):
            sums = sums_of_pairs(pair, side_by_side, lowest, note(pair, side_by_side), target_of)
            if not waiting:
                add(*sums)
                continue
            for before, sum_of_pair in zip(waiting, sums, strict=True):
                add(before.value)
                before.value = sum_of_pair
        for before in waiting:
            add(before.value)

    if logits.patched is None:
        grouped = begin_of_groups(first, n_pairs, side_by_side)
        for pair in steps(first, grouped):
            add_pairs(pair, 1, lowest, note(pair, 1))
        add_groups(grouped, n_pairs, lowest, target_of)

        def last():
            ask_for_lines(1)
            last_logits = logits.given_at(n_pairs)[0]
            if watch is not None:
                last_logits = last_logits()
                watch(n - 1, last_logits)
            add(exponentials([last_logits], [target], n - 1, lowest)[0])

        when((n & 1) != 0, last)
        return total.value, rest.value

    inside, lowest_inside, target_inside = n_pairs, lowest, target_of
    if watch is not None:
        inside, lowest_inside, target_inside = least(n_pairs, logits.whole), None, lambda pair: target

    grouped = first + quotient(inside - first, side_by_side) * side_by_side
    add_groups(first, grouped, lowest_inside, target_inside)

    def note_odd():
        note(grouped, 1)

    # what fills no group, and a pair that is not all inside, are one: neither waits for the other's sum (softmax of 1,000 classes:
    # 4 % off)
    if side_by_side > 1:
        when(grouped < inside, note_odd)
    rests = [functools.partial(add_pairs, grouped, count) for count in range(1, side_by_side + 1)]
    choose(n_pairs - grouped, lambda: None, *rests)
    return total.value, rest.value


@formula
def no_low_parts(target_storage):
    """Where low parts of logits lie that have none: 0, and None in kernels for plain calls, which leave out what is done with them."""
    return None if target_storage is None else 0


def by_low_parts(low_parts, without, with_them):
    """`choose`, in formulas, by whether logits have low parts."""
    return without() if low_parts is None else choose(low_parts != 0, without, with_them)


def exp_of_several(storage, x, logits, targets, keeps, first, magic, lowest):
    """For formulas: the exponentials of some vectors `x` of the logits, those from the `first` on. Without `lowest` of logits that are
    not below. What is put at the targets are the logits, if `keeps` is not None."""
    numbers = [first + i for i in range(len(x))]
    x = SideBySide(*x)

    def beside(place):
        return SideBySide(*(load(storage, place + VECTOR_BYTES * i) for i in numbers))

    def of_sum():
        return exp_of_sum_above(storage, x, beside(logits.low_parts), magic, lowest)

    if lowest is None:
        e = exp_within(storage, x, magic)
    elif logits.slopes is None:
        e = by_low_parts(logits.low_parts, lambda: exp_above(storage, x, magic, lowest), of_sum)
    else:
        e = of_sum()
    kept = x if keeps is not None else e if logits.slopes is None else e * beside(logits.slopes)
    for i, target, one in zip(numbers, targets, kept, strict=True):
        store(storage, target + VECTOR_BYTES * i, one)
    return list(e)


@formula
def subtract(storage, source, low_parts, n, shift):
    """x - shift, in place: for rows far from 0, where it is exact for all that counts (Sterbenz).

    The low parts of changed logits, half a unit of a number that large, are more than that of what is left: they are added. Where
    they are far from 0 themselves, for logits from 3e10 on in float32, these count as they were rounded.
    """
    limit = by_type(storage, FAR_32, FAR_64)
    for i in steps(0, n):
        place = source + VECTOR_BYTES * i
        x = load(storage, place) - shift

        def with_low_part(x=x, i=i):
            low = load(storage, low_parts + VECTOR_BYTES * i)
            x, low = two_sum(x, select(absolute(low) < limit, low, splat_like(low, 0.0)))
            # an infinite logit has no rest
            store(storage, low_parts + VECTOR_BYTES * i, select(low == low, low, splat_like(low, 0.0)))
            return x

        store(storage, place, by_low_parts(low_parts, lambda x=x: x, with_low_part))


@routine
def cap_and_scale(given, source, target, low_parts, slopes, n, softcap, scale):
    """The change of variable z = scale * softcap * tanh(x / softcap) of `n` numbers, a vector or more, as z + z_low, in the arithmetic
    type into `target`, and its derivative but for the scale; the largest z of each lane (NaN dropped)."""
    return capped_and_scaled(given, source, target, low_parts, slopes, n, softcap, scale)


@formula
def capped_and_scaled(given, source, target, low_parts, slopes, n, softcap, scale):
    """`cap_and_scale`, of several vectors side by side (softcap 2 of 1,000 classes 1.74 to 1.34 ns, float64 3.2 to 2.3)."""
    storage = arithmetic_of(given)
    like = load(given, source)
    zero, one = splat_like(like, 0.0), splat_like(like, 1.0)
    top = Running(splat_like(like, -np.inf))
    factor, factor_low = split_float(storage, splat_like(widen(like), scale))

    def in_general(x, *little):
        z, z_low, slope = choose(
            softcap != 0.0,
            lambda: (x, zero, one),
            lambda: softcapped(storage, x, softcap, scale, little[:3], little[-1]),
        )
        # (softcap alone, 100 and 1,000 classes: 5 to 7 % off)
        high, low = choose(
            scale != 1.0, lambda: (z, z_low), lambda: times_in_two(storage, z, z_low, factor, factor_low)
        )

        def digits():
            large = absolute(high) > LARGE_LOGIT

            def more():
                wide_high, wide_low = split_float(storage, (widen(z) + widen(z_low)) * scale)
                return select(large, wide_high, high), select(large, wide_low, low)

            # (two float32 are too few)
            return choose(any_lane_of(large), lambda: (high, low), more)

        high, low = by_type(storage, digits, lambda: (high, low))()
        # an infinite z has no rest
        low = select(low == low, low, zero)
        return high, low, slope

    def several(numbers):
        x = SideBySide(*(load(given, source + itemsize(given) * number) for number in numbers))
        if in_float64(storage):
            changed = in_general(x, None)
        else:
            # (no NaN is near 0, nor an infinite logit: softcap of 1,000 classes 0.48 to 0.41 ns)
            little = softcapped_a_little(x, softcap, scale)
            is_other = any_lane_of(~little[-1]) | (scale != 1.0)
            changed = choose(is_other, lambda: little[:3], lambda: in_general(x, *little))
        for place, vectors in zip((target, low_parts, slopes), changed, strict=True):
            for number, vector in zip(numbers, vectors, strict=True):
                store(storage, place + itemsize(storage) * number, vector)
        for z in changed[0]:
            top.value = larger(z, top.value)

    width = lanes(storage)
    for first, count in by_groups(0, n >> log2_of(width), vectors_side_by_side(4)):
        several([width * (first + i) for i in range(count)])
    # the last vector overlaps the one before (not in place, where it would be changed twice)
    when((n & (width - 1)) != 0, lambda: several([n - width]))
    return top.value


@formula
def fill_numbers(storage, target, n, value):
    """`value` (a vector) in `n` numbers, which are a vector or more."""
    size, width = itemsize(storage), lanes(storage)
    for i in steps(0, n >> log2_of(width)):
        store(storage, target + VECTOR_BYTES * i, value)
    store(storage, target + size * (n - width), value)


@formula
def scale_numbers(storage, place, n, factor):
    """`n` numbers, which are a vector or more, times `factor`, in place."""
    size, width = itemsize(storage), lanes(storage)
    # it overlaps the one before
    tail = load(storage, place + size * (n - width)) * factor
    for i in steps(0, n >> log2_of(width)):
        store(storage, place + VECTOR_BYTES * i, load(storage, place + VECTOR_BYTES * i) * factor)
    store(storage, place + size * (n - width), tail)


@formula
def scale_block(storage, source, target, n, factor, factor_low):
    """e * (factor + factor_low): one rounding."""
    for i in steps(0, n):
        e = load(storage, source + VECTOR_BYTES * i)
        store(storage, target + VECTOR_BYTES * i, fma(e, factor, e * factor_low))


class MassSums(NamedTuple):
    """Sums of q and of q (m - x) so far, in each lane, in two parts: what a loss with target mass everywhere is made of."""

    total: Any
    total_low: Any
    distance: Any
    distance_low: Any


@formula
def no_mass(storage):
    """The sums of nothing."""
    zero = wide_zero(storage)
    return MassSums(zero, zero, zero, zero)


@formula
def add_mass(storage, sums, q, away):
    """`sums` and a vector of q and of q (m - x) more."""
    total, total_low = accumulate(storage, sums.total, sums.total_low, q)
    distance, distance_low = accumulate(storage, sums.distance, sums.distance_low, away)
    return MassSums(total, total_low, distance, distance_low)


@routine
def mass_in_pairs(storage, logits, mass, moves, ahead, n_pairs, reference, sums):
    """Add up q and q (m - x) over pairs of vectors.

    A difference, a product and a sum are rounded, of terms that have one sign (1.5 ulp); pairs are added up in float64. Where
    the sums are not finite, `mass_and_distance` has to look again. `moves` is 0 where the mass is one vector for all classes. The
    targets that are read later are asked for from `ahead` on.
    """
    for pair in range(n_pairs):
        offset = 2 * VECTOR_BYTES * pair
        place = mass + moves * offset
        first, second = load(storage, place), load(storage, place + moves * VECTOR_BYTES)
        prefetch_second_level(ahead + moves * offset)
        prefetch_second_level(ahead + moves * (offset + VECTOR_BYTES))
        gap = reference - load(storage, logits + offset)
        next_gap = reference - load(storage, logits + offset + VECTOR_BYTES)
        sums = add_mass(storage, sums, first + second, fma(second, next_gap, first * gap))
    return sums


@routine
def mass_and_distance(
    storage, logits, low_parts, mass, moves, struck, first, n, n_numbers, reference, reference_low, sums
):
    """The same of the vectors from `first` to `n`, all in float64, whatever the numbers are; of those past `n_numbers` nothing.

    A class of no mass adds nothing, whatever its logit. A logit of -inf that has mass makes the loss inf, and its
    gradient is 0: the mass that is left is put at `struck`, where that is not 0.
    """
    zero = wide_zero(storage)
    for i in range(first, n):
        x = load(storage, logits + VECTOR_BYTES * i)
        stored = load(storage, mass + moves * VECTOR_BYTES * i)
        q = widen(stored)
        if lanes(storage) * (i + 1) > n_numbers:
            q = select(lane_numbers(storage) < float(n_numbers - lanes(storage) * i), q, zero)
        gap = reference - widen(x)
        if low_parts != 0:
            gap = gap + (reference_low - widen(load(storage, low_parts + VECTOR_BYTES * i)))
        sums = add_mass(storage, sums, q, select(q == 0.0, zero, q * gap))
        if struck != 0:
            nothing = splat_like(x, 0.0)
            store(storage, struck + VECTOR_BYTES * i, select(x == -np.inf, nothing, narrow(storage, q)))
    return sums


@formula
def settled(high, low):
    """The two parts of a compensated sum in one; an infinite sum leaves NaN as its rest."""
    return select(absolute(high) < np.inf, high + low, high)
