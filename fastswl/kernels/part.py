"""Parts of rows: at most `PART_VECTORS` vectors of neighbouring classes, lanes along the classes.

Each part has its own power of two as a reference, so that it is read from main memory once; parts merge by exact powers of two,
in order. A part's record says what is known of it; a row's numbers stand in the table of `rows.py`.
"""

import functools

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import (
    FAR_32,
    FAR_64,
    FAR_AHEAD,
    Ahead,
    block_maximum,
    by_low_parts,
    cap_and_scale,
    exp_and_sum,
    fill_block,
    nan_where_any,
    no_low_parts,
    scale_block,
    shift_logarithms,
    subtract,
)
from fastswl.kernels.lines import (
    Results,
    finish_in_place,
    load_part,
    part_maximum,
    store_part,
    vectors_in,
    vectors_of,
    write_vectors,
)
from fastswl.kernels.merge import two_to
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOSS,
    SOFTMAX,
    capped,
    changed,
    spread_evenly,
    spread_wanted,
)
from fastswl.kernels.record import (
    PART_APART,
    PART_APART_EXP,
    PART_APART_LOW,
    PART_CLASS,
    PART_MASS_AT,
    PART_MASS_MOVES,
    PART_POWER,
    PART_REFERENCE_LOW,
    PART_REST,
    PART_REST_LOW,
    PART_TOP,
    RECORD_STEP,
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
    SHIFT,
    SPREAD_AT_TARGET,
    SPREAD_SCALE,
    TARGET_GRADIENT,
    smoothing_unit,
)
from fastswl.kernels.spread import fill_masked, spread_of_part
from fastswl.simd import (
    VECTOR_BYTES,
    Running,
    any_lane,
    arithmetic_of,
    by_type,
    choose,
    first_lane,
    formula,
    greatest,
    itemsize,
    lane,
    lanes,
    least,
    load,
    load_double,
    load_int64,
    load_one,
    log2_of,
    narrow,
    put_in_place,
    result_of,
    same_storage,
    select,
    splat_like,
    stays_a_function,
    store,
    store_double,
    store_one,
    to_float64,
    to_int64,
    when,
    wide_zero,
    word,
)
from fastswl.vectormath import exp_above, exp_of_sum_above, exp_reference, max_lanes, nearest_power, total_of_lanes

#: vectors of results that are written between exponentials: a store queue of today holds 48 to 72
INTERLEAVED = 32


