"""Parts of rows: at most `PART_VECTORS` vectors of neighbouring classes, lanes along the classes.

Each part has its own power of two as a reference, so that it is read from main memory once; parts merge by exact powers of two,
in order. A part's record says what is known of it; a row's numbers stand in the table of `rows.py`.
"""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import (
    block_maximum,
    cap_and_scale,
    exp_and_sum,
    fill_block,
    mass_and_distance,
    multiply,
    nan_where_any,
    scale_block,
    shift_logarithms,
    subtract,
    subtract_mass,
)
from fastswl.kernels.lines import Results, load_part, part_maximum, store_part, vectors_of, write_vectors
from fastswl.kernels.plan import INDEX_TARGETS, LOG_SOFTMAX, LOSS, SOFTMAX, changed, spread_evenly, spread_wanted
from fastswl.kernels.rows import (
    AGAIN,
    APART,
    APART_EXP,
    APART_LOW,
    CLASS,
    FAR_32,
    FAR_64,
    INVERSE,
    INVERSE_LOW,
    LINE,
    LOG_SUM,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SCALE,
    SCALE_LOW,
    SHIFT,
    SPREAD_AT_TARGET,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    SPREAD_SCALE,
    TARGET_GRADIENT,
    TOP,
)
from fastswl.kernels.spread import (
    clear_where_infinite,
    even_distance_of_part,
    fill_masked,
    smooth_part,
    spread_mass,
    spread_unit,
    subtract_even_from_part,
    vectors_serve,
)
from fastswl.simd import (
    VECTOR_BYTES,
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    itemsize,
    lane,
    lanes,
    load,
    load_double,
    load_one,
    load_wide,
    narrow,
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
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import (
    exp_of_sum_above,
    exp_reference,
    max_lanes,
    nearest_power,
    plain_total_of_lanes,
    total_of_lanes,
    two_sum,
)

#: vectors in a part of a row: 16 KB, half of the smallest first-level cache in use
PART_VECTORS = 256
#: vectors of results that are written between exponentials: a store queue of today holds 48 to 72
INTERLEAVED = 32
#: what is known of a part: float64 words, `step` bytes apart. A record of its own has them side by side; a row of one part has
#: them in the row's column of its table
RECORD_STEP, COLUMN_STEP = 8, LINE
(
    PART_TOP,
    PART_POWER,
    PART_REST,
    PART_REST_LOW,
    PART_APART,
    PART_APART_LOW,
    PART_APART_EXP,
    PART_CLASS,
    PART_REFERENCE_LOW,
    PART_MASS,
    PART_DISTANCE,
) = (
    line // LINE
    for line in (
        TOP,
        POWER,
        REST,
        REST_LOW,
        APART,
        APART_LOW,
        APART_EXP,
        CLASS,
        REFERENCE_LOW,
        SPREAD_MASS,
        SPREAD_DISTANCE,
    )
)
PART_BYTES = 11 * RECORD_STEP


@inlined
def parts_of(storage, n_classes):
    """How many parts a row has, and the classes of all but the last."""
    part_classes = PART_VECTORS * lanes(storage)
    return (n_classes + part_classes - 1) // part_classes, part_classes


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
        cap_and_scale(arithmetic, logits, low_parts, slopes, n_vectors, plan.softcap, plan.logit_scale)
        # what fills up the last vector stays out
        for c in range(n, n_vectors * lanes(storage)):
            store_one(arithmetic, logits + size * c, -np.inf)
    if plan.mask != 0:
        fill_masked(arithmetic, plan, logits, -np.inf, size, outer, inner, first_class, n)
    shift = load_double(table + SHIFT + 8 * row)
    if shift != 0.0:
        subtract(arithmetic, logits, n_vectors, narrow_splat(arithmetic, logits, shift))
    if low_parts != 0 or plan.mask != 0 or shift != 0.0:
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
        chosen = first_of_row(arithmetic, place if copied > 0 else logits, n, top)
    m_low = 0.0
    if low_parts != 0 and plan.kind != INDEX_TARGETS and chosen >= 0:
        m_low = np.float64(load_one(arithmetic, low_parts + size * chosen))
    store_double(part + step * PART_REFERENCE_LOW, m_low)
    # distances are from the row's largest logit in the end: here from this part's reference
    if spread_evenly(plan):
        unit = plan.label_smoothing / plan.n_classes
        even = even_distance_of_part(arithmetic, plan, logits, low_parts, first_class, n, widen(m))
        store_double(part + step * PART_DISTANCE, unit * sum_one(arithmetic, even))
    elif spread_wanted(plan):
        make_mass(arithmetic, target_storage, plan, mass, n_vectors, outer, inner, first_class, n)
        q_sum, distance = mass_and_distance(
            arithmetic, logits, low_parts, mass, n_vectors, widen(m), splat_like(widen(m), m_low)
        )
        store_double(part + step * PART_MASS, sum_one(arithmetic, q_sum))
        store_double(part + step * PART_DISTANCE, sum_one(arithmetic, distance))

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
        if spread_evenly(plan):
            class_weight = 1.0
            if plan.weight != 0:
                class_weight = load_double(plan.weight + 8 * (first_class + chosen))
            store_double(table + SPREAD_AT_TARGET + 8 * row, plan.label_smoothing / plan.n_classes * class_weight)
        elif plan.kind == INDEX_TARGETS and plan.label_smoothing != 0.0:
            store_double(table + SPREAD_AT_TARGET + 8 * row, load_one(arithmetic, mass + size * chosen))
    store_double(part + step * PART_CLASS, chosen)
    store_double(part + step * PART_APART, apart)
    store_double(part + step * PART_APART_LOW, 0.0 if apart == -np.inf else apart_low)
    store_double(part + step * PART_APART_EXP, apart_exp)

    exponentials = logits
    # what follows in memory: the next part, or the next row of a contiguous array
    ahead = place + plan.logits_class * n
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
        and not spread_wanted(plan)
    )


