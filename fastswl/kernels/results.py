"""The results of a part of a row, from its exponentials and the factors of its row."""

import functools

import numpy as np

from fastswl.kernels.block import (
    fill_numbers,
    scale_block,
    scale_numbers,
)
from fastswl.kernels.lines import (
    Results,
    finish_in_place,
    store_part,
    vectors_of,
)
from fastswl.kernels.merge import two_to
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOSS,
    SOFTMAX,
    capped,
    slopes_on_the_way,
    spread_evenly,
    spread_wanted,
)
from fastswl.kernels.record import (
    PART_MASS_AT,
    PART_MASS_MOVES,
    PART_POWER,
    PART_UNITS,
    record_step,
)
from fastswl.kernels.rows import (
    APART,
    CLASS,
    INVERSE,
    INVERSE_LOW,
    LOG_SUM,
    ONES,
    POWER,
    REFERENCE,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SCALE,
    SCALE_LOW,
    SLOPE,
    SPREAD_SCALE,
    TARGET_GRADIENT,
    smoothing_unit,
)
from fastswl.kernels.spread import fill_masked
from fastswl.simd import (
    Running,
    arithmetic_of,
    choose,
    formula,
    greatest,
    itemsize,
    lanes,
    load,
    load_double,
    load_int64,
    load_one,
    narrow,
    result_of,
    same_storage,
    select,
    splat_like,
    store_one,
    to_float64,
    to_int64,
    when,
    wide_zero,
)


@formula
def results_are_general(target_storage, plan):
    """Whether alpha e is not all of the gradient: mass on every class and a change of variable make it (alpha e - beta q) dz/dx."""
    if target_storage is None:
        return None
    return (plan.operation == LOSS) & (spread_wanted(plan) | (capped(plan) & ~slopes_on_the_way(plan)))


@formula
def results_in_place(storage, target_storage, plan):
    """Whether exponentials of a part go where its results do, which stay in the cache, and are scaled there: scratch memory takes no
    room, and what has to come to the first-level cache to be written comes while they are computed."""
    if target_storage is not None or not same_storage(storage, arithmetic_of(storage)):
        return False
    neighbours = plan.out_class == itemsize(storage)
    return (plan.out != 0) & (plan.out != plan.logits) & (plan.streaming == 0) & neighbours


@formula
def no_results(storage, target_storage):
    """Nothing on its way out."""
    zero = narrow(storage, wide_zero(storage))
    more = [None] * 6 if target_storage is None else [False, zero, 0, 0, 0, 0]
    return Results(0, 0, 0, False, zero, zero, *more, 0, 0, 0)


@formula
def finish_part(
    storage, target_storage, n_parts, plan, table, row, part, areas, area_bytes, source, out, outer, inner, first_class, n,
    line, begin, end,
):  # fmt: skip
    """The results of one part of a row, which go to `out`, from its exponentials (log_softmax: logits), which lie at `source`: what is
    left to do is to write them. `begin` and `end` are those of the part where they are 0; see `Results`."""
    arithmetic, results, step = arithmetic_of(storage), result_of(storage), record_step(n_parts)
    size = itemsize(arithmetic)
    n_vectors = vectors_of(storage, n)
    # of scratch memory all that is filled up
    n_numbers = select(source == out, n, lanes(storage) * n_vectors)
    like = load(arithmetic, source)

    def number(what, factor=1.0):
        return splat_like(like, load_double(table + what + 8 * row) * factor)

    zero = splat_like(like, 0.0)
    factor, factor_low = Running(zero), Running(zero)
    below, guessed, scaled = Running(1.0), Running(1.0), Running(False)

    def of_ignored():
        fill_numbers(arithmetic, source, n_numbers, zero)

        def softmax_of_ignored():
            store_part(results, source, softmax_place(plan, outer, inner, first_class), plan.softmax_class, n)

        when(plan.softmax != 0, softmax_of_ignored)

    def of_log_softmax():
        factor.value, factor_low.value = number(REFERENCE), number(LOG_SUM)

    def of_exponentials():
        below.value, guessed.value = to_reference_of_row(arithmetic, n_parts, table, row, part, source, n_numbers)
        units = splat_like(like, guessed.value)

        def in_units(what):
            # (the digits that a factor of two passes would have)
            return number(what, below.value) * units

        inverse, inverse_low = in_units(INVERSE), in_units(INVERSE_LOW)

        def of_softmax():
            factor.value, factor_low.value = inverse, inverse_low

        def softmax_beside():
            probabilities = areas + 4 * area_bytes
            scale_block(arithmetic, source, probabilities, n_vectors, inverse, inverse_low)
            store_part(results, probabilities, softmax_place(plan, outer, inner, first_class), plan.softmax_class, n)

        def of_loss():
            when(plan.softmax != 0, softmax_beside)
            factor.value, factor_low.value = in_units(SCALE), in_units(SCALE_LOW)

        choose(plan.operation == SOFTMAX, of_loss, of_softmax)
        scaled.value = True

    ignored = (plan.operation == LOSS) & (load_double(table + ROW_WEIGHT + 8 * row) == 0.0)
    way = select(ignored, 0, select(plan.operation == LOG_SOFTMAX, 1, 2))
    choose(way, of_ignored, of_log_softmax, of_exponentials)

    beta, mass, mass_moves, slopes, slopes_move = 0.0, table + ONES, 0, table + ONES, 0
    if target_storage is not None:

        def spread():
            beta = load_double(table + SPREAD_SCALE + 8 * row)
            beta = beta * select(spread_evenly(plan), smoothing_unit(plan), 1.0)
            return beta, load_int64(part + step * PART_MASS_AT), load_int64(part + step * PART_MASS_MOVES)

        beta, mass, mass_moves = choose(spread_wanted(plan), lambda: (0.0, table + ONES, 0), spread)
        apart = capped(plan) & ~slopes_on_the_way(plan)
        slopes, slopes_move = select(apart, areas + 3 * area_bytes, table + ONES), select(apart, 1, 0)
    general = results_are_general(target_storage, plan)
    more = [general, splat_like(like, beta), mass, mass_moves, slopes, slopes_move]
    more = more if target_storage is not None else [None] * 6
    done = Results(
        source, out, n, scaled.value, factor.value, factor_low.value, *more,
        line, select(begin == 0, out, begin), select(begin == 0, out + itemsize(results) * n, end),
    )  # fmt: skip

    def gradient():
        chosen = target_in_part(plan, table, row, first_class, n)
        place = functools.partial(
            place_target,
            arithmetic,
            plan,
            table,
            row,
            source,
            mass,
            mass_moves,
            beta,
            chosen,
            below.value,
            guessed.value,
            1.0 if target_storage is None else slope_at_target(plan, table, row, 1.0),
        )
        placed = choose(chosen >= 0, lambda: True, place)

        def in_place():
            finish_in_place(arithmetic, done, 0)

            def at_target():
                slope = slope_at_target(plan, table, row, load_one(arithmetic, slopes + slopes_move * size * chosen))
                value = load_double(table + TARGET_GRADIENT + 8 * row) * slope
                store_one(arithmetic, source + size * chosen, value)

            when((chosen >= 0) & ~placed, at_target)
            if target_storage is not None:
                strike = functools.partial(
                    fill_masked, arithmetic, plan, source, 0.0, size, outer, inner, first_class, n
                )
                when(plan.mask != 0, strike)
            scaled.value, factor.value, factor_low.value = False, zero, zero

        masked = False if target_storage is None else plan.mask != 0
        when(~placed | masked, in_place)

    when((plan.operation == LOSS) & scaled.value, gradient)

    def in_steps():
        is_made = (plan.operation == LOSS) & ~scaled.value
        when(~is_made, lambda: finish_in_place(arithmetic, done, 0))
        store_part(results, source, out, plan.out_class, n)
        return no_results(arithmetic, target_storage)

    def neighbours():
        still_general = None if general is None else general & scaled.value
        return done._replace(
            scaled=scaled.value, factor=factor.value, factor_low=factor_low.value, general=still_general
        )

    return choose(plan.out_class != itemsize(results), neighbours, in_steps)