@routine
def row_part(
    storage,
    target_storage,
    plan,
    table,
    row,
    part,
    step,
    areas,
    area_bytes,
    outer,
    inner,
    first_class,
    n,
    done,
    written,
):
    """One part of a row: exponentials into the first area, what is known of it into `part`. Meanwhile the results `done` of
    an earlier part, of which `written` numbers are written, go out.

    Areas: logits then exponentials; mass (log_softmax: exponentials); low parts of changed logits; slopes of the change.
    """
    put_in_place()
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    logits, mass, low_area, slopes = areas, areas + area_bytes, areas + 2 * area_bytes, areas + 3 * area_bytes
    n_vectors = vectors_of(storage, n)
    place = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner + first_class * plan.logits_class
    # where the logits are read, and from which pair of vectors on they are in scratch memory
    source, copied = logits, word(0)
    if stays_in_place(storage, plan, n) and load_double(table + SHIFT + 8 * row) == 0.0:
        source, copied = place, n // (2 * lanes(storage))
        tops = part_maximum(arithmetic, place, logits, n)
    else:
        tops = load_part(storage, logits, place, plan.logits_class, n)
    low_parts = no_low_parts(target_storage)
    if target_storage is not None and changed(plan):
        low_parts = low_area
        tops = cap_and_scale(arithmetic, logits, low_parts, slopes, n_vectors, plan.softcap, plan.logit_scale)
        # what fills up the last vector stays out
        for c in range(n, n_vectors * lanes(storage)):
            store_one(arithmetic, logits + size * c, -np.inf)
    if target_storage is not None and plan.mask != 0:
        fill_masked(arithmetic, plan, logits, -np.inf, size, outer, inner, first_class, n)
    shift = load_double(table + SHIFT + 8 * row)
    if shift != 0.0:
        subtract(arithmetic, logits, low_parts, n_vectors, narrow_splat(arithmetic, logits, shift))
    if plan.mask != 0 or shift != 0.0:
        tops = block_maximum(arithmetic, logits, n_vectors)
    top = top_of_part(arithmetic, tops, source, copied, logits, n_vectors)
    m, magic, lowest = reference_of_part(arithmetic, part, step, top, logits)

    chosen = target_in_part(plan, table, row, first_class, n)
    if plan.kind != INDEX_TARGETS and plan.operation != SOFTMAX:
        chosen = first_of_part(arithmetic, source, logits, copied, n, top)
    m_low = 0.0
    if target_storage is not None and low_parts != 0 and plan.kind != INDEX_TARGETS and chosen >= 0:
        m_low = np.float64(load_one(arithmetic, low_parts + size * chosen))
    store_double(part + step * PART_REFERENCE_LOW, m_low)
    if target_storage is not None and spread_wanted(plan):
        spread_of_part(
            arithmetic,
            target_storage,
            plan,
            table + ONES,
            part,
            step,
            source,
            copied,
            logits,
            low_parts,
            mass,
            m,
            m_low,
            outer,
            inner,
            first_class,
            n,
        )

    patched, apart, apart_exp = leave_out_of_part(
        arithmetic, plan, table, row, part, step, source, copied, logits, low_parts, mass, chosen, m, magic, lowest
    )

    exponentials = logits
    # what follows in memory: the next part, or the next row of a contiguous array
    ahead = Ahead(place + plan.logits_class * n, word(VECTOR_BYTES), word(FAR_AHEAD))
    if plan.operation == LOG_SOFTMAX:
        exponentials = mass
        # all are in scratch memory, but not where the exponentials go
        source, copied, patched = logits, n_vectors, -1
    high, low = wide_zero(arithmetic), wide_zero(arithmetic)
    # stores that wait for main memory and arithmetic take turns, in bites that the store queue holds: neither waits for the other
    n_done = vectors_in(storage, done.n - written)
    bite = INTERLEAVED if n_done > 0 else n_vectors
    for first in range(0, n_vectors, bite):
        n_now = least(bite, n_done - first)
        if n_now > 0:
            write_vectors(result_of(storage), done, written + first * lanes(storage), n_now)
        high, low = exp_of_bite(
            arithmetic,
            source,
            low_parts,
            exponentials,
            first,
            least(first + bite, n_vectors),
            copied,
            patched,
            magic,
            lowest,
            ahead,
            high,
            low,
        )
    if n_done > n_vectors:
        write_vectors(result_of(storage), done, written + n_vectors * lanes(storage), n_done - n_vectors)
    finish_sums(arithmetic, plan, part, step, logits, high, low, chosen, apart, apart_exp)


@formula
def top_of_part(storage, tops, source, copied, logits, n_vectors):
    """The largest logit, NaN where there is one beside +inf."""
    top = to_float64(lane(max_lanes(storage, tops), 0))

    def infinite():
        poisoned = nan_where_any(storage, source, 2 * copied, splat_like(tops, 0.0))
        edge = logits + 2 * VECTOR_BYTES * copied
        poisoned = nan_where_any(storage, edge, n_vectors - 2 * copied, poisoned)
        return select(any_lane(poisoned != poisoned), np.nan, np.inf)

    return choose(top == np.inf, lambda: top, infinite)


