"""The results of a batch of short rows, from its exponentials (log_softmax: its logits) and the factors of its rows."""

import functools

from fastswl.compilation import routine
from fastswl.kernels.block import fill_numbers
from fastswl.kernels.lines import Results, finish_in_place, result_at, store_part, vectors_in
from fastswl.kernels.merge import two_to
from fastswl.kernels.plan import LOG_SOFTMAX, LOSS, spread_wanted
from fastswl.kernels.results import place_target
from fastswl.kernels.rows import (
    CLASS,
    INVERSE,
    INVERSE_LOW,
    LEFT_OUT,
    LOG_SUM,
    MASS_AT,
    MASS_MOVES,
    ONES,
    PLACED,
    PLACES,
    POWER,
    REFERENCE,
    ROW_WEIGHT,
    SCALE,
    SCALE_LOW,
    SHIFT,
    SLOPE,
    SPREAD_SCALE,
    TARGET_GRADIENT,
    UNITS,
    others_at_target,
    smoothing_unit,
)
from fastswl.kernels.stream import write_numbers
from fastswl.simd import (
    FLOAT64,
    VECTOR_BYTES,
    arithmetic_of,
    choose,
    formula,
    itemsize,
    lanes,
    least,
    load,
    load_double,
    load_int64,
    load_integer,
    load_one,
    load_wide,
    log2_of,
    narrow,
    result_of,
    select,
    splat_like,
    steps,
    store,
    store_one,
    store_streaming,
    to_int64,
    when,
    wide_zero,
)
from fastswl.vectormath import exp2_whole

#: where of each row of a batch stands what a unit of q takes off its gradient, in the arithmetic type: there is no slope beside it
TAKEN = SLOPE


@routine
def prepare_results(storage, target_storage, plan, table, batch):
    """From the sums of each row to what its results are made with, in the arithmetic type; and what stands in place of the target's
    exponential."""
    prepared_results(storage, target_storage, plan, table, batch)


@formula
def prepared_results(storage, target_storage, plan, table, batch):
    arithmetic = arithmetic_of(storage)

    def line(what):
        return load_wide(arithmetic, table + what)

    units = exp2_whole(FLOAT64, line(UNITS) - line(POWER))

    def keep(factor, factor_low, units):
        # (rounded first: the digits that factors in other units have)
        for place, value in ((PLACED, factor), (PLACED + VECTOR_BYTES, factor_low)):
            store(arithmetic, table + place, narrow(arithmetic, value) * narrow(arithmetic, units))

    def of_loss():
        keep(line(SCALE), line(SCALE_LOW), units)
        if target_storage is not None:
            store(arithmetic, table + TAKEN, narrow(arithmetic, line(SPREAD_SCALE) * smoothing_unit(plan)))
        choose(spread_wanted(plan) | (plan.z_loss != 0.0), others, one_by_one)

    def others():
        others_at_target(arithmetic, table)
        store(arithmetic, table + LEFT_OUT, narrow(arithmetic, line(TARGET_GRADIENT) / units))
        for row in steps(0, batch.count):
            place = batch.target_of(row) + itemsize(arithmetic) * load_integer(table + PLACES + 4 * row, 32, True)
            put = functools.partial(store_one, arithmetic, place, load_one(arithmetic, table + LEFT_OUT + 4 * row))
            when(load_double(table + CLASS + 8 * row) >= 0.0, put)

    def one_by_one():
        for row in steps(0, batch.count):
            chosen = to_int64(load_double(table + CLASS + 8 * row))
            when(chosen >= 0, functools.partial(place, row, chosen))

    def place(row, chosen):
        done = result_of_row(storage, target_storage, plan, table, batch, 0, row)
        beta, mass, moves = 0.0, table + ONES, 0
        if target_storage is not None:
            beta = load_double(table + SPREAD_SCALE + 8 * row) * smoothing_unit(plan)
            mass, moves = done.mass, done.mass_moves
        guessed = two_to(load_double(table + UNITS + 8 * row) - load_double(table + POWER + 8 * row))
        placed = place_target(
            arithmetic, plan, table, row, done.source, mass, moves, beta, chosen, 1.0, guessed, 1.0
        )  # fmt: skip

        def in_place():
            finish_in_place(arithmetic, done, 0)
            store_one(
                arithmetic,
                done.source + itemsize(arithmetic) * chosen,
                load_double(table + TARGET_GRADIENT + 8 * row),
            )
            # (as they are)
            for what, value in ((PLACED, 1.0), (PLACED + VECTOR_BYTES, 0.0), (TAKEN, 0.0)):
                store_one(arithmetic, table + what + 4 * row, value)

        when(~placed, in_place)

    way = select(plan.operation == LOSS, 2, select(plan.operation == LOG_SOFTMAX, 1, 0))
    choose(
        way,
        lambda: keep(line(INVERSE), line(INVERSE_LOW), units),
        lambda: keep(line(REFERENCE) + line(SHIFT), line(LOG_SUM), wide_zero(storage) + 1.0),
        of_loss,
    )