@formula
def softmax_place(plan, outer, inner, first_class):
    return plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class


@formula
def to_reference_of_row(storage, n_parts, table, row, part, exponentials, n):
    """By which two powers of two the exponentials of a part are multiplied to be in units of the row's reference: from the N of the
    part to that of the row, and from a guess to that of the part. What a factor of the results has no room for is done here."""
    step = record_step(n_parts)
    own = load_double(part + step * PART_POWER)
    guessed = load_double(part + step * PART_UNITS) - own
    if n_parts is None:
        return 1.0, two_to(guessed)
    below = own - load_double(table + POWER + 8 * row)

    def far():
        like = load(storage, exponentials)
        half = to_float64(to_int64(below * 0.5))
        for power in (guessed, half, below - half):
            scale_numbers(storage, exponentials, n, splat_like(like, two_to(power)))
        return 1.0, 1.0

    # (the row's largest is in another part, 2**-below times this one's)
    return choose(below < -40.0, lambda: (two_to(below), two_to(guessed)), far)


@formula
def target_in_part(plan, table, row, first_class, n):
    """The place of the row's target in a part, negative where it is elsewhere or not a class."""
    chosen = to_int64(load_double(table + CLASS + 8 * row)) - first_class
    return select((plan.kind == INDEX_TARGETS) & (chosen < n), chosen, -1)


@formula
def place_target(storage, plan, table, row, exponentials, mass, mass_moves, beta, chosen, below, guessed, slope):
    """Put a number in place of the target's e that gives the gradient there when the results are computed (a number put among
    streamed ones costs 3 times all); whether there is one.

    Of plain y - t it is the sum of the others: the gradient is -d / S.
    """
    size = itemsize(storage)

    def of_all():
        q = to_float64(load_one(storage, mass + mass_moves * size * chosen))
        scale = load_double(table + SCALE + 8 * row) + load_double(table + SCALE_LOW + 8 * row)
        value = (load_double(table + TARGET_GRADIENT + 8 * row) + beta * q) / (scale * below)
        magnitude = greatest(value, -value)
        # (the number itself must be the same in units of a guess)
        return value, (value == 0.0) | ((magnitude < 1e30) & (magnitude > 1e-18))

    def of_others():
        rest = load_double(table + REST + 8 * row) + load_double(table + REST_LOW + 8 * row)
        nothing = (load_double(table + APART + 8 * row) == -np.inf) & (rest == rest)
        # (of a class without weight the gradient is not -0)
        rest = select(nothing | (load_double(table + SCALE + 8 * row) == 0.0), 0.0, rest)
        return (0.0 - rest) / below, True

    value, serves = choose(spread_wanted(plan) | (plan.z_loss != 0.0), of_others, of_all)
    value = slope * value / guessed
    when(serves, functools.partial(store_one, storage, exponentials + size * chosen, value))
    return serves


@formula
def slope_at_target(plan, table, row, other):
    """The derivative of the change of variable at a row's target, where exponentials are multiplied by theirs; else the `other`."""
    return choose(slopes_on_the_way(plan), lambda: other, lambda: load_double(table + SLOPE + 8 * row))