@formula
def reference_of_part(storage, part, step, top, somewhere):
    """The reference m of a part, and what exponentials in units of its power of two need (`exp_reference`)."""
    # an infinite top, or one that will have the row done again, gives no reference
    limit = by_type(storage, FAR_32, FAR_64)
    m = splat_like(load(storage, somewhere), select(top < limit, greatest(top, -limit), limit))
    power = nearest_power(storage, m)
    store_double(part + step * PART_TOP, top)
    store_double(part + step * PART_POWER, lane(power, 0))
    magic, lowest = exp_reference(storage, power)
    return m, magic, lowest


@formula
def leave_out_of_part(
    storage, plan, table, row, part, step, source, copied, logits, low_parts, mass, chosen, m, magic, lowest
):
    """Take a class out of the sum: the pair of vectors where it is, its logit, its exponential where that is wanted."""
    size = itemsize(storage)
    # its e is put back for a softmax and for targets that are not a class; parts of a row are merged with it
    e_wanted = (step == RECORD_STEP) | (plan.kind != INDEX_TARGETS) | (plan.softmax != 0)

    def taken_out():
        pair = chosen >> log2_of(2 * lanes(storage))
        place = logits + size * chosen

        def bring_pair():
            # it still is elsewhere
            offset = 2 * VECTOR_BYTES * pair
            store(storage, logits + offset, load(storage, source + offset))
            store(storage, logits + offset + VECTOR_BYTES, load(storage, source + offset + VECTOR_BYTES))

        when(pair < copied, bring_pair)
        logit = load_one(storage, place)
        x = splat_like(m, logit)

        def in_two():
            low = load_one(storage, low_parts + size * chosen)
            whole = to_float64(logit) + low
            e = exp_of_sum_above(storage, x, splat_like(m, low), magic, lowest)
            return whole, (logit - whole) + low, to_float64(lane(e, 0))

        def whole():
            e = choose(e_wanted, lambda: 0.0, lambda: to_float64(lane(exp_above(storage, x, magic, lowest), 0)))
            return to_float64(logit), 0.0, e

        found = by_low_parts(low_parts, whole, in_two)
        store_one(storage, place, -np.inf)

        def keep_mass():
            own = to_float64(load_one(storage, mass + size * chosen))
            store_double(table + SPREAD_AT_TARGET + 8 * row, own)

        uneven = (plan.kind == INDEX_TARGETS) & spread_wanted(plan) & ~spread_evenly(plan)
        if low_parts is not None:
            when(uneven, keep_mass)
        return (pair, *found)

    pair, apart, apart_low, apart_exp = choose(chosen >= 0, lambda: (-1, -np.inf, 0.0, 0.0), taken_out)
    store_double(part + step * PART_CLASS, chosen)
    store_double(part + step * PART_APART, apart)
    store_double(part + step * PART_APART_LOW, select(apart == -np.inf, 0.0, apart_low))
    store_double(part + step * PART_APART_EXP, apart_exp)
    return pair, apart, apart_exp


@formula
def finish_sums(storage, plan, part, step, logits, high, low, chosen, apart, apart_exp):
    """The sum over the lanes; what was left out is put back."""
    total, total_low = total_of_lanes(storage, high, low)
    store_double(part + step * PART_REST, total)
    store_double(part + step * PART_REST_LOW, total_low)
    restored = select(plan.operation == LOG_SOFTMAX, apart, apart_exp)
    put_back = functools.partial(store_one, storage, logits + itemsize(storage) * chosen, restored)
    when(chosen >= 0, put_back)


@routine
def exp_of_bite(storage, source, low_parts, target, first, n, whole, patched, magic, lowest, ahead, high, low):
    """`exp_and_sum` as a function of its own: in place, its constants were loaded from memory again for every vector."""
    stays_a_function()
    return exp_and_sum(storage, source, low_parts, target, first, n, whole, patched, magic, lowest, ahead, high, low)


@formula
def stays_in_place(storage, plan, n):
    """Whether the logits of a part can be read twice where they lie, and need not be brought into scratch memory."""
    return (
        same_storage(storage, arithmetic_of(storage))
        & (plan.logits_class == itemsize(storage))
        & (n >= lanes(storage))
        & (plan.mask == 0)
        & (plan.operation != LOG_SOFTMAX)
        & ~changed(plan)
    )