@routine
def make_mass(storage, target_storage, plan, mass, n_vectors, outer, inner, first_class, n):
    """The target mass of the classes of a part."""
    size = itemsize(storage)
    place = plan.targets + outer * plan.targets_outer + inner * plan.targets_inner + first_class * plan.targets_class
    if vectors_serve(storage, target_storage, plan):
        load_part(target_storage, mass, place, plan.targets_class, n)
        smooth_part(storage, plan, mass, first_class, n_vectors)
    else:
        unit = spread_unit(plan, outer, inner)
        spread_mass(storage, target_storage, plan, mass, size, outer, inner, first_class, n, unit)
    for c in range(n, n_vectors * lanes(storage)):
        store_one(storage, mass + size * c, 0.0)


@inlined
def narrow_splat(storage, somewhere, value):
    return splat_like(load(storage, somewhere), value)


@inlined
def sum_one(storage, total):
    if any_lane(absolute(total) == np.inf):
        # a compensated sum of infinities is NaN
        return plain_total_of_lanes(storage, total)
    high, low = total_of_lanes(storage, total, splat_like(total, 0.0))
    return high + low


@routine
def first_of_row(storage, logits, n, value):
    """The first class whose logit is `value`, -1 where there is none."""
    size, width = itemsize(storage), lanes(storage)
    for i in range(vectors_of(storage, n)):
        if any_lane(load(storage, logits + VECTOR_BYTES * i) == value):
            for c in range(width * i, min(width * (i + 1), n)):
                if load_one(storage, logits + size * c) == value:
                    return c
    return -1


@inlined
def two_to(exponent):
    """2**exponent of a whole float64 in [-1022, 0], 0 below."""
    if exponent < -1022.0:
        return 0.0
    return power_of_two(exponent)


