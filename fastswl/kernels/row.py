"""Rows whose class axis is contiguous (or long): vectors run along the classes.

A row is cut into parts of at most `PART_VECTORS` vectors. Each part has its own power of two as a reference, so that it is read
from main memory once; parts merge by exact powers of two, in order. The row walk takes a whole row (or a batch of short
ones) in one thread and keeps its exponentials in the cache; the split walk gives the parts of a row to all threads and computes
the exponentials again in its second pass. The arithmetic, and so every bit, is the same.
"""

import numpy as np

from fastswl.compilation import block_kernel, inlined, routine
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
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    LOSS,
    SOFTMAX,
    changed,
    load_plan,
    spread_wanted,
)
from fastswl.kernels.rows import (
    AGAIN,
    APART,
    CLASS,
    INVERSE,
    INVERSE_LOW,
    LOG_SUM,
    POWER,
    REFERENCE,
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
    TABLE_BYTES,
    TARGET_GRADIENT,
    TOP,
    describe_rows,
    finish_rows,
    start_block,
    store_partial,
    store_row_values,
)
from fastswl.kernels.spread import classes_left, hide_masked_classes, spread_mass
from fastswl.simd import (
    VECTOR_BYTES,
    any_lane,
    arithmetic_of,
    by_type,
    fma,
    itemsize,
    lane,
    lanes,
    load,
    load_double,
    load_one,
    result_of,
    select,
    splat_like,
    store,
    store_double,
    store_one,
    store_streaming,
    widen,
    word,
)
from fastswl.vectormath import exp_above, exp_reference, max_lanes, nearest_power, total_of_lanes

#: a logit's distance from 0 from which on the row's maximum is subtracted first
FAR_32, FAR_64 = 1024.0, 4096.0
#: vectors in a part of a row: 16 KB, half of the smallest first-level cache in use
PART_VECTORS = 256
#: phases of the split walk; WHOLE_ROWS is the row walk
WHOLE_ROWS, DESCRIBE, SUM_UP, MERGE, FINISH = range(5)
#: what is known of a part: float64 words
(PART_TOP, PART_POWER, PART_REST, PART_REST_LOW, PART_APART, PART_APART_EXP, PART_CLASS, PART_MASS, PART_DISTANCE) = (
    range(0, 72, 8)
)
PART_BYTES = 80


@inlined
def vectors_of(storage, n_classes):
    return (n_classes + lanes(storage) - 1) // lanes(storage)