@formula
def narrow_splat(storage, somewhere, value):
    return splat_like(load(storage, somewhere), value)


@routine
def first_of_part(storage, source, logits, whole, n, value):
    """The first class whose logit is `value`, -1 where there is none; logits lie as in `exp_and_sum`."""
    for i in range(vectors_of(storage, n)):
        place = select(i >= 2 * whole, logits, source)
        here = load(storage, place + VECTOR_BYTES * i) == value
        if any_lane(here):
            chosen = lanes(storage) * i + first_lane(here)
            return chosen if chosen < n else -1
    return -1


@formula
def results_are_general(target_storage, plan):
    """Whether alpha e is not all of the gradient: mass on every class and a change of variable make it (alpha e - beta q) dz/dx."""
    if target_storage is None:
        return None
    return (plan.operation == LOSS) & (spread_wanted(plan) | capped(plan))


@formula
def no_results(storage, target_storage):
    """Nothing on its way out."""
    zero = narrow(storage, wide_zero(storage))
    general = None if target_storage is None else False
    return Results(0, 0, 0, False, zero, zero, general, zero, 0, 0, 0, 0, 0, 0, 0, 0)


@formula
def finish_part(
    storage, target_storage, plan, table, row, part, step, areas, area_bytes, outer, inner, first_class, n, line, begin, end,
):  # fmt: skip
    """The results of one part of a row from its exponentials, in their place: what is left to do is to write them. `begin` and
    `end` are those of the part where they are 0; see `Results`."""
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    size = itemsize(arithmetic)
    logits = areas
    n_vectors = vectors_of(storage, n)
    like = load(arithmetic, logits)

    def number(what, factor=1.0):
        return splat_like(like, load_double(table + what + 8 * row) * factor)

    factor, factor_low = Running(splat_like(like, 1.0)), Running(splat_like(like, 0.0))
    below, scaled = Running(1.0), Running(False)

    def of_ignored():
        fill_block(arithmetic, logits, n_vectors, splat_like(like, 0.0))

        def softmax_of_ignored():
            store_part(results, logits, softmax_place(plan, outer, inner, first_class), plan.softmax_class, n)

        when(plan.softmax != 0, softmax_of_ignored)

    def of_log_softmax():
        shift_logarithms(arithmetic, logits, n_vectors, number(REFERENCE), number(LOG_SUM))

    def of_exponentials():
        below.value = to_reference_of_row(arithmetic, table, row, part, step, logits, n_vectors)
        inverse, inverse_low = number(INVERSE, below.value), number(INVERSE_LOW, below.value)

        def of_softmax():
            factor.value, factor_low.value = inverse, inverse_low

        def softmax_beside():
            probabilities = areas + 4 * area_bytes
            scale_block(arithmetic, logits, probabilities, n_vectors, inverse, inverse_low)
            store_part(results, probabilities, softmax_place(plan, outer, inner, first_class), plan.softmax_class, n)

        def of_loss():
            when(plan.softmax != 0, softmax_beside)
            factor.value, factor_low.value = number(SCALE, below.value), number(SCALE_LOW, below.value)

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
        slopes = select(capped(plan), areas + 3 * area_bytes, table + ONES)
        slopes_move = select(capped(plan), 1, 0)
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner + first_class * plan.out_class
    # what this thread reads next: the same part of the row two tiles on (the next tile is being read while these are written)
    ahead = plan.logits + outer * plan.logits_outer + (inner + 2 * plan.tile_rows) * plan.logits_inner
    ahead = ahead + first_class * plan.logits_class
    general = results_are_general(target_storage, plan)
    done = Results(
        logits, out, n, scaled.value, factor.value, factor_low.value, general, splat_like(like, beta), mass, mass_moves,
        slopes, slopes_move, line, select(begin == 0, out, begin), select(begin == 0, out + itemsize(results) * n, end), ahead,
    )  # fmt: skip

    def gradient():
        chosen = target_in_part(plan, table, row, first_class, n)
        place = functools.partial(
            place_target, arithmetic, plan, table, row, logits, mass, mass_moves, beta, chosen, below.value
        )
        placed = choose(chosen >= 0, lambda: True, place)

        def in_place():
            finish_in_place(arithmetic, done)

            def at_target():
                slope = load_one(arithmetic, slopes + slopes_move * size * chosen)
                value = load_double(table + TARGET_GRADIENT + 8 * row) * slope
                store_one(arithmetic, logits + size * chosen, value)

            when((chosen >= 0) & ~placed, at_target)
            if target_storage is not None:
                zero = functools.partial(fill_masked, arithmetic, plan, logits, 0.0, size, outer, inner, first_class, n)
                when(plan.mask != 0, zero)
            scaled.value = False

        masked = False if target_storage is None else plan.mask != 0
        when(~placed | masked, in_place)

    when((plan.operation == LOSS) & scaled.value, gradient)

    def in_steps():
        when(scaled.value, lambda: finish_in_place(arithmetic, done))
        store_part(results, logits, out, plan.out_class, n)
        return no_results(arithmetic, target_storage)

    def neighbours():
        return done._replace(scaled=scaled.value, general=None if general is None else general & scaled.value)

    return choose(plan.out_class != itemsize(results), neighbours, in_steps)


