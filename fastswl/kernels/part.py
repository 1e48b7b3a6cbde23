"""Parts of rows: at most `PART_VECTORS` vectors of neighbouring classes, lanes along the classes.

Each part has its own power of two as a reference, so that it is read from main memory once; parts merge by exact powers of two,
in order. A part's record says what is known of it; a row's numbers stand in the table of `rows.py`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import (
    FAR_32,
    FAR_64,
    FAR_AHEAD,
    Ahead,
    Logits,
    block_maximum,
    by_low_parts,
    cap_and_scale,
    exp_and_sum,
    larger,
    nan_where_any,
    no_low_parts,
    once_ahead,
    smaller,
    subtract,
)
from fastswl.kernels.lines import (
    copy_numbers,
    load_part,
    pairs_of,
    part_maximum,
    put_edge,
    vectors_in,
    vectors_of,
    write_bite,
)
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOSS,
    changed,
    leaves_one_out,
    slopes_on_the_way,
    spread_evenly,
    spread_wanted,
)
from fastswl.kernels.record import (
    PART_APART,
    PART_APART_EXP,
    PART_APART_LOW,
    PART_CLASS,
    PART_POWER,
    PART_REFERENCE_LOW,
    PART_REST,
    PART_REST_LOW,
    PART_TOP,
    PART_UNITS,
    RECORD_STEP,
    SO_FAR,
    SO_FAR_BOUNDS,
    SO_FAR_LOW,
    SO_FAR_WEIGHED,
    record_step,
)
from fastswl.kernels.results import target_in_part
from fastswl.kernels.rows import (
    GUESS,
    ONES,
    REPEATED,
    SHIFT,
    SLOPE,
    SPREAD_AT_TARGET,
)
from fastswl.kernels.spread import fill_masked, spread_of_part, store_even_spread, weigh, weigh_edge
from fastswl.kernels.stream import INTERLEAVED
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
    load_one,
    load_wide,
    log2_of,
    power_of_two,
    put_in_place,
    result_of,
    same_storage,
    select,
    splat_like,
    stays_a_function,
    store,
    store_double,
    store_one,
    store_wide,
    to_float64,
    when,
    wide_zero,
    word,
)
from fastswl.vectormath import exp_above, exp_of_sum_above, exp_reference, max_lanes, nearest_power, total_of_lanes

#: a guess of N is above the last one by so much, and right up to so far above the row's own; wrong ones in a block after which there
#: is no other
GUESS_MARGIN, GUESS_ABOVE, WRONG_GUESSES = 16.0, 64.0, 2.0
#: how far below all logits of a part that is guessed what stands for the class left out is, at least: 2**-28 of the least exponential
LEFT_OUT_BELOW = 20.0


@routine
def row_part(
    storage,
    target_storage,
    n_parts,
    plan,
    table,
    row,
    part,
    areas,
    area_bytes,
    shared,
    so_far,
    target,
    fills,
    guesses,
    place,
    outer,
    inner,
    first_class,
    n,
    done,
    written,
):
    """One part of a row, whose logits lie at `place`: exponentials (log_softmax: logits) to `target`, what is known of it into `part`.
    Meanwhile the results `done` of an earlier part, of which `written` numbers are written, go out: they may be made of what lies at
    `target`, whose pairs of vectors are taken once they are written. `fills` says that there is room for whole pairs. `guesses` is
    what `powers_are_guessed` says, `so_far` memory of the thread.

    Areas: logits, then exponentials if that is `target`; mass (log_softmax: exponentials); low parts of changed logits; slopes of the
    change. With `slopes_on_the_way` changed logits, their low parts and slopes lie in the `shared` areas, the same for all rows, which
    so stay in the first-level cache.
    """
    # (rows of one part, in cache: 5 to 10 % off; of several parts level, and a tenth on top of a first call)
    if n_parts is None:
        put_in_place()
    else:
        stays_a_function()
    step = record_step(n_parts)
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    logits, mass, low_area, slopes = areas, areas + area_bytes, areas + 2 * area_bytes, areas + 3 * area_bytes
    n_vectors, n_filled = vectors_of(storage, n), 2 * pairs_of(storage, n)
    n_done = vectors_in(storage, done.n - written)
    first_time = load_double(table + REPEATED + 8 * row) == 0.0
    if guesses and n >= lanes(storage) and first_time and load_double(table + GUESS + 8) < WRONG_GUESSES:
        if guess_part(
            storage, target_storage, n_parts, plan, table, row, part, so_far, logits, target, place, first_class, n, done, written,
        ):  # fmt: skip
            return
        n_done = word(0)
    readable = (
        vectors_can_be_read(storage, plan) and n >= lanes(storage) and load_double(table + SHIFT + 8 * row) == 0.0
    )
    # what follows in memory: the next part, or the next row of a contiguous array (this part's maximum has been looked for)
    ahead = place + plan.logits_class * n
    # where the logits are read, and from which pair of vectors on they are in scratch memory
    source, copied = logits, word(0)
    in_place = readable and same_storage(storage, arithmetic) and plan.operation != LOG_SOFTMAX
    low_parts, folded = no_low_parts(target_storage), no_low_parts(target_storage)
    if in_place:
        source, copied = place, n // (2 * lanes(storage))
        tops = part_maximum(arithmetic, place, logits, n)
    elif target_storage is not None and changed(plan):
        if slopes_on_the_way(plan):
            logits, low_area, slopes = shared + area_bytes, shared + 2 * area_bytes, shared + 3 * area_bytes
            source = logits
            if plan.out != 0:
                folded = slopes
        low_parts = low_area
        tops = change_part(storage, plan, place, logits, low_parts, slopes, n)
    else:
        tops = load_part(storage, logits, place, plan.logits_class, n)
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
    if plan.kind != INDEX_TARGETS and leaves_largest_out(plan, table, row):
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
            load_double(table + SHIFT + 8 * row) == 0.0,
        )

    if target_storage is not None and folded != 0 and chosen >= 0:
        store_double(table + SLOPE + 8 * row, np.float64(load_one(arithmetic, slopes + size * chosen)))
    patched, apart, apart_exp = leave_out_of_part(
        arithmetic, plan, table, row, part, step, source, copied, logits, low_parts, mass, chosen, -np.inf, m, magic, lowest,
    )  # fmt: skip

    if not in_place and n_filled > n_vectors:
        store(arithmetic, logits + VECTOR_BYTES * n_vectors, narrow_splat(arithmetic, logits, -np.inf))
    high, low = wide_zero(arithmetic), wide_zero(arithmetic)
    exponentials = target
    if plan.operation == LOG_SOFTMAX:
        exponentials = mass
    if plan.operation == LOG_SOFTMAX or (fills and not in_place and target != logits):
        # all are in scratch memory, but not where the exponentials go
        source, copied, patched = logits, n_vectors, -1
    # stores that wait for main memory and arithmetic take turns, in bites that the store queue holds: neither waits for the other
    bite = INTERLEAVED if n_done > 0 else n_filled
    first = word(0)
    # (a range would divide)
    while first < n_vectors:
        write_bite(result_of(storage), done, written, first, least(bite, n_done - first))
        high, low = exp_of_bite(
            arithmetic,
            source,
            low_parts,
            folded,
            logits,
            exponentials,
            first,
            least(first + bite, n_filled),
            copied,
            patched,
            magic,
            lowest,
            ahead,
            high,
            low,
        )
        first += bite
    write_bite(result_of(storage), done, written, n_vectors, n_done - n_vectors)
    total, total_low = total_of_lanes(arithmetic, high, low)
    store_sums(part, step, total, total_low)
    if target_storage is None and target != logits:
        copied = word(0) if plan.operation == LOG_SOFTMAX else least(copied * (2 * lanes(storage)), n)
        copy_numbers(arithmetic, logits, target, copied, n)
    put_back_in_part(arithmetic, target, chosen, select(plan.operation == LOG_SOFTMAX, apart, apart_exp))


@routine
def change_part(storage, plan, place, logits, low_parts, slopes, n):
    """`cap_and_scale` of a part, filled up with -inf; the largest of each lane."""
    arithmetic = arithmetic_of(storage)
    end = logits + itemsize(arithmetic) * n
    if plan.logits_class == itemsize(storage) and n >= lanes(storage):
        tops = cap_and_scale(storage, place, logits, low_parts, slopes, n, plan.softcap, plan.logit_scale)
    else:
        load_part(storage, logits, place, plan.logits_class, n)
        # (-inf would take the way of logits that are far from 0)
        store(arithmetic, end, narrow_splat(arithmetic, logits, load_one(arithmetic, end - itemsize(arithmetic))))
        whole = lanes(storage) * vectors_of(storage, n)
        tops = cap_and_scale(arithmetic, logits, logits, low_parts, slopes, whole, plan.softcap, plan.logit_scale)
    store(arithmetic, end, narrow_splat(arithmetic, logits, -np.inf))
    return tops


@formula
def leaves_largest_out(plan, table, row):
    """Whether the largest logit of a part is left out of its sum. Of a log_softmax only when the sums are done again: see
    `largest_is_most`."""
    return leaves_one_out(plan) & ((plan.operation != LOG_SOFTMAX) | (load_double(table + REPEATED + 8 * row) != 0.0))


@formula
def powers_are_guessed(storage, plan):
    """Whether the powers of two of parts are guessed, the first time and as long as guesses are right: of vectors that can be read
    where they lie, if only the exponentials hang on the largest logit."""
    # (what an even smoothing adds is a difference of sums without the largest logit, for which float64 arithmetic has no digits)
    serves = by_type(storage, spread_evenly(plan), False) | ~spread_wanted(plan)
    loss = (plan.operation == LOSS) & (plan.kind == INDEX_TARGETS) & serves
    # (of a log_softmax the largest is left out the second time only)
    others = (plan.operation == LOG_SOFTMAX) | ((plan.operation != LOSS) & ~leaves_one_out(plan))
    return vectors_can_be_read(storage, plan) & (loss | others)


@routine
def guess_part(
    given, target_storage, n_parts, plan, table, row, part, so_far, put, exponentials, logits, first_class, n, done, written,
):  # fmt: skip
    """`row_part` in one pass over the logits, in units of a power of two that is guessed; whether the guess was right. If not,
    all has to be done again, but for the results `done`.

    The bits are those of the two passes: another power of two changes no digit of an exponential or of a sum, as long as
    no number falls out of the normal range, which the largest and the smallest logit tell. The guess comes from the row before.
    (Beyond the caches, 32,768 classes: loss 0.094 to 0.083 ns, loss and gradient 0.169 to 0.162.)
    """
    put_in_place()
    step = record_step(n_parts)
    storage = arithmetic_of(given)
    results = result_of(given)
    n_vectors = vectors_of(storage, n)
    whole, n_filled = n // (2 * lanes(storage)), 2 * pairs_of(storage, n)
    units = load_double(table + GUESS)
    magic, lowest = exp_reference(storage, narrow_splat(storage, put, units))
    past, tail = put_edge(given, logits, put, n)
    weights, weighed = weigh_edge(storage, target_storage, plan, put, first_class, whole, n)
    chosen = target_in_part(plan, table, row, first_class, n)
    patched, _, apart_exp = leave_out_of_part(
        given, plan, table, row, part, step, logits, whole, put, None, 0, chosen, lane(lowest, 0), tail, magic, lowest,
    )  # fmt: skip
    zero = wide_zero(storage)
    keep_sums(storage, so_far, PartSums(zero, zero, *bounds_of_edge(given, logits, n, past, tail), weighed))
    n_done = vectors_in(storage, done.n - written)
    bite = INTERLEAVED if n_done > 0 else n_filled
    first = word(0)
    while first < n_vectors:
        write_bite(results, done, written, first, least(bite, n_done - first))
        end = least(first + bite, n_filled)
        exp_of_guessed_bite(
            given, plan, so_far, logits, put, exponentials, weights, first, end, whole, patched, magic, lowest
        )
        first = end
    write_bite(results, done, written, n_vectors, n_done - n_vectors)
    if put != exponentials:
        copy_numbers(storage, put, exponentials, whole * (2 * lanes(storage)), n)
    right = settle_guess(storage, table, part, step, so_far, exponentials, units, lowest, chosen, apart_exp)
    if target_storage is not None and right and spread_evenly(plan):
        top, weighed = load_double(part + step * PART_TOP), load_wide(storage, so_far + SO_FAR_WEIGHED)
        store_even_spread(storage, plan, table + ONES, part, step, first_class, n, top, weighed)
    return right


class PartSums(NamedTuple):
    """What a guessed part has come to so far, in each lane: the sum of e in two parts, the bounds of the logits, and the sum of logits
    times class weights (None in kernels for plain calls)."""

    high: Any
    low: Any
    top: Any
    bottom: Any
    weighed: Any


@formula
def keep_sums(storage, so_far, sums):
    """Between bites they lie in memory of the thread: as arguments and results of a function they were stored and loaded three
    times."""
    store_wide(storage, so_far + SO_FAR, sums.high)
    # (of float32 the sums are float64, which have no rest)
    by_type(storage, lambda: None, lambda: store_wide(storage, so_far + SO_FAR_LOW, sums.low))()
    store(storage, so_far + SO_FAR_BOUNDS, sums.top)
    store(storage, so_far + SO_FAR_BOUNDS + VECTOR_BYTES, sums.bottom)
    if sums.weighed is not None:
        store_wide(storage, so_far + SO_FAR_WEIGHED, sums.weighed)


@formula
def kept_sums(storage, so_far, weights):
    """What `keep_sums` has stored."""
    return PartSums(
        load_wide(storage, so_far + SO_FAR),
        by_type(storage, lambda: wide_zero(storage), lambda: load_wide(storage, so_far + SO_FAR_LOW))(),
        load(storage, so_far + SO_FAR_BOUNDS),
        load(storage, so_far + SO_FAR_BOUNDS + VECTOR_BYTES),
        None if weights is None else load_wide(storage, so_far + SO_FAR_WEIGHED),
    )


@formula
def bounds_of_edge(storage, source, n, past, tail):
    """The bounds of what `put_edge` has put elsewhere."""
    none = splat_like(tail, -np.inf)

    def both():
        first = load(storage, source + lanes(storage) * itemsize(storage) * (vectors_in(storage, n) - 1))
        return larger(first, tail), smaller(first, tail)

    way = select(past == 0, 0, select(past > lanes(storage), 2, 1))
    return choose(way, lambda: (none, -none), lambda: (larger(tail, none), smaller(tail, -none)), both)


@formula
def settle_guess(storage, table, part, step, so_far, exponentials, units, lowest, chosen, apart_exp):
    """What is known of a part whose power of two was guessed, if the guess was right; the next guess."""
    sums = kept_sums(storage, so_far, None)
    top = lane(max_lanes(storage, sums.top), 0)
    bottom = -lane(max_lanes(storage, -sums.bottom), 0)
    limit = by_type(storage, FAR_32, FAR_64)
    inside = (top < limit) & (top > -limit)
    power = nearest_power(storage, splat_like(lowest, select(inside, top, 0.0)))
    power = to_float64(lane(power, 0))
    total, total_low = total_of_lanes(storage, sums.high, sums.low)
    above = units - power
    right = inside & (above >= 0.0) & (above <= GUESS_ABOVE)
    # e of the least x is no subnormal number, and so much larger than what stands for the class left out that this is lost in the sum
    # of the pair of vectors
    right = right & (bottom >= lane(lowest, 0) + LEFT_OUT_BELOW)

    def use():
        factor = power_of_two(above)
        store_double(part + step * PART_TOP, top)
        store_double(part + step * PART_POWER, power)
        store_double(part + step * PART_UNITS, units)
        store_double(part + step * PART_REFERENCE_LOW, 0.0)
        store_sums(part, step, total * factor, total_low * factor)
        put_back_in_part(storage, exponentials, chosen, apart_exp)
        # (by a branch: what the next row begins with would have to wait for this one's largest logit)
        stale = (above < GUESS_MARGIN * 0.5) | (above > GUESS_MARGIN * 1.5)
        when(stale, lambda: store_double(table + GUESS, power + GUESS_MARGIN))
        return True

    def reject():
        store_double(table + GUESS, power + GUESS_MARGIN)
        store_double(table + GUESS + 8, load_double(table + GUESS + 8) + 1.0)
        return False

    return choose(right, reject, use)


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
    store_double(part + step * PART_UNITS, lane(power, 0))
    magic, lowest = exp_reference(storage, power)
    return m, magic, lowest


@formula
def leave_out_of_part(
    given, plan, table, row, part, step, source, copied, logits, low_parts, mass, chosen, nothing, m, magic, lowest
):
    """Take a class out of the sum, `nothing` in its place: the pair of vectors where it is, its logit, its exponential where that is
    wanted."""
    storage = arithmetic_of(given)
    size = itemsize(storage)
    # its e is put back for a softmax and for targets that are not a class; parts of a row are merged with it
    e_wanted = (step == RECORD_STEP) | (plan.kind != INDEX_TARGETS) | (plan.softmax != 0)

    def taken_out():
        pair = chosen >> log2_of(2 * lanes(storage))
        place = logits + size * chosen

        def bring_pair():
            # it still is elsewhere
            for i in range(2):
                x = load(given, source + lanes(given) * itemsize(given) * (2 * pair + i))
                store(storage, logits + VECTOR_BYTES * (2 * pair + i), x)

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
        # (what fills up the last pair is nothing itself)
        store_one(storage, place, select(pair < copied, nothing, -np.inf))

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
def store_sums(part, step, total, total_low):
    """The sum over the lanes."""
    store_double(part + step * PART_REST, total)
    store_double(part + step * PART_REST_LOW, total_low)


@formula
def put_back_in_part(storage, logits, chosen, value):
    """What was left out is put back."""
    when(chosen >= 0, functools.partial(store_one, storage, logits + itemsize(storage) * chosen, value))


@formula
def lines_once(plan, logits):
    """What is read next of a row, or of the one behind it. (Past the second-level cache, which has a row's exponentials to keep: loss
    and gradient, softmax of 131,072 classes, two threads, 0.125 to 0.093 ns, 0.122 to 0.091; of 32,768 0.095 to 0.088, 0.090 to
    0.084.)"""
    return Ahead(logits.place, logits.vector_bytes(), once_ahead(plan), once=True)


@routine
def exp_of_bite(
    storage, source, low_parts, slopes, put, target, first, n, whole, patched, magic, lowest, ahead, high, low
):
    """`exp_and_sum` as a function of its own: in place, its constants were loaded from memory again for every vector. Where `slopes`
    is not 0, all logits are `put`, and the exponentials that are stored are multiplied by them."""
    stays_a_function()
    return with_slopes(
        storage, source, low_parts, slopes, put, target, first, n, whole, patched, magic, lowest, ahead, high, low
    )


@formula
def with_slopes(
    storage, source, low_parts, slopes, put, target, first, n, whole, patched, magic, lowest, ahead, high, low
):
    """`exp_and_sum` of a part that is not guessed."""

    def add_up(logits):
        following = Ahead(ahead, VECTOR_BYTES, FAR_AHEAD)
        return exp_and_sum(storage, logits, target, None, first, n, magic, lowest, following, high, low, None)

    def as_they_are():
        return add_up(Logits(storage, source, low_parts, None, put, whole, patched))

    if slopes is None:
        return as_they_are()
    return choose(slopes != 0, as_they_are, lambda: add_up(Logits(storage, put, low_parts, slopes)))


@routine
def exp_of_guessed_bite(given, plan, so_far, source, put, target, weights, first, n, whole, patched, magic, lowest):
    """The same of logits as they were given, which log_softmax keeps, with their bounds; and where `weights` is not None the sum of
    them times the class weights, if that is asked for."""
    stays_a_function()
    logits = Logits(given, source, None, None, put, whole, patched)
    with_bounds(plan, so_far, logits, target, weights, first, n, magic, lowest)


@formula
def with_bounds(plan, so_far, logits, target, weights, first, n, magic, lowest):
    """`exp_and_sum` of a guessed part, from the sums so far on."""
    storage = arithmetic_of(logits.given)
    sums = kept_sums(storage, so_far, weights)
    weighed = sums.weighed

    def add_up(keeps=None, asked=False, weights=None):
        largest, smallest = Running(sums.top), Running(sums.bottom)
        total = None if weighed is None else Running(weighed)

        def watch(i, x):
            largest.value, smallest.value = larger(x, largest.value), smaller(x, smallest.value)
            if asked:
                total.value = weigh(storage, weights, total.value, i, x)

        following = lines_once(plan, logits)
        high, low = exp_and_sum(
            storage, logits, target, keeps, first, n, magic, lowest, following, sums.high, sums.low, watch
        )
        return high, low, largest.value, smallest.value, None if total is None else total.value

    # (a loop for each: with a choice in the loop exponentials are 3 % slower)
    ways = [add_up, functools.partial(add_up, True)]
    way = select(plan.operation == LOG_SOFTMAX, 1, 0)
    if weighed is not None:
        ways += [functools.partial(add_up, None, True), functools.partial(add_up, None, True, weights)]
        way = select(spread_evenly(plan), select(weights == 0, 2, 3), way)
    keep_sums(storage, so_far, PartSums(*choose(way, *ways)))


@formula
def vectors_can_be_read(storage, plan):
    """Whether the logits of a part of a vector or more, but for what is left out, are vectors where they lie."""
    return (plan.logits_class == itemsize(storage)) & (plan.mask == 0) & ~changed(plan)


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
