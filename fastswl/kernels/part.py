"""Parts of rows: at most `PART_VECTORS` vectors of neighbouring classes, lanes along the classes.

Each part has its own power of two as a reference, so that it is read from main memory once; parts merge by exact powers of two,
in order. A part's record says what is known of it; a row's numbers stand in the table of `rows.py`.
"""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import (
    FAR_32,
    FAR_64,
    FAR_AHEAD,
    Ahead,
    block_maximum,
    cap_and_scale,
    exp_and_sum,
    fill_block,
    nan_where_any,
    scale_block,
    shift_logarithms,
    subtract,
)
from fastswl.kernels.lines import (
    Results,
    as_it_is,
    finish_in_place,
    load_part,
    part_maximum,
    store_part,
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
    any_lane,
    arithmetic_of,
    by_type,
    first_lane,
    itemsize,
    lane,
    lanes,
    load,
    load_double,
    load_int64,
    load_one,
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
    wide_zero,
    word,
)
from fastswl.vectormath import exp_of_sum_above, exp_reference, max_lanes, nearest_power, total_of_lanes

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
    low_parts = 0
    if changed(plan):
        low_parts = low_area
        tops = cap_and_scale(arithmetic, logits, low_parts, slopes, n_vectors, plan.softcap, plan.logit_scale)
        # what fills up the last vector stays out
        for c in range(n, n_vectors * lanes(storage)):
            store_one(arithmetic, logits + size * c, -np.inf)
    if plan.mask != 0:
        fill_masked(arithmetic, plan, logits, -np.inf, size, outer, inner, first_class, n)
    shift = load_double(table + SHIFT + 8 * row)
    if shift != 0.0:
        subtract(arithmetic, logits, low_parts, n_vectors, narrow_splat(arithmetic, logits, shift))
    if plan.mask != 0 or shift != 0.0:
        tops = block_maximum(arithmetic, logits, n_vectors)
    top = lane(max_lanes(arithmetic, tops), 0)
    if top == np.inf:
        poisoned = nan_where_any(arithmetic, source, 2 * copied, splat_like(tops, 0.0))
        poisoned = nan_where_any(arithmetic, logits + 2 * VECTOR_BYTES * copied, n_vectors - 2 * copied, poisoned)
        if any_lane(poisoned != poisoned):
            top = np.nan
    # an infinite top, or one that will have the row done again, gives no reference
    limit = by_type(arithmetic, FAR_32, FAR_64)
    reference = limit
    if top < limit:
        reference = max(top, -limit)
    m = splat_like(load(arithmetic, logits), reference)
    power = nearest_power(arithmetic, m)
    store_double(part + step * PART_TOP, top)
    store_double(part + step * PART_POWER, lane(power, 0))
    magic, lowest = exp_reference(arithmetic, power)

    chosen = -1
    if plan.kind == INDEX_TARGETS:
        chosen = int(load_double(table + CLASS + 8 * row)) - first_class
        if chosen >= n:
            chosen = -1
    elif plan.operation != SOFTMAX:
        chosen = first_of_part(arithmetic, source, logits, copied, n, top)
    m_low = 0.0
    if low_parts != 0 and plan.kind != INDEX_TARGETS and chosen >= 0:
        m_low = np.float64(load_one(arithmetic, low_parts + size * chosen))
    store_double(part + step * PART_REFERENCE_LOW, m_low)
    if spread_wanted(plan):
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

    apart, apart_low, apart_exp = -np.inf, 0.0, 0.0
    # its e is put back for a softmax and for targets that are not a class; parts of a row are merged with it
    e_wanted = step == RECORD_STEP or plan.kind != INDEX_TARGETS or plan.softmax != 0
    patched = -1
    if chosen >= 0:
        # its pair of vectors, where it still is elsewhere
        patched = chosen // (2 * lanes(storage))
        if patched < copied:
            offset = 2 * VECTOR_BYTES * patched
            store(arithmetic, logits + offset, load(arithmetic, source + offset))
            store(arithmetic, logits + offset + VECTOR_BYTES, load(arithmetic, source + offset + VECTOR_BYTES))
        apart = np.float64(load_one(arithmetic, logits + size * chosen))
        vector = splat_like(m, load_one(arithmetic, logits + size * chosen))
        zero = splat_like(m, 0.0)
        low = zero
        if low_parts != 0:
            whole = apart + load_one(arithmetic, low_parts + size * chosen)
            apart_low = (apart - whole) + load_one(arithmetic, low_parts + size * chosen)
            apart = whole
            low = splat_like(m, load_one(arithmetic, low_parts + size * chosen))
        if e_wanted:
            apart_exp = lane(exp_of_sum_above(arithmetic, vector, low, magic, lowest), 0)
        store_one(arithmetic, logits + size * chosen, -np.inf)
        if plan.kind == INDEX_TARGETS and spread_wanted(plan) and not spread_evenly(plan):
            store_double(table + SPREAD_AT_TARGET + 8 * row, load_one(arithmetic, mass + size * chosen))
    store_double(part + step * PART_CLASS, chosen)
    store_double(part + step * PART_APART, apart)
    store_double(part + step * PART_APART_LOW, 0.0 if apart == -np.inf else apart_low)
    store_double(part + step * PART_APART_EXP, apart_exp)

    exponentials = logits
    # what follows in memory: the next part, or the next row of a contiguous array
    ahead = Ahead(place + plan.logits_class * n, word(VECTOR_BYTES), word(FAR_AHEAD))
    if plan.operation == LOG_SOFTMAX:
        exponentials = mass
        # all are in scratch memory, but not where the exponentials go
        source, copied, patched = logits, n_vectors, -1
    high, low = wide_zero(arithmetic), wide_zero(arithmetic)
    # stores that wait for main memory and arithmetic take turns, in bites that the store queue holds: neither waits for the other
    n_done = (done.n - written) // lanes(storage)
    bite = INTERLEAVED if n_done > 0 else n_vectors
    for first in range(0, n_vectors, bite):
        n_now = min(bite, n_done - first)
        if n_now > 0:
            write_vectors(result_of(storage), done, written + first * lanes(storage), n_now)
        high, low = exp_of_bite(
            arithmetic,
            source,
            low_parts,
            exponentials,
            first,
            min(first + bite, n_vectors),
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
    total, total_low = total_of_lanes(arithmetic, high, low)
    store_double(part + step * PART_REST, total)
    store_double(part + step * PART_REST_LOW, total_low)
    if chosen >= 0:
        restored = apart_exp
        if plan.operation == LOG_SOFTMAX:
            restored = apart
        store_one(arithmetic, logits + size * chosen, restored)


@routine
def exp_of_bite(storage, source, low_parts, target, first, n, whole, patched, magic, lowest, ahead, high, low):
    """`exp_and_sum` as a function of its own: in place, its constants were loaded from memory again for every vector."""
    stays_a_function()
    return exp_and_sum(storage, source, low_parts, target, first, n, whole, patched, magic, lowest, ahead, high, low)


@inlined
def stays_in_place(storage, plan, n):
    """Whether the logits of a part can be read twice where they lie, and need not be brought into scratch memory."""
    return (
        same_storage(storage, arithmetic_of(storage))
        and plan.logits_class == itemsize(storage)
        and n >= lanes(storage)
        and plan.mask == 0
        and plan.operation != LOG_SOFTMAX
        and not changed(plan)
    )


@inlined
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


@inlined
def no_results(storage):
    """Nothing on its way out."""
    zero = narrow(storage, wide_zero(storage))
    nothing = word(0)
    return Results(
        nothing, nothing, nothing, False, zero, zero, False, zero, nothing, nothing, nothing, nothing,
        nothing, nothing, nothing, nothing,
    )  # fmt: skip


@routine
def finish_part(
    storage, plan, table, row, part, step, areas, area_bytes, outer, inner, first_class, n, line, begin, end
):
    """The results of one part of a row from its exponentials, in their place: what is left to do is to write them. `begin` and
    `end` are those of the part where they are 0; see `Results`."""
    put_in_place()
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    size = itemsize(arithmetic)
    logits = areas
    n_vectors = vectors_of(storage, n)
    like = load(arithmetic, logits)
    factor, factor_low = splat_like(like, 1.0), splat_like(like, 0.0)
    below = 1.0
    scaled = False
    if plan.operation == LOSS and load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
        fill_block(arithmetic, logits, n_vectors, factor_low)
        if plan.softmax != 0:
            store_part(results, logits, softmax_place(plan, outer, inner, first_class), plan.softmax_class, n)
    elif plan.operation == LOG_SOFTMAX:
        reference = splat_like(like, load_double(table + REFERENCE + 8 * row))
        shift_logarithms(
            arithmetic, logits, n_vectors, reference, splat_like(like, load_double(table + LOG_SUM + 8 * row))
        )
    else:
        below = to_reference_of_row(arithmetic, table, row, part, step, logits, n_vectors)
        inverse = splat_like(like, load_double(table + INVERSE + 8 * row) * below)
        inverse_low = splat_like(like, load_double(table + INVERSE_LOW + 8 * row) * below)
        if plan.operation == SOFTMAX:
            scaled, factor, factor_low = True, inverse, inverse_low
        else:
            if plan.softmax != 0:
                probabilities = areas + 4 * area_bytes
                scale_block(arithmetic, logits, probabilities, n_vectors, inverse, inverse_low)
                place = softmax_place(plan, outer, inner, first_class)
                store_part(results, probabilities, place, plan.softmax_class, n)
            scaled = True
            factor = splat_like(like, load_double(table + SCALE + 8 * row) * below)
            factor_low = splat_like(like, load_double(table + SCALE_LOW + 8 * row) * below)
    # alpha e is all of y - t; mass on every class and a change of variable make it (alpha e - beta q) dz/dx
    general = plan.operation == LOSS and (spread_wanted(plan) or capped(plan))
    beta = 0.0
    mass, mass_moves, slopes, slopes_move = table + ONES, word(0), table + ONES, word(0)
    if spread_wanted(plan):
        mass, mass_moves = load_int64(part + step * PART_MASS_AT), load_int64(part + step * PART_MASS_MOVES)
        beta = load_double(table + SPREAD_SCALE + 8 * row)
        if spread_evenly(plan):
            beta *= smoothing_unit(plan)
    if capped(plan):
        slopes, slopes_move = areas + 3 * area_bytes, word(1)
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner + first_class * plan.out_class
    # what this thread reads next: the same part of the row two tiles on (the next tile is being read while these are written)
    ahead = plan.logits + outer * plan.logits_outer + (inner + 2 * plan.tile_rows) * plan.logits_inner
    ahead += first_class * plan.logits_class
    if begin == 0:
        begin, end = out, out + itemsize(results) * n
    done = Results(
        logits, out, n, scaled, factor, factor_low, general, splat_like(like, beta), mass, mass_moves, slopes, slopes_move,
        line, begin, end, ahead,
    )  # fmt: skip
    if plan.operation == LOSS and scaled:
        chosen = target_in_part(plan, table, row, first_class, n)
        placed = True
        if chosen >= 0:
            placed = place_target(arithmetic, plan, table, row, logits, mass, mass_moves, beta, chosen, below)
        if plan.mask != 0 or not placed:
            finish_in_place(arithmetic, done)
            if chosen >= 0 and not placed:
                slope = load_one(arithmetic, slopes + slopes_move * size * chosen)
                store_one(
                    arithmetic,
                    logits + size * chosen,
                    load_double(table + TARGET_GRADIENT + 8 * row) * np.float64(slope),
                )
            if plan.mask != 0:
                fill_masked(arithmetic, plan, logits, 0.0, size, outer, inner, first_class, n)
            scaled = False
    if plan.out_class != itemsize(results):
        if scaled:
            finish_in_place(arithmetic, done)
        store_part(results, logits, out, plan.out_class, n)
        return no_results(arithmetic)
    return done if scaled else as_it_is(done)


@inlined
def softmax_place(plan, outer, inner, first_class):
    return plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class


@inlined
def to_reference_of_row(storage, table, row, part, step, exponentials, n_vectors):
    """By which power of two the exponentials of a part are multiplied to be in units of the row's reference; what a factor
    of the results has no room for is done here."""
    below = load_double(part + step * PART_POWER) - load_double(table + POWER + 8 * row)
    if below == 0.0:
        return 1.0
    if below >= -40.0:
        # the row's largest is in another part, 2**-below times this one's
        return two_to(below)
    like = load(storage, exponentials)
    zero = splat_like(like, 0.0)
    half = float(int(below * 0.5))
    scale_block(storage, exponentials, exponentials, n_vectors, splat_like(like, two_to(half)), zero)
    scale_block(storage, exponentials, exponentials, n_vectors, splat_like(like, two_to(below - half)), zero)
    return 1.0


@inlined
def target_in_part(plan, table, row, first_class, n):
    """The place of the row's target in a part, -1 where it is elsewhere or not a class."""
    chosen = -1
    if plan.kind == INDEX_TARGETS:
        chosen = int(load_double(table + CLASS + 8 * row)) - first_class
        if chosen >= n:
            chosen = -1
    return chosen


@inlined
def place_target(storage, plan, table, row, exponentials, mass, mass_moves, beta, chosen, below):
    """Put a number in place of the target's e that gives the gradient there when the results are computed (a number put among
    streamed ones costs 3 times all); whether there is one.

    Of plain y - t it is the sum of the others: the gradient is -d / S.
    """
    size = itemsize(storage)
    if spread_wanted(plan) or plan.z_loss != 0.0:
        q = np.float64(load_one(storage, mass + mass_moves * size * chosen))
        scale = load_double(table + SCALE + 8 * row) + load_double(table + SCALE_LOW + 8 * row)
        value = (load_double(table + TARGET_GRADIENT + 8 * row) + beta * q) / (scale * below)
        if not abs(value) < 1e30:
            return False
    else:
        rest = load_double(table + REST + 8 * row) + load_double(table + REST_LOW + 8 * row)
        if load_double(table + APART + 8 * row) == -np.inf and rest == rest:
            rest = 0.0
        value = -rest / below
    store_one(storage, exponentials + size * chosen, value)
    return True