@formula
def result_of_row(storage, target_storage, plan, table, batch, out, row):
    """The results of one row, which go to `out`; log_softmax are made of the logits."""
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    n = plan.n_classes
    zero = narrow(arithmetic, wide_zero(arithmetic))
    is_log = plan.operation == LOG_SOFTMAX
    source = select(is_log, batch.logits + batch.logits_step * row, batch.target_of(row))
    place = out + plan.out_inner * row
    factor, factor_low = (
        splat_like(zero, load_one(arithmetic, table + PLACED + behind + 4 * row)) for behind in (0, VECTOR_BYTES)
    )
    ignored = (plan.operation == LOSS) & (load_double(table + ROW_WEIGHT + 8 * row) == 0.0)
    when(ignored, lambda: fill_numbers(arithmetic, source, n, zero))
    end = place + itemsize(results) * n
    more = [None] * 6
    if target_storage is not None:
        taken = splat_like(zero, load_one(arithmetic, table + TAKEN + 4 * row))
        mass, moves = load_int64(table + MASS_AT + 8 * row), load_int64(table + MASS_MOVES + 8 * row)
        more = [True, taken, mass, moves, table + ONES, 0]
    return Results(source, place, n, ~is_log, factor, factor_low, *more, 0, place, end)


class RowOut:
    """For formulas: the results of one row on their way past the caches, as `Results` go: in whole vectors, of which one that begins
    in a row and ends in the next is put together at `line`. (Without what rows need that are shorter than a vector.)"""

    def __init__(self, storage, target_storage, plan, table, batch, out, line, begin, end, row):
        self.storage, self.arithmetic, self.plan = result_of(storage), arithmetic_of(storage), plan
        self.size, self.rows, self.line = itemsize(self.storage), lanes(storage), line
        self.done = result_of_row(storage, target_storage, plan, table, batch, out, row)
        place, unit = self.done.target, self.rows * self.size
        self.begin, self.end = (
            select(begin == 0, own, all_rows) for own, all_rows in ((place, begin), (self.done.end, end))
        )
        # numbers before the first whole vector
        self.first = (-place & (unit - 1)) >> log2_of(self.size)
        self.n_vectors = vectors_in(storage, plan.n_classes - self.first)
        when(self.first != 0, self.finish_vector)

    def result(self, number):
        """The vector of results from a class on."""
        return by_kind(self.done, lambda own: result_at(self.arithmetic, own, number))

    def finish_vector(self):
        """The vector that this row begins in."""
        before = self.rows - self.first
        vector = self.done.target - self.size * before
        at = self.line + self.size * before
        store(self.storage, at, self.result(0))
        choose(
            vector < self.begin,
            lambda: store_streaming(self.storage, vector, load(self.storage, self.line)),
            lambda: write_numbers(self.storage, self.done.target, at, self.first),
        )

    def write(self, first, count):
        """So many vectors, or what there is of them."""
        count = least(count, self.n_vectors - first)
        unit = self.rows * self.size
        offset = self.first + self.rows * first
        place = self.done.target + self.size * offset

        def vectors(own):
            for i in steps(0, count):
                store_streaming(self.storage, place + unit * i, result_at(self.arithmetic, own, offset + self.rows * i))

        by_kind(self.done, vectors)

    def write_all(self):
        self.write(0, self.n_vectors)

    def close(self):
        """What is left waits for the next row, but for the last."""
        n = self.plan.n_classes
        rest = n - self.first - self.rows * self.n_vectors

        def keep():
            store(self.storage, self.line + self.size * (rest - self.rows), self.result(n - self.rows))
            is_last = self.done.end == self.end
            when(is_last, lambda: write_numbers(self.storage, self.end - self.size * rest, self.line, rest))

        when(rest != 0, keep)


@routine
def write_rows(storage, target_storage, plan, table, batch, out, line, begin, end):
    """The results of a batch go out past the caches."""
    rows_written(storage, target_storage, plan, table, batch, out, line, begin, end)


@formula
def rows_written(storage, target_storage, plan, table, batch, out, line, begin, end):
    for row in steps(0, batch.count):
        out_of_row = RowOut(storage, target_storage, plan, table, batch, out, line, begin, end, row)
        out_of_row.write_all()
        out_of_row.close()


@routine
def store_results(storage, target_storage, plan, table, batch, out):
    """The results of a batch through the caches."""
    results_stored(storage, target_storage, plan, table, batch, out)


@formula
def results_stored(storage, target_storage, plan, table, batch, out):
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    rows, whole = lanes(storage), vectors_in(storage, plan.n_classes)
    past_whole = plan.n_classes - rows
    for row in steps(0, batch.count):
        done = result_of_row(storage, target_storage, plan, table, batch, out, row)

        def make(to, place, done=done):
            # (before what it overlaps has been changed)
            last = result_at(arithmetic, done, past_whole)
            for i in steps(0, whole):
                store(to, place + itemsize(to) * rows * i, result_at(arithmetic, done, rows * i))
            store(to, place + itemsize(to) * past_whole, last)

        def neighbours(done=done, make=make):
            by_kind(done, lambda own: make(results, done.target, own))

        def one_by_one(row=row, done=done, make=make):
            by_kind(done, lambda own: make(arithmetic, batch.target_of(row), own))
            store_part(results, batch.target_of(row), done.target, plan.out_class, plan.n_classes)

        choose(plan.out_class == itemsize(results), one_by_one, neighbours)


def by_kind(done, work):
    """For formulas: `work` on results of which it is known how they are made. (Chosen before a loop: LLVM left it inside, 13
    instructions a vector for 10.)"""
    return choose(done.scaled, lambda: work(done._replace(scaled=False)), lambda: work(done._replace(scaled=True)))
