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
    mass_and_distance,
    multiply,
    nan_where_any,
    scale_block,
    shift_logarithms,
    subtract,
    subtract_mass,
)
from fastswl.kernels.lines import load_part, scale_out, store_part, vectors_of
from fastswl.kernels.plan import INDEX_TARGETS, LOG_SOFTMAX, SOFTMAX, changed, spread_evenly, spread_wanted
from fastswl.kernels.rows import (
    APART,
    APART_LOW,
    CLASS,
    INVERSE,
    INVERSE_LOW,
    LOG_SUM,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REST,
    REST_LOW,
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
    power_of_two,
    result_of,
    splat_like,
    store_double,
    store_one,
    widen,
)
from fastswl.vectormath import exp_above, exp_reference, max_lanes, nearest_power, plain_total_of_lanes, total_of_lanes

#: a logit's distance from 0 from which on the row's maximum is subtracted first
FAR_32, FAR_64 = 1024.0, 4096.0
#: vectors in a part of a row: 16 KB, half of the smallest first-level cache in use
PART_VECTORS = 256
#: phases of the split walk; WHOLE_ROWS is the row walk
WHOLE_ROWS, DESCRIBE, SUM_UP, MERGE, FINISH = range(5)
#: what is known of a part: float64 words
(
    PART_TOP,
    PART_POWER,
    PART_REST,
    PART_REST_LOW,
    PART_APART,
    PART_APART_LOW,
    PART_REFERENCE_LOW,
    PART_APART_EXP,
    PART_CLASS,
    PART_MASS,
    PART_DISTANCE,
) = range(0, 88, 8)
PART_BYTES = 88