@routine
def merge_parts(storage, plan, table, row, parts, n_parts):
    """Sum up the parts of a row; whether it has to be done again with its maximum subtracted first (SHIFT says by what)."""
    top = -np.inf
    leader = 0
    poisoned = False
    for i in range(n_parts):
        part_top = load_double(parts + PART_BYTES * i + RECORD_STEP * PART_TOP)
        rest = load_double(parts + PART_BYTES * i + RECORD_STEP * PART_REST)
        poisoned = poisoned or part_top != part_top or (rest != rest and part_top < np.inf)
        if part_top > top:
            top = part_top
            leader = i
    shift = load_double(table + SHIFT + 8 * row)
    limit = by_type(storage, FAR_32, FAR_64)
    if shift == 0.0 and abs(top) >= limit and abs(top) < np.inf:
        store_double(table + SHIFT + 8 * row, top)
        return True
    m = 0.0
    if abs(top) < np.inf:
        m = top
    power = load_double(parts + PART_BYTES * leader + RECORD_STEP * PART_POWER)
    m_low = load_double(parts + PART_BYTES * leader + RECORD_STEP * PART_REFERENCE_LOW)
    high, low = 0.0, 0.0
    mass, mass_low, distance, distance_low = 0.0, 0.0, 0.0, 0.0
    chosen, apart, apart_low = -1, -np.inf, 0.0
    part_classes = PART_VECTORS * lanes(storage)
    for i in range(n_parts):
        part = parts + PART_BYTES * i
        factor = two_to(load_double(part + RECORD_STEP * PART_POWER) - power)
        high, error = two_sum(high, load_double(part + RECORD_STEP * PART_REST) * factor)
        low += error + load_double(part + RECORD_STEP * PART_REST_LOW) * factor
        place = int(load_double(part + RECORD_STEP * PART_CLASS))
        if place >= 0:
            if plan.kind == INDEX_TARGETS or i == leader:
                chosen = place + part_classes * i
                apart = load_double(part + RECORD_STEP * PART_APART)
                apart_low = load_double(part + RECORD_STEP * PART_APART_LOW)
            else:
                high, error = two_sum(high, load_double(part + RECORD_STEP * PART_APART_EXP) * factor)
                low += error
        if spread_evenly(plan):
            store_double(
                part + RECORD_STEP * PART_MASS,
                plan.label_smoothing / plan.n_classes * weight_of_part(plan, i, part_classes),
            )
        part_mass = load_double(part + RECORD_STEP * PART_MASS)
        if spread_wanted(plan):
            away = load_double(part + RECORD_STEP * PART_DISTANCE)
            if part_mass != 0.0:
                limited = min(max(load_double(part + RECORD_STEP * PART_TOP), -limit), limit)
                away += part_mass * ((m - limited) + (m_low - load_double(part + RECORD_STEP * PART_REFERENCE_LOW)))
            mass, error = two_sum(mass, part_mass)
            mass_low += error
            distance, error = two_sum(distance, away)
            distance_low += error
    if abs(distance) < np.inf:
        distance += distance_low
    mass += mass_low
    store_double(table + TOP + 8 * row, np.nan if poisoned else top + shift)
    store_double(table + REFERENCE + 8 * row, m)
    store_double(table + REFERENCE_LOW + 8 * row, m_low)
    store_double(table + POWER + 8 * row, power)
    store_double(table + REST + 8 * row, high)
    store_double(table + REST_LOW + 8 * row, low)
    store_double(table + APART + 8 * row, apart)
    store_double(table + APART_LOW + 8 * row, apart_low)
    store_double(table + SPREAD_MASS + 8 * row, mass)
    store_double(table + SPREAD_DISTANCE + 8 * row, distance)
    if plan.kind != INDEX_TARGETS:
        store_double(table + CLASS + 8 * row, chosen)
    return False


@routine
def settle_rows(storage, plan, table):
    """`merge_parts` of rows of one part, all rows of a tile at once; whether any may have to be done again."""
    top, rest = load_wide(storage, table + TOP), load_wide(storage, table + REST)
    finite = absolute(top) < np.inf
    store_wide(storage, table + REFERENCE, select(finite, top, splat_like(top, 0.0)))
    if spread_evenly(plan):
        mass = plan.label_smoothing / plan.n_classes * plan.weight_total
        store_wide(storage, table + SPREAD_MASS, splat_like(top, mass))
    shift = load_wide(storage, table + SHIFT)
    poisoned = (rest != rest) & (top < np.inf)
    store_wide(storage, table + TOP, select(poisoned, splat_like(top, np.nan), top + shift))
    far = (absolute(top) >= by_type(storage, FAR_32, FAR_64)) & finite & (shift == 0.0)
    return any_lane(far)


@routine
def mark_far_rows(storage, plan, table, count):
    """Say in AGAIN which rows have to be done again with their maximum subtracted, in SHIFT by what; whether there is any."""
    found = False
    for row in range(count):
        m = load_double(table + REFERENCE + 8 * row)
        far = abs(m) >= by_type(storage, FAR_32, FAR_64) and load_double(table + SHIFT + 8 * row) == 0.0
        if plan.operation == LOSS and load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
            # an ignored row is not read
            far = False
        if far:
            store_double(table + SHIFT + 8 * row, m)
        store_double(table + AGAIN + 8 * row, 1.0 if far else 0.0)
        found = found or far
    return found


@inlined
def weight_of_part(plan, number, part_classes):
    """The class weights of a part added up."""
    first = number * part_classes
    end = min(first + part_classes, plan.n_classes)
    if plan.weight == 0:
        return float(end - first)
    if end - first == plan.n_classes:
        return plan.weight_total
    total = 0.0
    for c in range(first, end):
        total += load_double(plan.weight + 8 * c)
    return total