@formula
def softmax_place(plan, outer, inner, first_class):
    return plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class


@formula
def to_reference_of_row(storage, table, row, part, step, exponentials, n_vectors):
    """By which power of two the exponentials of a part are multiplied to be in units of the row's reference; what a factor
    of the results has no room for is done here."""
    below = load_double(part + step * PART_POWER) - load_double(table + POWER + 8 * row)

    def far():
        like = load(storage, exponentials)
        zero = splat_like(like, 0.0)
        half = to_float64(to_int64(below * 0.5))
        for power in (half, below - half):
            scale_block(storage, exponentials, exponentials, n_vectors, splat_like(like, two_to(power)), zero)
        return 1.0

    # (the row's largest is in another part, 2**-below times this one's)
    way = select(below == 0.0, 0, select(below >= -40.0, 1, 2))
    return choose(way, lambda: 1.0, lambda: two_to(below), far)


@formula
def target_in_part(plan, table, row, first_class, n):
    """The place of the row's target in a part, negative where it is elsewhere or not a class."""
    chosen = to_int64(load_double(table + CLASS + 8 * row)) - first_class
    return select((plan.kind == INDEX_TARGETS) & (chosen < n), chosen, -1)


@formula
def place_target(storage, plan, table, row, exponentials, mass, mass_moves, beta, chosen, below):
    """Put a number in place of the target's e that gives the gradient there when the results are computed (a number put among
    streamed ones costs 3 times all); whether there is one.

    Of plain y - t it is the sum of the others: the gradient is -d / S.
    """
    size = itemsize(storage)

    def of_all():
        q = to_float64(load_one(storage, mass + mass_moves * size * chosen))
        scale = load_double(table + SCALE + 8 * row) + load_double(table + SCALE_LOW + 8 * row)
        value = (load_double(table + TARGET_GRADIENT + 8 * row) + beta * q) / (scale * below)
        return value, (value < 1e30) & (value > -1e30)

    def of_others():
        rest = load_double(table + REST + 8 * row) + load_double(table + REST_LOW + 8 * row)
        rest = select((load_double(table + APART + 8 * row) == -np.inf) & (rest == rest), 0.0, rest)
        return -rest / below, True

    value, serves = choose(spread_wanted(plan) | (plan.z_loss != 0.0), of_others, of_all)
    when(serves, functools.partial(store_one, storage, exponentials + size * chosen, value))
    return serves
