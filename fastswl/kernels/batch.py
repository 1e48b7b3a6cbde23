"""A batch of short rows at once: as many as a vector has lanes, whose classes lie side by side.

Vectors run along the classes, as in `part.py`, whose bits these are, and what is done once a row is done for all of the batch, a
lane a row. All rows are in units of one power of two, which is guessed (see `guess_part`): so logits are read once, and the constants
of all exponentials stay in registers. Where the guess is wrong, each row gets a reference of its own. Nothing is transposed but what
each row has come to. (In cache, loss and gradient of 256, 400, 512, 1,000 classes take 0.82, 0.73, 0.77, 0.90 of what they took by
tiles, and one by one.)
"""

import functools
from typing import NamedTuple

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.batch_results import RowOut, write_rows
from fastswl.kernels.block import FAR_32, block_maximum, larger, nan_where_any, once_ahead, smaller
from fastswl.kernels.lines import copy_numbers, vectors_in, vectors_of
from fastswl.kernels.merge import largest_is_most, mark_rows, settle_rows, take_largest_out, weight_of_part
from fastswl.kernels.part import GUESS_ABOVE, GUESS_MARGIN, LEFT_OUT_BELOW, WRONG_GUESSES, row_part
from fastswl.kernels.plan import LOG_SOFTMAX, LOSS, logits_of_row, results_of_row, spread_evenly
from fastswl.kernels.results import no_results, results_in_place
from fastswl.kernels.rows import (
    AGAIN,
    APART,
    APART_LOW,
    CLASS,
    GUESS,
    LEFT_OUT,
    LINE,
    MASS_AT,
    MASS_MOVES,
    ONES,
    PLACES,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REPEATED,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SHIFT,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    TABLE_BYTES,
    TOP,
    UNITS,
    smoothing_unit,
)
from fastswl.kernels.stream import INTERLEAVED
from fastswl.simd import (
    FLOAT64,
    VECTOR_BYTES,
    Running,
    SideBySide,
    absolute,
    any_lane,
    arithmetic_of,
    as_bits,
    as_floats,
    choose,
    fma,
    formula,
    itemsize,
    lane,
    lane_numbers,
    lanes,
    least,
    load,
    load_double,
    load_integer,
    load_one,
    load_wide,
    narrow,
    pair_up,
    prefetch_once,
    select,
    splat_like,
    steps,
    store,
    store_double,
    store_int64,
    store_integers,
    store_one,
    store_wide,
    to_float64,
    vectors_side_by_side,
    when,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import exp2_whole, exp_above, exp_reference, exp_within, max_lanes, nearest_power

#: rows of a batch, at most: the lanes of float32
BATCH_ROWS = 16
#: vectors whose exponentials are computed side by side, where there are registers for them
VECTORS_SIDE_BY_SIDE = 4
#: in memory of the thread: the sum and the largest logit of each row, lane by lane; room for the end of a row; a number of each row,
#: namely where in the window its own begins, and what `exp_above` wants to know of a reference of its own; the window. Where there is
#: smoothing, the sum of the logits times the class weights, and weights of 1
SUMS, WEIGHED, TOPS = 0, BATCH_ROWS * LINE, 2 * BATCH_ROWS * LINE
EDGE = TOPS + (BATCH_ROWS + 2) * VECTOR_BYTES
EVEN_WEIGHTS = TOPS + BATCH_ROWS * VECTOR_BYTES
WINDOWS, MAGIC, LOWEST, WINDOW = range(EDGE + 3 * VECTOR_BYTES, EDGE + 7 * VECTOR_BYTES, VECTOR_BYTES)


def window_bytes(n_classes: int) -> int:
    """Of the window: a number for each class before its middle and behind it, and what a vector reaches beyond."""
    return 8 * n_classes + 3 * VECTOR_BYTES


@formula
def open_window(storage, window, n_classes):
    """Fill the window: all bits are set but those in the middle, so that what is read from so many classes before it leaves one class
    of a row out. (A comparison takes two instructions for one.)"""
    zero = narrow(storage, wide_zero(storage))
    for place in steps(window, window + 8 * n_classes + 2 * VECTOR_BYTES, VECTOR_BYTES):
        store(storage, place, as_floats(as_bits(zero) - 1))
    store_one(storage, window + itemsize(storage) * n_classes, 0.0)


class Batch(NamedTuple):
    """Rows that are computed together: where their logits lie, and where their exponentials go, all but those of the row `end`,
    which go to `spare`; how many. A row's exponentials reach past its end, up to a whole vector."""

    logits: int
    logits_step: int
    target: int
    target_step: int
    count: int
    end: int
    spare: int

    def target_of(self, row):
        """For formulas: where a row's exponentials go."""
        return select(row == self.end, self.spare, self.target + self.target_step * row)


@formula
def row_of_batch(batch, row):
    return batch.target_of(row)


@formula
def batch_of(storage, target_storage, plan, table, outer, inner, count, is_last):
    """The rows from (outer, inner) on, whose table is given, with room for their exponentials behind it. Results that stay in the
    cache are made where they go: what follows a row is the next one's, but for the last of a block."""
    in_place = results_in_place(storage, None, plan) & (plan.gathered != 0)
    room = table + TABLE_BYTES
    target = select(in_place, results_of_row(plan, outer, inner), room)
    # (exponentials that nobody wants lie in one place)
    room_step = select(plan.out == 0, 0, room_of_row(storage, target_storage, plan))
    step = select(in_place, plan.out_inner, room_step)
    end = select(in_place & is_last, count - 1, -1)
    return Batch(logits_of_row(plan, outer, inner), plan.logits_inner, target, step, count, end, room)


def room_of_row(storage, target_storage, plan):
    """For formulas: bytes for the exponentials of a row, and for its target mass."""
    return VECTOR_BYTES * (vectors_of(storage, plan.n_classes) + 1) * (1 if target_storage is None else 2)


def fold_rows(vectors, combine):
    """For formulas: of as many vectors as each has lanes, a row's each, what `combine` makes of the lanes of each, in tree order: a
    lane a row."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [combine(*pair_up(vectors[i], vectors[i + half], half)) for i in range(half)]
    return vectors[0]


@routine
def raise_batch(
    storage, target_storage, plan, table, before, memory, batch, batch_before, out_before, begin, end, outer, inner
):  # fmt: skip
    """A batch of rows from logits to sums, while results of the batch before it go out past the caches. `memory` is the thread's,
    `begin` and `end` are those of the results of the block."""
    arithmetic = arithmetic_of(storage)
    line = least(table, before) + plan.line_buffer + VECTOR_BYTES if plan.line_buffer != 0 else word(0)
    guesses = batch.count > 0 and load_double(table + GUESS + 8) < WRONG_GUESSES
    if plan.operation != LOSS:
        store_wide(arithmetic, table + CLASS, wide_zero(arithmetic) - 1.0)
    find_windows(arithmetic, table, memory)
    right = False
    if guesses:
        bottom = raise_guessed(
            storage, target_storage, plan, table, before, memory, batch, batch_before, out_before, line, begin, end
        )
        right = settle_guesses(arithmetic, target_storage, plan, table, memory, batch.count, bottom)
    elif batch_before.count > 0:
        write_rows(storage, target_storage, plan, before, batch_before, out_before, line, begin, end)
    if batch.count == 0:
        return
    if target_storage is not None and not right and spread_evenly(plan):
        raise_alone(storage, target_storage, plan, table, batch, outer, inner)
        return
    if not right:
        find_references(storage, plan, table, memory, batch)
        raise_by_references(storage, plan, table, memory, batch, False)
        settle_sums(arithmetic, table, memory, False)
    if (
        plan.operation == LOG_SOFTMAX
        and mark_largest(arithmetic, table, memory, batch.count)
        and take_largest_out(storage, plan, table, batch.logits, batch.logits_step, batch.count)
    ):
        find_windows(arithmetic, table, memory)
        raise_by_references(storage, plan, table, memory, batch, True)
        settle_sums(arithmetic, table, memory, True)


@routine
def raise_alone(storage, target_storage, plan, table, batch, outer, inner):
    """Rows with smoothing for which the guess does not serve, one by one as in the row walk: their distances from the largest may
    have to be added up number by number."""
    arithmetic = arithmetic_of(storage)
    area_bytes = VECTOR_BYTES * (vectors_of(storage, plan.n_classes) + 1)
    store_wide(arithmetic, table + SHIFT, wide_zero(arithmetic))
    store_wide(arithmetic, table + REPEATED, wide_zero(arithmetic))
    for row in range(batch.count):
        # (of an ignored row nothing else is known)
        store_int64(table + MASS_AT + 8 * row, table + ONES)
        store_int64(table + MASS_MOVES + 8 * row, word(0))
    finished, again = False, True
    while again:
        for row in range(batch.count):
            wanted = load_double(table + ROW_WEIGHT + 8 * row) != 0.0
            if not wanted or (finished and load_double(table + AGAIN + 8 * row) == 0.0):
                continue
            area = table + TABLE_BYTES + (2 * area_bytes * row if plan.out != 0 else word(0))
            logits = batch.logits + batch.logits_step * row
            row_part(
                storage, target_storage, None, plan, table, row, table + 8 * row, area, area_bytes, word(0), word(0),
                area, True, False, logits, outer, inner + row, word(0), plan.n_classes,
                no_results(arithmetic, target_storage), word(0),
            )  # fmt: skip
        again = settle_rows(arithmetic, plan, table) and mark_rows(arithmetic, plan, table, batch.count)
        finished = True
    if batch.target != batch.spare:
        # (the spare place is that of the first row)
        for row in range(batch.count):
            area = table + TABLE_BYTES + 2 * area_bytes * row
            copy_numbers(arithmetic, area, row_of_batch(batch, row), word(0), plan.n_classes)


@formula
def find_windows(storage, table, memory):
    """Where the window of each row begins that leaves its class out; what is beside the window's middle leaves none out."""
    index = load_wide(storage, table + CLASS)
    store_integers(storage, memory + WINDOWS, index * (0.0 - itemsize(storage)))
    # where the logit is that is left out, or another
    store_integers(storage, table + PLACES, select(index < 0.0, wide_zero(storage), index))


class Row:
    """For formulas: one row from logits to exponentials."""

    def __init__(self, storage, plan, memory, batch, row):
        self.given, self.storage = storage, arithmetic_of(storage)
        self.n_classes, self.rows = plan.n_classes, lanes(storage)
        self.whole, self.past = vectors_in(storage, self.n_classes), self.n_classes & (self.rows - 1)
        self.logits, self.target = batch.logits + batch.logits_step * row, batch.target_of(row)
        middle = memory + WINDOW + itemsize(self.storage) * self.n_classes
        self.window = middle + load_integer(memory + WINDOWS + 4 * row, 32, True)
        # what follows the last row may be nobody's, and what follows others of rows that overlap
        self.is_last = (row == batch.count - 1) | (batch.logits_step < itemsize(storage) * self.n_classes)
        self.edge = memory + EDGE + VECTOR_BYTES
        self.total = Running(wide_zero(storage))
        self.far = once_ahead(plan)

    def logit(self, i):
        """A vector of logits."""
        return load(self.given, self.logits + self.rows * itemsize(self.given) * i)

    def ask_for(self, i, count):
        """The lines that are read next: of this row, or what follows it in memory."""
        size = itemsize(self.given)
        for k in range(count):
            prefetch_once(self.logits + size * self.rows * (i + k) + self.far)

    def keep_left_out(self, table, row):
        """The logit of its class, or another where it has none."""
        place = self.logits + itemsize(self.given) * load_integer(table + PLACES + 4 * row, 32, True)
        store_one(self.storage, table + LEFT_OUT + 4 * row, load_one(self.given, place))

    def last_vector(self):
        """That of the row's end, which overlaps the one before."""
        return load(self.given, self.logits + itemsize(self.given) * (self.n_classes - self.rows))

    def logits_at_edge(self):
        """What is past the last whole vector, and in the other lanes the first of that."""

        def elsewhere():
            store(self.given, self.edge - itemsize(self.given) * (self.rows - self.past), self.last_vector())
            return self.edge

        place = self.logits + self.rows * itemsize(self.given) * self.whole
        x = load(self.given, choose(self.is_last, lambda: place, elsewhere))
        return select(self.inside(), x, splat_like(x, lane(x, 0)))

    def weigh(self, weights, moves, i, x, total):
        """`total` and the vector number i of logits more, times the class weights."""
        return fma(load_wide(self.given, weights + moves * 8 * self.rows * i), widen(x), total)

    def weigh_edge(self, weights, moves):
        """The sum of the logits past the last whole pair of vectors, times the class weights."""
        total = Running(wide_zero(self.given))
        last_pair = self.whole & -2

        def odd():
            total.value = total.value + self.weigh(
                weights, moves, last_pair, self.logit(last_pair), wide_zero(self.given)
            )

        def edge():
            zero = wide_zero(self.given)
            weighed = self.weigh(weights, moves, self.whole, self.logits_at_edge(), zero)
            total.value = total.value + select(lane_numbers(self.given) < to_float64(self.past), weighed, zero)

        when(last_pair != self.whole, odd)
        when(self.past != 0, edge)
        return total.value

    def inside(self):
        """Which lanes are of the row, past the last whole vector."""
        return narrow(self.storage, lane_numbers(self.given)) < self.past

    def over_vectors(self, work, between):
        """`work` on all vectors of the row, in order: some from the i-th on, of which the last may be at the edge. Now and then what
        is `between`, which is told how many have been done, and how many come next at most."""
        # (whole pairs)
        together = max(vectors_side_by_side(VECTORS_SIDE_BY_SIDE), 2)
        grouped = self.whole & -together
        for first in steps(0, grouped, INTERLEAVED):
            between(first, INTERLEAVED)
            for i in steps(first, least(first + INTERLEAVED, grouped), together):
                self.ask_for(i, together)
                work(i, [self.logit(i + k) for k in range(together)], False)
        done = (grouped + (INTERLEAVED - 1)) & -INTERLEAVED
        between(done, self.n_classes)

        def rest(count, at_edge):
            self.ask_for(grouped, count)
            x = [self.logit(grouped + k) for k in range(count)]
            if at_edge or count:
                work(grouped, [*x, self.logits_at_edge()] if at_edge else x, at_edge)

        ways = [functools.partial(rest, count, at_edge) for at_edge in (False, True) for count in range(together)]
        choose(self.whole - grouped + select(self.past != 0, together, 0), *ways)

    def add(self, i, exponentials, at_edge):
        """Store exponentials from the i-th vector on, and add them up in pairs, but for the class that is left out."""
        terms = []
        for k, e in enumerate(exponentials):
            offset = VECTOR_BYTES * (i + k)
            store(self.storage, self.target + offset, e)
            terms.append(as_floats(as_bits(e) & as_bits(load(self.storage, self.window + offset))))
        if at_edge:
            terms[-1] = select(self.inside(), terms[-1], narrow(self.storage, wide_zero(self.given)))
        for k in range(0, len(terms), 2):
            self.total.value = self.total.value + widen(sum(terms[k + 1 : k + 2], terms[k]))


@routine
def raise_guessed(
    storage, target_storage, plan, table, before, memory, batch, batch_before, out_before, line, begin, end
):
    """The exponentials of a batch in units of a power of two that is guessed; each row's sum, its largest logit and that of its class
    into `memory` and the table; the smallest of all."""
    return guessed_rows(
        storage, target_storage, plan, table, before, memory, batch, batch_before, out_before, line, begin, end
    )


@formula
def guessed_rows(
    storage, target_storage, plan, table, before, memory, batch, batch_before, out_before, line, begin, end
):
    arithmetic = arithmetic_of(storage)
    none = narrow(arithmetic, wide_zero(arithmetic)) - np.inf
    magic, _ = exp_reference(arithmetic, splat_like(none, load_double(table + GUESS)))
    bottom = Running(-none)
    weights, moves = weights_of_classes(plan, memory)

    def one(row, between, is_weighed=False):
        own = Row(storage, plan, memory, batch, row)
        own.keep_left_out(table, row)
        top, weighed = Running(none), Running(own.weigh_edge(weights, moves) if is_weighed else 0)

        def work(i, x, at_edge):
            for vector in x:
                top.value, bottom.value = larger(vector, top.value), smaller(vector, bottom.value)
            if is_weighed:
                # (what is past the last whole pair has been weighed)
                for k in range((len(x) - at_edge) & -2):
                    weighed.value = own.weigh(weights, moves, i + k, x[k], weighed.value)
            own.add(i, exp_within(arithmetic, SideBySide(*x), magic), at_edge)

        own.over_vectors(work, between)
        store(arithmetic, memory + TOPS + VECTOR_BYTES * row, top.value)
        store_wide(arithmetic, memory + SUMS + LINE * row, own.total.value)
        if is_weighed:
            store_wide(arithmetic, memory + WEIGHED + LINE * row, weighed.value)

    def all_rows(is_weighed):
        for row in steps(0, batch_before.count):
            out = RowOut(storage, target_storage, plan, before, batch_before, out_before, line, begin, end, row)
            choose(row < batch.count, out.write_all, functools.partial(one, row, out.write, is_weighed))
            out.close()
        # (fewer rows wait where another image begins)
        for row in steps(batch_before.count, batch.count):
            one(row, lambda first, count: None, is_weighed)

    # (what has smoothing beside numbers of rows)
    is_weighed = False if target_storage is None else spread_evenly(plan)
    choose(is_weighed, lambda: all_rows(False), lambda: all_rows(True))
    return -lane(max_lanes(arithmetic, -bottom.value), 0)


@formula
def weights_of_classes(plan, memory):
    """Where the class weights lie, and whether they move from class to class: weights of 1 where there are none."""
    has_weights = plan.weight != 0
    return select(has_weights, plan.weight, memory + EVEN_WEIGHTS), select(has_weights, 1, 0)


@routine
def settle_guesses(storage, target_storage, plan, table, memory, count, bottom):
    """What is known of rows whose power of two was guessed, if the guess was right; the next guess."""
    return settled_guesses(storage, target_storage, plan, table, memory, count, bottom)


@formula
def settled_guesses(storage, target_storage, plan, table, memory, count, bottom):
    units = load_double(table + GUESS)
    top = tops_of_rows(storage, memory, count)
    inside = absolute(top) < FAR_32
    power = nearest_power(storage, select(inside, top, splat_like(top, 0.0)))
    above = units - widen(power)
    lowest = lane(exp_reference(storage, splat_like(top, units))[1], 0)
    right = ~any_lane(~inside) & ~any_lane(~((above >= 0.0) & (above <= GUESS_ABOVE)))
    # (what is multiplied for e of the least x is no subnormal number, or its bits would hang on the guess)
    right = right & (bottom >= lowest + LEFT_OUT_BELOW)
    highest = to_float64(lane(max_lanes(storage, power), 0))

    def use():
        zero = wide_zero(storage)
        store_references(storage, table, widen(top), widen(top), widen(power), zero)
        store_wide(storage, table + UNITS, splat_like(zero, units))
        store_sums(storage, table, memory)
        if target_storage is not None:
            when(spread_evenly(plan), lambda: store_spread(storage, plan, table, memory))
        stale = (units - highest < GUESS_MARGIN * 0.5) | (units - highest > GUESS_MARGIN * 1.5)
        when(stale, lambda: store_double(table + GUESS, highest + GUESS_MARGIN))
        return True

    def reject():
        store_double(table + GUESS, highest + GUESS_MARGIN)
        store_double(table + GUESS + 8, load_double(table + GUESS + 8) + 1.0)
        return False

    return choose(right, reject, use)


def tops_of_rows(storage, memory, count):
    """For formulas: the largest logit of each row; lanes without a row are as the first."""
    tops = [load(storage, memory + TOPS + VECTOR_BYTES * row) for row in range(BATCH_ROWS)]
    top = fold_rows(tops, lambda a, b: select(a > b, a, b))
    return select(narrow(storage, lane_numbers(storage)) < to_float64(count), top, splat_like(top, lane(top, 0)))


def store_references(storage, table, top, m, power, shift):
    """For formulas: what is known of rows whose largest logits and references are known; the logits that are left out."""
    # (in the arithmetic type, as the others)
    apart = widen(load(storage, table + LEFT_OUT) - narrow(storage, shift))
    apart = select(load_wide(storage, table + CLASS) < 0.0, splat_like(apart, -np.inf), apart)
    for line, value in ((TOP, top), (REFERENCE, m), (POWER, power), (UNITS, power), (SHIFT, shift), (APART, apart)):
        store_wide(storage, table + line, value)
    for line in (REST_LOW, APART_LOW, REFERENCE_LOW):
        store_wide(storage, table + line, wide_zero(storage))


@formula
def store_sums(storage, table, memory, marked=False):
    """The sum of each row, in units of its reference; or of those of them that are `marked`."""
    factor = exp2_whole(FLOAT64, load_wide(storage, table + UNITS) - load_wide(storage, table + POWER))
    sums = [load_wide(storage, memory + SUMS + LINE * row) for row in range(BATCH_ROWS)]
    total = fold_rows(sums, lambda a, b: a + b) * factor
    known = marked & (load_wide(storage, table + AGAIN) == 0.0)
    total = select(known, load_wide(storage, table + REST), total)
    store_wide(storage, table + REST, total)
    top = load_wide(storage, table + TOP)
    poisoned = (total != total) & (top < np.inf)
    store_wide(storage, table + TOP, select(poisoned, splat_like(top, np.nan), top))


def store_spread(storage, plan, table, memory):
    """For formulas: of an even smoothing where the mass of the classes lies, and the sums of q and of q (m - x), as in
    `store_even_spread`."""
    weighed = [load_wide(storage, memory + WEIGHED + LINE * row) for row in range(BATCH_ROWS)]
    unit, m = smoothing_unit(plan), load_wide(storage, table + REFERENCE)
    away = unit * (weight_of_part(plan, 0, plan.n_classes) * m - fold_rows(weighed, lambda a, b: a + b))
    store_wide(storage, table + SPREAD_DISTANCE, away)
    store_wide(storage, table + SPREAD_MASS, splat_like(away, unit * plan.weight_total))
    has_weights = plan.weight != 0
    at, moves = select(has_weights, plan.weight_vector, table + ONES), select(has_weights, 1, 0)
    for row in range(BATCH_ROWS):
        store_int64(table + MASS_AT + 8 * row, at)
        store_int64(table + MASS_MOVES + 8 * row, moves)


@routine
def settle_sums(storage, table, memory, marked):
    """`store_sums` of rows that have references of their own."""
    store_sums(storage, table, memory, marked)


@routine
def find_references(storage, plan, table, memory, batch):
    """The largest logit of each row (NaN where there is one beside +inf), what is subtracted from those that are far from 0, and what
    `exp_above` wants to know."""
    references_of_rows(storage, plan, table, memory, batch)


@formula
def references_of_rows(storage, plan, table, memory, batch):
    arithmetic = arithmetic_of(storage)
    zero = narrow(arithmetic, wide_zero(arithmetic))
    for row in steps(0, batch.count):
        own = Row(storage, plan, memory, batch, row)
        own.keep_left_out(table, row)
        last = own.last_vector()
        top = larger(larger(last, zero - np.inf), block_maximum(own.given, own.logits, own.whole))

        def infinite(own=own, last=last, top=top):
            strange = nan_where_any(own.given, own.logits, own.whole, select(last == last, zero, last))
            return select(any_lane(strange != strange), splat_like(zero, np.nan), top)

        top = choose(any_lane(top == np.inf), lambda top=top: top, infinite)
        store(arithmetic, memory + TOPS + VECTOR_BYTES * row, top)
    top = tops_of_rows(arithmetic, memory, batch.count)
    m = select(absolute(top) < np.inf, top, zero)
    shift = select(absolute(m) >= FAR_32, m, zero)
    m = m - shift
    power = nearest_power(arithmetic, m)
    store_references(arithmetic, table, widen(top), widen(m), widen(power), widen(shift))
    magic, lowest = exp_reference(arithmetic, power)
    store(arithmetic, memory + MAGIC, magic)
    store(arithmetic, memory + LOWEST, lowest)


@routine
def raise_by_references(storage, plan, table, memory, batch, marked):
    """The exponentials of rows that have references of their own, or of those of them that are `marked`."""
    rows_by_references(storage, plan, table, memory, batch, marked)


@formula
def rows_by_references(storage, plan, table, memory, batch, marked):
    arithmetic = arithmetic_of(storage)
    like = narrow(arithmetic, wide_zero(arithmetic))
    for row in steps(0, batch.count):

        def one(row=row):
            own = Row(storage, plan, memory, batch, row)
            magic, lowest = (
                splat_like(like, load_one(arithmetic, memory + line + 4 * row)) for line in (MAGIC, LOWEST)
            )
            shift = splat_like(like, load_double(table + SHIFT + 8 * row))

            def work(i, x, at_edge):
                e = exp_above(arithmetic, SideBySide(*(vector - shift for vector in x)), magic, lowest)
                own.add(i, e, at_edge)

            own.over_vectors(work, lambda first, count: None)
            store_wide(arithmetic, memory + SUMS + LINE * row, own.total.value)

        when((load_double(table + AGAIN + 8 * row) != 0.0) | ~marked, one)


@routine
def mark_largest(storage, table, memory, count):
    """Mark the rows of which the largest is most, which is left out of their sums; whether there are any."""
    return largest_marked(storage, table, memory, count)


@formula
def largest_marked(storage, table, memory, count):
    m, power, top = (load_wide(storage, table + line) for line in (REFERENCE, POWER, TOP))
    zero = wide_zero(storage)
    most = largest_is_most(storage, m, power, load_wide(storage, table + REST))
    # (rows far from 0 as in the row walk, which does them twice)
    most = most | (load_wide(storage, table + SHIFT) != 0.0)
    most = most & (absolute(top) < np.inf) & (lane_numbers(storage) < to_float64(count))

    def mark():
        store_wide(storage, table + AGAIN, select(most, zero + 1.0, zero))
        store_wide(storage, table + UNITS, select(most, power, load_wide(storage, table + UNITS)))
        magic, lowest = exp_reference(storage, narrow(storage, power))
        store(storage, memory + MAGIC, magic)
        store(storage, memory + LOWEST, lowest)
        return True

    return choose(any_lane(most), lambda: False, mark)