@routine
def row_part(storage, target_storage, plan, table, row, part, areas, area_bytes, outer, inner, first_class, n):
    """One part of a row: exponentials into the first area, what is known of it into `part`.

    Areas: logits then exponentials; mass (log_softmax: exponentials); low parts of changed logits; slopes of the change.
    """
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    logits, mass, low_area, slopes = areas, areas + area_bytes, areas + 2 * area_bytes, areas + 3 * area_bytes
    n_vectors = vectors_of(storage, n)
    place = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner + first_class * plan.logits_class
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
        poisoned = nan_where_any(arithmetic, logits, n_vectors, splat_like(tops, 0.0))
        if any_lane(poisoned != poisoned):
            top = np.nan
    # an infinite top, or one that will have the row done again, gives no reference
    limit = by_type(arithmetic, FAR_32, FAR_64)
    reference = limit
    if top < limit:
        reference = max(top, -limit)
    m = splat_like(load(arithmetic, logits), reference)
    power = nearest_power(arithmetic, m)
    store_double(part + PART_TOP, top)
    store_double(part + PART_POWER, lane(power, 0))
    magic, lowest = exp_reference(arithmetic, power)

    chosen = -1
    if plan.kind == INDEX_TARGETS:
        chosen = int(load_double(table + CLASS + 8 * row)) - first_class
        if chosen >= n:
            chosen = -1
    elif plan.operation != SOFTMAX:
        chosen = first_of_row(arithmetic, logits, n, top)
    m_low = 0.0
    if low_parts != 0 and plan.kind != INDEX_TARGETS and chosen >= 0:
        m_low = np.float64(load_one(arithmetic, low_parts + size * chosen))
    store_double(part + PART_REFERENCE_LOW, m_low)
    # distances are from the row's largest logit in the end: here from this part's reference
    if spread_evenly(plan):
        unit = plan.label_smoothing / plan.n_classes
        even = even_distance_of_part(arithmetic, plan, logits, low_parts, first_class, n, widen(m))
        store_double(part + PART_DISTANCE, unit * sum_one(arithmetic, even))
    elif spread_wanted(plan):
        make_mass(arithmetic, target_storage, plan, mass, n_vectors, outer, inner, first_class, n)
        q_sum, distance = mass_and_distance(
            arithmetic, logits, low_parts, mass, n_vectors, widen(m), splat_like(widen(m), m_low)
        )
        store_double(part + PART_MASS, sum_one(arithmetic, q_sum))
        store_double(part + PART_DISTANCE, sum_one(arithmetic, distance))

    apart, apart_low, apart_exp = -np.inf, 0.0, 0.0
    if chosen >= 0:
        apart = np.float64(load_one(arithmetic, logits + size * chosen))
        vector = splat_like(m, load_one(arithmetic, logits + size * chosen))
        zero = splat_like(m, 0.0)
        low = zero
        if low_parts != 0:
            whole = apart + load_one(arithmetic, low_parts + size * chosen)
            apart_low = (apart - whole) + load_one(arithmetic, low_parts + size * chosen)
            apart = whole
            low = splat_like(m, load_one(arithmetic, low_parts + size * chosen))
        apart_exp = lane(exp_above(arithmetic, vector, low, magic, lowest), 0)
        store_one(arithmetic, logits + size * chosen, -np.inf)
        if spread_evenly(plan):
            class_weight = 1.0
            if plan.weight != 0:
                class_weight = load_double(plan.weight + 8 * (first_class + chosen))
            store_double(table + SPREAD_AT_TARGET + 8 * row, plan.label_smoothing / plan.n_classes * class_weight)
        elif plan.kind == INDEX_TARGETS and plan.label_smoothing != 0.0:
            store_double(table + SPREAD_AT_TARGET + 8 * row, load_one(arithmetic, mass + size * chosen))
    store_double(part + PART_CLASS, chosen)
    store_double(part + PART_APART, apart)
    store_double(part + PART_APART_LOW, 0.0 if apart == -np.inf else apart_low)
    store_double(part + PART_APART_EXP, apart_exp)

    exponentials = logits
    # what follows in memory: the next part, or the next row of a contiguous array
    ahead = place + plan.logits_class * n
    if plan.operation == LOG_SOFTMAX:
        exponentials = mass
    high, rest_low = exp_and_sum(arithmetic, logits, low_parts, exponentials, n_vectors, magic, lowest, ahead)
    total, total_low = total_of_lanes(arithmetic, high, rest_low)
    store_double(part + PART_REST, total)
    store_double(part + PART_REST_LOW, total_low)
    if chosen >= 0:
        restored = apart_exp
        if plan.operation == LOG_SOFTMAX:
            restored = apart
        store_one(arithmetic, logits + size * chosen, restored)


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
        part_top = load_double(parts + PART_BYTES * i + PART_TOP)
        rest = load_double(parts + PART_BYTES * i + PART_REST)
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
    power = load_double(parts + PART_BYTES * leader + PART_POWER)
    m_low = load_double(parts + PART_BYTES * leader + PART_REFERENCE_LOW)
    high, low = 0.0, 0.0
    mass, mass_low, distance, distance_low = 0.0, 0.0, 0.0, 0.0
    chosen, apart, apart_low = -1, -np.inf, 0.0
    part_classes = PART_VECTORS * lanes(storage)
    for i in range(n_parts):
        part = parts + PART_BYTES * i
        factor = two_to(load_double(part + PART_POWER) - power)
        high, error = add_exactly(high, load_double(part + PART_REST) * factor)
        low += error + load_double(part + PART_REST_LOW) * factor
        place = int(load_double(part + PART_CLASS))
        if place >= 0:
            if plan.kind == INDEX_TARGETS or i == leader:
                chosen = place + part_classes * i
                apart = load_double(part + PART_APART)
                apart_low = load_double(part + PART_APART_LOW)
            else:
                high, error = add_exactly(high, load_double(part + PART_APART_EXP) * factor)
                low += error
        if spread_evenly(plan):
            store_double(
                part + PART_MASS, plan.label_smoothing / plan.n_classes * weight_of_part(plan, i, part_classes)
            )
        part_mass = load_double(part + PART_MASS)
        if spread_wanted(plan):
            away = load_double(part + PART_DISTANCE)
            if part_mass != 0.0:
                limited = min(max(load_double(part + PART_TOP), -limit), limit)
                away += part_mass * ((m - limited) + (m_low - load_double(part + PART_REFERENCE_LOW)))
            mass, error = add_exactly(mass, part_mass)
            mass_low += error
            distance, error = add_exactly(distance, away)
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
def add_exactly(a, b):
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@routine
def finish_part(storage, plan, table, row, part, areas, area_bytes, outer, inner, first_class, n, out, streaming):
    """The results of one part of a row from its exponentials."""
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    size = itemsize(arithmetic)
    logits, mass, slopes = areas, areas + area_bytes, areas + 3 * area_bytes
    probabilities = areas + 4 * area_bytes
    n_vectors = vectors_of(storage, n)
    below = load_double(part + PART_POWER) - load_double(table + POWER + 8 * row)
    like = load(arithmetic, logits)
    # what this thread reads next: the same part of the row after this tile
    ahead = plan.logits + outer * plan.logits_outer + (inner + plan.tile_rows) * plan.logits_inner
    ahead += first_class * plan.logits_class
    if plan.operation == LOG_SOFTMAX:
        reference = splat_like(like, load_double(table + REFERENCE + 8 * row))
        shift_logarithms(
            arithmetic, logits, n_vectors, reference, splat_like(like, load_double(table + LOG_SUM + 8 * row))
        )
        store_part(results, logits, out, plan.out_class, n)
        return
    factor = 1.0
    if below < 0.0:
        # the row's largest is in another part, 2**-below times this one's
        factor = two_to(below)
        if below < -40.0:
            # the factor of the results could leave the normal range: bring the exponentials to the row's reference first
            half = two_to(float(int(below * 0.5)))
            scale_block(arithmetic, logits, logits, n_vectors, splat_like(like, half), splat_like(like, 0.0))
            rest = two_to(below - float(int(below * 0.5)))
            scale_block(arithmetic, logits, logits, n_vectors, splat_like(like, rest), splat_like(like, 0.0))
            factor = 1.0
    if plan.operation == SOFTMAX or plan.softmax != 0:
        inverse = splat_like(like, load_double(table + INVERSE + 8 * row) * factor)
        inverse_low = splat_like(like, load_double(table + INVERSE_LOW + 8 * row) * factor)
        if plan.operation == SOFTMAX:
            if plan.out_class == itemsize(results) and n >= lanes(storage):
                scale_out(results, logits, out, n, inverse, inverse_low, streaming, ahead)
            else:
                scale_block(arithmetic, logits, logits, n_vectors, inverse, inverse_low)
                store_part(results, logits, out, plan.out_class, n)
            return
        scale_block(arithmetic, logits, probabilities, n_vectors, inverse, inverse_low)
        place = (
            plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class
        )
        store_part(results, probabilities, place, plan.softmax_class, n)
    scale = splat_like(like, load_double(table + SCALE + 8 * row) * factor)
    scale_low = splat_like(like, load_double(table + SCALE_LOW + 8 * row) * factor)
    chosen = -1
    if plan.kind == INDEX_TARGETS:
        chosen = int(load_double(table + CLASS + 8 * row)) - first_class
        if chosen >= n:
            chosen = -1
    beta = load_double(table + SPREAD_SCALE + 8 * row) * (plan.label_smoothing / plan.n_classes)
    even = spread_evenly(plan)
    # a class of some weight at -inf (a distance of inf) and a mask want a look at single classes
    simple = not (even and load_double(part + PART_DISTANCE) == np.inf) and plan.mask == 0
    alone = not spread_wanted(plan) and plan.z_loss == 0.0
    if alone and simple and not changed(plan) and n >= lanes(storage):
        if chosen >= 0:
            # the gradient there is -d / S: the sum of the others in place of e (a number put among streamed ones costs 3 times all)
            rest = load_double(table + REST + 8 * row) + load_double(table + REST_LOW + 8 * row)
            if load_double(table + APART + 8 * row) == -np.inf and rest == rest:
                rest = 0.0
            store_one(arithmetic, logits + size * chosen, -rest / factor)
        if plan.out_class == itemsize(results):
            scale_out(results, logits, out, n, scale, scale_low, streaming, ahead)
        else:
            scale_block(arithmetic, logits, logits, n_vectors, scale, scale_low)
            store_part(results, logits, out, plan.out_class, n)
        return
    scale_block(arithmetic, logits, logits, n_vectors, scale, scale_low)
    if even:
        subtract_even_from_part(arithmetic, plan, logits, first_class, n_vectors, splat_like(like, beta))
        whole = load_double(table + SCALE + 8 * row)
        if not simple and whole == whole:
            # (in a row with NaN all is NaN)
            place = (
                plan.logits + outer * plan.logits_outer + inner * plan.logits_inner + first_class * plan.logits_class
            )
            clear_where_infinite(storage, logits, size, place, plan.logits_class, n)
    elif spread_wanted(plan):
        subtract_mass(
            arithmetic, logits, mass, n_vectors, splat_like(like, load_double(table + SPREAD_SCALE + 8 * row))
        )
    if chosen >= 0:
        store_one(arithmetic, logits + size * chosen, load_double(table + TARGET_GRADIENT + 8 * row))
    if changed(plan):
        multiply(arithmetic, logits, slopes, n_vectors)
    if plan.mask != 0:
        fill_masked(arithmetic, plan, logits, 0.0, size, outer, inner, first_class, n)
    store_part(results, logits, out, plan.out_class, n)


@routine
def zero_part(storage, plan, outer, inner, first_class, n, out):
    """The gradient (and the softmax) of a row that is ignored."""
    results = result_of(storage)
    for c in range(n):
        store_one(results, out + plan.out_class * c, 0.0)
    if plan.softmax != 0:
        place = (
            plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class
        )
        for c in range(n):
            store_one(results, place + plan.softmax_class * c, 0.0)