@routine
def load_part(storage, target, source, class_stride, n):
    """Bring `n` classes of a row into scratch memory, in the arithmetic type, filled up with -inf to whole vectors; the
    largest of each lane (NaN dropped)."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    width = lanes(storage)
    top = splat_like(load(arithmetic, target), -np.inf)
    whole = n // width
    if class_stride == itemsize(storage) and whole > 0:
        if whole * width < n:
            # the last vector overlaps the one before
            tail = load(storage, source + class_stride * (n - width))
            store(arithmetic, target + VECTOR_BYTES * whole, top)
            store(arithmetic, target + size * (n - width), tail)
            store(arithmetic, target + size * n, top)
            top = select(tail > top, tail, top)
        for i in range(whole):
            x = load(storage, source + class_stride * width * i)
            store(arithmetic, target + VECTOR_BYTES * i, x)
            top = select(x > top, x, top)
        return top
    store(arithmetic, target + VECTOR_BYTES * whole, top)
    for c in range(n):
        store_one(arithmetic, target + size * c, load_one(storage, source + class_stride * c))
    return block_maximum(arithmetic, target, vectors_of(storage, n))


@routine
def store_part(storage, source, target, class_stride, n):
    """The reverse of `load_part`."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    width = lanes(storage)
    if class_stride == itemsize(storage) and n >= width:
        for i in range(n // width):
            store(storage, target + class_stride * width * i, load(arithmetic, source + VECTOR_BYTES * i))
        store(storage, target + class_stride * (n - width), load(arithmetic, source + size * (n - width)))
    else:
        for c in range(n):
            store_one(storage, target + class_stride * c, load_one(arithmetic, source + size * c))


@routine
def scale_out(storage, source, target, n, factor, factor_low, streaming):
    """e * (factor + factor_low) of a contiguous row into the results, past the caches if wanted."""
    arithmetic = arithmetic_of(storage)
    size, stored = itemsize(arithmetic), itemsize(storage)
    width = lanes(storage)
    first = 0
    if streaming != 0:
        # up to the first whole line of the results by single numbers
        line_bytes = width * stored
        first = min(((line_bytes - target % line_bytes) % line_bytes) // stored, n)
        for c in range(first):
            e = load_one(arithmetic, source + size * c)
            store_one(storage, target + stored * c, lane_product(arithmetic, e, factor, factor_low))
        whole = (n - first) // width
        for i in range(whole):
            e = load(arithmetic, source + size * first + VECTOR_BYTES * i)
            store_streaming(storage, target + stored * first + line_bytes * i, fma(e, factor, e * factor_low))
        first += whole * width
        for c in range(first, n):
            e = load_one(arithmetic, source + size * c)
            store_one(storage, target + stored * c, lane_product(arithmetic, e, factor, factor_low))
    else:
        for i in range(n // width):
            e = load(arithmetic, source + VECTOR_BYTES * i)
            store(storage, target + stored * width * i, fma(e, factor, e * factor_low))
        e = load(arithmetic, source + size * (n - width))
        store(storage, target + stored * (n - width), fma(e, factor, e * factor_low))


@inlined
def lane_product(storage, e, factor, factor_low):
    vector = splat_like(factor, e)
    return lane(fma(vector, factor, vector * factor_low), 0)


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
        hide_masked_classes(arithmetic, plan, logits, low_parts, slopes - logits, size, outer, inner, first_class, n)
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

    if spread_wanted(plan):
        # distances are from the row's largest logit in the end: here from this part's reference
        unit = plan.label_smoothing / max(classes_left(plan, outer, inner), 1)
        spread_mass(arithmetic, target_storage, plan, mass, size, outer, inner, first_class, n, unit)
        for c in range(n, n_vectors * lanes(storage)):
            store_one(arithmetic, mass + size * c, 0.0)
        q_sum, distance = mass_and_distance(arithmetic, logits, low_parts, mass, n_vectors, widen(m))
        store_double(part + PART_MASS, sum_one(arithmetic, q_sum))
        store_double(part + PART_DISTANCE, sum_one(arithmetic, distance))

    chosen = -1
    if plan.kind == INDEX_TARGETS:
        chosen = int(load_double(table + CLASS + 8 * row)) - first_class
        if chosen >= n:
            chosen = -1
    elif plan.operation != SOFTMAX:
        chosen = first_of_row(arithmetic, logits, n, top)
    apart, apart_exp = -np.inf, 0.0
    if chosen >= 0:
        apart = load_one(arithmetic, logits + size * chosen)
        vector = splat_like(m, load_one(arithmetic, logits + size * chosen))
        zero = splat_like(m, 0.0)
        low = zero
        if low_parts != 0:
            apart += load_one(arithmetic, low_parts + size * chosen)
            low = splat_like(m, load_one(arithmetic, low_parts + size * chosen))
        apart_exp = lane(exp_above(arithmetic, vector, low, magic, lowest), 0)
        store_one(arithmetic, logits + size * chosen, -np.inf)
        if plan.kind == INDEX_TARGETS and plan.label_smoothing != 0.0:
            store_double(table + SPREAD_AT_TARGET + 8 * row, load_one(arithmetic, mass + size * chosen))
    store_double(part + PART_CLASS, chosen)
    store_double(part + PART_APART, apart)
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


@inlined
def narrow_splat(storage, somewhere, value):
    return splat_like(load(storage, somewhere), value)


@inlined
def sum_one(storage, total):
    high, low = total_of_lanes(storage, total, splat_like(total, 0.0))
    return high + low


@routine
def first_of_row(storage, logits, n, value):
    """The first class whose logit is `value`, -1 where there is none."""
    size = itemsize(storage)
    for c in range(n):
        if load_one(storage, logits + size * c) == value:
            return c
    return -1


@inlined
def two_to(exponent):
    """2**exponent of a whole float64 in [-1022, 0], 0 below."""
    if exponent < -1022.0:
        return 0.0
    return 2.0 ** int(exponent)


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
    high, low, mass, distance = 0.0, 0.0, 0.0, 0.0
    chosen, apart = -1, -np.inf
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
            else:
                high, error = add_exactly(high, load_double(part + PART_APART_EXP) * factor)
                low += error
        part_mass = load_double(part + PART_MASS)
        if spread_wanted(plan) and part_mass != 0.0:
            limited = min(max(load_double(part + PART_TOP), -limit), limit)
            mass += part_mass
            distance += load_double(part + PART_DISTANCE) + part_mass * (m - limited)
        elif spread_wanted(plan):
            distance += load_double(part + PART_DISTANCE)
    store_double(table + TOP + 8 * row, np.nan if poisoned else top + shift)
    store_double(table + REFERENCE + 8 * row, m)
    store_double(table + POWER + 8 * row, power)
    store_double(table + REST + 8 * row, high)
    store_double(table + REST_LOW + 8 * row, low)
    store_double(table + APART + 8 * row, apart)
    store_double(table + SPREAD_MASS + 8 * row, mass)
    store_double(table + SPREAD_DISTANCE + 8 * row, distance)
    if plan.kind != INDEX_TARGETS:
        store_double(table + CLASS + 8 * row, chosen)
    return False


@inlined
def add_exactly(a, b):
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@routine
def finish_part(storage, plan, table, row, part, areas, area_bytes, outer, inner, first_class, n):
    """The results of one part of a row from its exponentials."""
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    size = itemsize(arithmetic)
    logits, mass, slopes = areas, areas + area_bytes, areas + 3 * area_bytes
    probabilities = areas + 4 * area_bytes
    n_vectors = vectors_of(storage, n)
    below = load_double(part + PART_POWER) - load_double(table + POWER + 8 * row)
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner + first_class * plan.out_class
    like = load(arithmetic, logits)
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
                scale_out(results, logits, out, n, inverse, inverse_low, plan.streaming)
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
    plain = not spread_wanted(plan) and not changed(plan)
    if plain and plan.out_class == itemsize(results) and n >= lanes(storage):
        scale_out(results, logits, out, n, scale, scale_low, plan.streaming)
        if chosen >= 0:
            store_one(results, out + plan.out_class * chosen, load_double(table + TARGET_GRADIENT + 8 * row))
        return
    scale_block(arithmetic, logits, logits, n_vectors, scale, scale_low)
    if spread_wanted(plan):
        subtract_mass(
            arithmetic, logits, mass, n_vectors, splat_like(like, load_double(table + SPREAD_SCALE + 8 * row))
        )
    if chosen >= 0:
        store_one(arithmetic, logits + size * chosen, load_double(table + TARGET_GRADIENT + 8 * row))
    if changed(plan):
        multiply(arithmetic, logits, slopes, n_vectors)
    store_part(results, logits, out, plan.out_class, n)


@routine
def zero_part(storage, plan, outer, inner, first_class, n):
    """The gradient (and the softmax) of a row that is ignored."""
    results = result_of(storage)
    place = plan.out + outer * plan.out_outer + inner * plan.out_inner + first_class * plan.out_class
    for c in range(n):
        store_one(results, place + plan.out_class * c, 0.0)
    if plan.softmax != 0:
        place = (
            plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner + first_class * plan.softmax_class
        )
        for c in range(n):
            store_one(results, place + plan.softmax_class * c, 0.0)


@routine
def row_tile(storage, target_storage, plan, scratch, outer, inner, count):
    """A batch of short rows, or one long row, from logits to results."""
    arithmetic = arithmetic_of(storage)
    table = scratch
    parts = scratch + TABLE_BYTES
    n_classes = plan.n_classes
    part_classes = PART_VECTORS * lanes(storage)
    n_parts = (n_classes + part_classes - 1) // part_classes
    parts_bytes = (n_parts * plan.tile_rows * PART_BYTES + 63) // 64 * 64
    # areas of all parts of all rows; one more vector, since the last of a part is filled up past its end
    part_bytes = VECTOR_BYTES * (min(PART_VECTORS, vectors_of(storage, n_classes)) + 1)
    area_bytes = part_bytes * n_parts * plan.tile_rows
    areas = parts + parts_bytes
    describe_rows(storage, plan, table, outer, inner, count)
    for row in range(count):
        store_double(table + SHIFT + 8 * row, 0.0)
        if plan.operation == LOSS and load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
            continue
        row_parts = parts + PART_BYTES * n_parts * row
        again = True
        while again:
            for i in range(n_parts):
                row_part(
                    storage,
                    target_storage,
                    plan,
                    table,
                    row,
                    row_parts + PART_BYTES * i,
                    areas + part_bytes * (n_parts * row + i),
                    area_bytes,
                    outer,
                    inner + row,
                    part_classes * i,
                    min(part_classes, n_classes - part_classes * i),
                )
            again = merge_parts(arithmetic, plan, table, row, row_parts, n_parts)
    finish_rows(storage, plan, table)
    if plan.operation == LOGSUMEXP or plan.operation == LOSS:
        store_row_values(storage, plan, table, table, outer, inner, count)
    if plan.out == 0:
        return
    for row in range(count):
        if plan.operation == LOSS and load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
            zero_part(storage, plan, outer, inner + row, word(0), n_classes)
            continue
        for i in range(n_parts):
            finish_part(
                storage,
                plan,
                table,
                row,
                parts + PART_BYTES * (n_parts * row + i),
                areas + part_bytes * (n_parts * row + i),
                area_bytes,
                outer,
                inner + row,
                part_classes * i,
                min(part_classes, n_classes - part_classes * i),
            )


@routine
def split_step(storage, target_storage, plan, scratch, unit, n_parts):
    """One step of the split walk. Units are rows in the phases DESCRIBE and MERGE, parts of rows in SUM_UP and FINISH."""
    arithmetic = arithmetic_of(storage)
    row = unit if plan.phase == DESCRIBE or plan.phase == MERGE else unit // n_parts
    outer = row // plan.n_inner
    inner = row - outer * plan.n_inner
    table = plan.row_tables + TABLE_BYTES * row
    parts = plan.row_parts + PART_BYTES * n_parts * row
    if plan.phase == DESCRIBE:
        start_block(arithmetic, table)
        describe_rows(storage, plan, table, outer, inner, word(1))
        store_double(table + AGAIN, 1.0)
        return
    ignored = plan.operation == LOSS and load_double(table + ROW_WEIGHT) == 0.0
    if plan.phase == MERGE:
        if load_double(table + AGAIN) == 0.0:
            return
        again = not ignored and merge_parts(arithmetic, plan, table, word(0), parts, n_parts)
        store_double(table + AGAIN, 1.0 if again else 0.0)
        if not again:
            finish_rows(storage, plan, table)
            if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                store_row_values(storage, plan, table, table, outer, inner, word(1))
            if plan.partials != 0:
                store_partial(arithmetic, plan, table, row)
        return
    i = unit - row * n_parts
    part_classes = PART_VECTORS * lanes(storage)
    first_class = part_classes * i
    n = min(part_classes, plan.n_classes - first_class)
    area_bytes = VECTOR_BYTES * (PART_VECTORS + 1)
    part = parts + PART_BYTES * i
    if ignored:
        if plan.phase == FINISH:
            zero_part(storage, plan, outer, inner, first_class, n)
        return
    if plan.phase == SUM_UP and load_double(table + AGAIN) == 0.0:
        return
    row_part(storage, target_storage, plan, table, word(0), part, scratch, area_bytes, outer, inner, first_class, n)
    if plan.phase == FINISH:
        finish_part(storage, plan, table, word(0), part, scratch, area_bytes, outer, inner, first_class, n)


@block_kernel
def row_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of tiles of rows; `scratch` is this thread's."""
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    if plan.phase != WHOLE_ROWS:
        part_classes = PART_VECTORS * lanes(storage)
        n_parts = (plan.n_classes + part_classes - 1) // part_classes
        for unit in range(first, last):
            split_step(storage, target_storage, plan, scratch, unit, n_parts)
        return 0
    tiles_per_outer = (plan.n_inner + plan.tile_rows - 1) // plan.tile_rows
    n_tiles = plan.n_outer * tiles_per_outer
    for block in range(first, last):
        start_block(arithmetic, scratch)
        first_tile = block * plan.tiles_per_block
        for tile in range(first_tile, min(first_tile + plan.tiles_per_block, n_tiles)):
            outer = tile // tiles_per_outer
            inner = (tile - outer * tiles_per_outer) * plan.tile_rows
            row_tile(storage, target_storage, plan, scratch, outer, inner, min(plan.tile_rows, plan.n_inner - inner))
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