@inlined
def no_results(storage):
    """Nothing on its way out."""
    zero = narrow(storage, wide_zero(storage))
    return Results(word(0), word(0), word(0), False, zero, zero, word(0), word(0), word(0), word(0))


@routine
def finish_part(
    storage, plan, table, row, part, step, areas, area_bytes, outer, inner, first_class, n, line, begin, end
):
    """The results of one part of a row from its exponentials, in their place: what is left to do is to write them. `begin` and
    `end` are those of the part where they are 0; see `Results`."""
    put_in_place()
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    logits = areas
    n_vectors = vectors_of(storage, n)
    like = load(arithmetic, logits)
    factor, factor_low = splat_like(like, 1.0), splat_like(like, 0.0)
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
            factor = splat_like(like, load_double(table + SCALE + 8 * row) * below)
            factor_low = splat_like(like, load_double(table + SCALE_LOW + 8 * row) * below)
            # nothing but y - t
            scaled = not (spread_wanted(plan) or plan.z_loss != 0.0 or changed(plan) or plan.mask != 0)
            if scaled:
                rest_at_target(arithmetic, plan, table, row, logits, first_class, n, below)
            else:
                gradient_of_part(
                    storage,
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
                    factor,
                    factor_low,
                )
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner + first_class * plan.out_class
    if plan.out_class != itemsize(results):
        if scaled:
            scale_block(arithmetic, logits, logits, n_vectors, factor, factor_low)
        store_part(results, logits, out, plan.out_class, n)
        return no_results(arithmetic)
    # what this thread reads next: the same part of the row two tiles on (the next tile is being read while these are written)
    ahead = plan.logits + outer * plan.logits_outer + (inner + 2 * plan.tile_rows) * plan.logits_inner
    ahead += first_class * plan.logits_class
    if begin == 0:
        begin, end = out, out + itemsize(results) * n
    return Results(logits, out, n, scaled, factor, factor_low, line, begin, end, ahead)


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
def rest_at_target(storage, plan, table, row, exponentials, first_class, n, below):
    """The gradient at the target is -d / S: the sum of the others in place of e, before the results are scaled (a number
    put among streamed ones costs 3 times all)."""
    chosen = target_in_part(plan, table, row, first_class, n)
    if chosen >= 0:
        rest = load_double(table + REST + 8 * row) + load_double(table + REST_LOW + 8 * row)
        if load_double(table + APART + 8 * row) == -np.inf and rest == rest:
            rest = 0.0
        store_one(storage, exponentials + itemsize(storage) * chosen, -rest / below)


@routine
def gradient_of_part(
    storage, plan, table, row, part, step, areas, area_bytes, outer, inner, first_class, n, factor, factor_low
):
    """alpha e - beta q, and what the target, a change of variable and a mask do to it, in place of the exponentials."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    logits, mass, slopes = areas, areas + area_bytes, areas + 3 * area_bytes
    n_vectors = vectors_of(storage, n)
    scale_block(arithmetic, logits, logits, n_vectors, factor, factor_low)
    if spread_evenly(plan):
        beta = load_double(table + SPREAD_SCALE + 8 * row) * (plan.label_smoothing / plan.n_classes)
        subtract_even_from_part(arithmetic, plan, logits, first_class, n_vectors, splat_like(factor, beta))
        whole = load_double(table + SCALE + 8 * row)
        # a class of some weight at -inf wants a look at single classes (in a row with NaN all is NaN)
        if load_double(part + step * PART_DISTANCE) == np.inf and whole == whole:
            place = (
                plan.logits + outer * plan.logits_outer + inner * plan.logits_inner + first_class * plan.logits_class
            )
            clear_where_infinite(storage, logits, size, place, plan.logits_class, n)
    elif spread_wanted(plan):
        beta = load_double(table + SPREAD_SCALE + 8 * row)
        subtract_mass(arithmetic, logits, mass, n_vectors, splat_like(factor, beta))
    chosen = target_in_part(plan, table, row, first_class, n)
    if chosen >= 0:
        store_one(arithmetic, logits + size * chosen, load_double(table + TARGET_GRADIENT + 8 * row))
    if changed(plan):
        multiply(arithmetic, logits, slopes, n_vectors)
    if plan.mask != 0:
        fill_masked(arithmetic, plan, logits, 0.0, size, outer, inner, first_class, n)
