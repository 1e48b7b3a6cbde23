"""Tiles of rows with all their classes in scratch memory: one vector a class, one lane a row.

Serves rows of few classes (the panel walk: the tile is transposed on its way in and out) and class axes that are not the
innermost (the strided walk: neighbouring rows lie side by side and are loaded as they are).
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
    spread_evenly,
    spread_wanted,
)
from fastswl.kernels.rows import (
    APART,
    APART_EXP,
    APART_LOW,
    CLASS,
    FAR_32,
    FAR_64,
    INVERSE,
    INVERSE_LOW,
    LOG_SUM,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SCALE,
    SCALE_LOW,
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
from fastswl.kernels.spread import (
    clear_where_infinite,
    even_distance_of_tile,
    fill_masked_of_tile,
    smooth_tile,
    spread_mass,
    spread_unit,
    subtract_even_from_tile,
    vectors_serve,
)
from fastswl.kernels.stream import LINE_BYTES, flush
from fastswl.simd import (
    VECTOR_BYTES,
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    columns_in_group,
    fma,
    interleave,
    itemsize,
    lanes,
    load,
    load_double,
    load_one,
    load_wide,
    narrow,
    result_of,
    select,
    separate,
    splat_like,
    store,
    store_double,
    store_one,
    store_wide,
    transpose_in,
    transpose_out,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import exp_reference, nearest_power

#: classes up to which a row's own class is found by comparing with every class (a vector of rows at a time), not by row
COMPARED_CLASSES = 32
#: classes up to which tiles of rows that lie side by side are loaded and stored one after the other (10: 16.6 ms, together 18.5)
SEPARATE_CLASSES = 16


@routine
def load_tile(storage, tile, source, row_stride, class_stride, n_classes, count):
    """Bring `count` rows of all classes into the tile, in the arithmetic type; lanes without a row are 0."""
    arithmetic = arithmetic_of(storage)
    group = columns_in_group(storage)
    full = count == lanes(storage)
    if full and row_stride == itemsize(storage):
        for c in range(n_classes):
            store(arithmetic, tile + VECTOR_BYTES * c, load(storage, source + class_stride * c))
    elif full and class_stride == itemsize(storage) and n_classes >= group:
        for first in range(0, n_classes, group):
            # the last group overlaps the one before
            c = min(first, n_classes - group)
            transpose_in(storage, source + class_stride * c, row_stride, tile + VECTOR_BYTES * c)
    elif full and class_stride == itemsize(storage) and row_stride == class_stride * n_classes and n_classes > 1:
        if n_classes == 2:
            separate(storage, source, tile, 2)
        else:
            separate(storage, source, tile, 3)
    else:
        size = itemsize(arithmetic)
        for c in range(n_classes):
            store(arithmetic, tile + VECTOR_BYTES * c, narrow(arithmetic, wide_zero(arithmetic)))
            for row in range(count):
                value = load_one(storage, source + class_stride * c + row_stride * row)
                store_one(arithmetic, tile + VECTOR_BYTES * c + size * row, value)


@routine
def store_tile(storage, tile, target, row_stride, class_stride, n_classes, count):
    """The reverse of `load_tile`."""
    arithmetic = arithmetic_of(storage)
    group = columns_in_group(storage)
    full = count == lanes(storage)
    if full and row_stride == itemsize(storage):
        for c in range(n_classes):
            store(storage, target + class_stride * c, load(arithmetic, tile + VECTOR_BYTES * c))
    elif full and class_stride == itemsize(storage) and n_classes >= group:
        for first in range(0, n_classes, group):
            c = min(first, n_classes - group)
            transpose_out(storage, tile + VECTOR_BYTES * c, target + class_stride * c, row_stride)
    elif full and class_stride == itemsize(storage) and row_stride == class_stride * n_classes and n_classes > 1:
        if n_classes == 2:
            interleave(storage, tile, target, 2)
        else:
            interleave(storage, tile, target, 3)
    else:
        size = itemsize(arithmetic)
        for c in range(n_classes):
            for row in range(count):
                value = load_one(arithmetic, tile + VECTOR_BYTES * c + size * row)
                store_one(storage, target + class_stride * c + row_stride * row, value)


@routine
def load_together(storage, plan, table, tiles, source):
    """`load_tile` of whole tiles of rows that lie side by side, all that is near of one class before the next: classes that lie a
    power of two apart share a few sets of a cache, which would lose the neighbours of a line before they are used (8 x 21 x
    256 x 256: 7.6 to 6.6 ms)."""
    arithmetic = arithmetic_of(storage)
    for c in range(plan.n_classes):
        place = source + plan.logits_class * c
        for k in range(tiles):
            tile = table + plan.tile_bytes * k + TABLE_BYTES
            store(arithmetic, tile + VECTOR_BYTES * c, load(storage, place + itemsize(storage) * lanes(storage) * k))


@routine
def store_together(storage, plan, table, tiles, target):
    """The reverse of `load_together`; `storage` is that of the results."""
    arithmetic = arithmetic_of(storage)
    for c in range(plan.n_classes):
        place = target + plan.out_class * c
        for k in range(tiles):
            e = load(arithmetic, table + plan.tile_bytes * k + TABLE_BYTES + VECTOR_BYTES * c)
            store(storage, place + itemsize(storage) * lanes(storage) * k, e)


@routine
def sum_up_tile(storage, target_storage, plan, table, outer, inner, count, together):
    """From the logits of a tile to its exponentials and their sums; `table` and the tile's areas lie end to end.

    Areas: logits then exponentials; mass (log_softmax: exponentials); low parts of changed logits; slopes of the change;
    softmax where it is wanted beside the gradient. With `together` the logits are in the tile.
    """
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    n_classes = plan.n_classes
    tile = table + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    mass, low_area, slopes = tile + area, tile + 2 * area, tile + 3 * area

    active = describe_rows(storage, plan, table, outer, inner, count)
    source = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner
    if not together:
        load_tile(storage, tile, source, plan.logits_inner, plan.logits_class, n_classes, count)
    if active < count:
        # an ignored row is as if it were 0
        for row in range(count):
            if load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
                for c in range(n_classes):
                    store_one(arithmetic, tile + VECTOR_BYTES * c + size * row, 0.0)
    low_parts = 0
    if changed(plan):
        low_parts = low_area
        cap_and_scale(arithmetic, tile, low_parts, slopes, n_classes, plan.softcap, plan.logit_scale)
    if plan.mask != 0:
        fill_masked_of_tile(arithmetic, plan, tile, -np.inf, outer, inner, count)

    top = block_maximum(arithmetic, tile, n_classes)
    if any_lane(top == np.inf):
        top = nan_where_any(arithmetic, tile, n_classes, top)
    store_wide(arithmetic, table + TOP, widen(top))
    m = select(absolute(top) < np.inf, top, splat_like(top, 0.0))
    far = absolute(m) >= by_type(arithmetic, FAR_32, FAR_64)
    if any_lane(far):
        shift = select(far, m, splat_like(m, 0.0))
        subtract(arithmetic, tile, n_classes, shift)
        m = m - shift
    store_wide(arithmetic, table + REFERENCE, widen(m))
    power = nearest_power(arithmetic, m)
    store_wide(arithmetic, table + POWER, widen(power))

    if plan.operation != SOFTMAX and plan.kind != INDEX_TARGETS:
        find_largest(arithmetic, table, tile, low_parts, n_classes)
    if spread_evenly(plan):
        unit = plan.label_smoothing / n_classes
        even = even_distance_of_tile(arithmetic, plan, tile, low_parts, widen(m))
        store_wide(arithmetic, table + SPREAD_DISTANCE, even * unit)
        store_wide(arithmetic, table + SPREAD_MASS, splat_like(even, unit * plan.weight_total))
    elif spread_wanted(plan):
        make_mass_of_tile(arithmetic, target_storage, plan, mass, outer, inner, count)
        m_low = load_wide(arithmetic, table + REFERENCE_LOW)
        q_sum, distance = mass_and_distance(arithmetic, tile, low_parts, mass, n_classes, widen(m), m_low)
        store_wide(arithmetic, table + SPREAD_MASS, q_sum)
        store_wide(arithmetic, table + SPREAD_DISTANCE, distance)

    if plan.operation != SOFTMAX:
        leave_out(arithmetic, plan, table, tile, low_parts, mass, count)
    magic, lowest = exp_reference(arithmetic, power)
    keep_logits = plan.operation == LOG_SOFTMAX
    # the next tile, where rows follow each other
    ahead = source + plan.logits_inner * lanes(storage)
    exponentials = mass if keep_logits else tile
    zero = wide_zero(arithmetic)
    rest, rest_low = exp_and_sum(
        arithmetic,
        tile,
        low_parts,
        exponentials,
        word(0),
        n_classes,
        n_classes,
        word(-1),
        magic,
        lowest,
        ahead,
        zero,
        zero,
    )
    store_wide(arithmetic, table + REST, rest)
    store_wide(arithmetic, table + REST_LOW, rest_low)


@routine
def make_mass_of_tile(storage, target_storage, plan, mass, outer, inner, count):
    """The target mass of every class of every row."""
    place = plan.targets + outer * plan.targets_outer + inner * plan.targets_inner
    if vectors_serve(storage, target_storage, plan):
        load_tile(target_storage, mass, place, plan.targets_inner, plan.targets_class, plan.n_classes, count)
        smooth_tile(storage, plan, mass)
        return
    for row in range(count):
        unit = spread_unit(plan, outer, inner + row)
        row_mass = mass + itemsize(storage) * row
        spread_mass(
            storage, target_storage, plan, row_mass, word(VECTOR_BYTES), outer, inner + row, word(0),
            plan.n_classes, unit,
        )  # fmt: skip


@routine
def finish_tile(storage, plan, table, buffer, outer, inner, count, first, last, together):
    """From the exponentials and the factors of each row to the results, by way of `buffer` where it is not 0; with `together`
    they stay in the tile."""
    arithmetic = arithmetic_of(storage)
    n_classes = plan.n_classes
    tile = table + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    mass, slopes = tile + area, tile + 3 * area
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner
    softmax_out = plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner
    results = result_of(storage)
    if plan.operation == SOFTMAX:
        inverse, inverse_low = two_parts(arithmetic, table, INVERSE, INVERSE_LOW)
        scale_block(arithmetic, tile, tile, n_classes, inverse, inverse_low)
    elif plan.operation == LOG_SOFTMAX:
        put_back(arithmetic, table, tile, table + APART, n_classes, count)
        log_sum = narrow(arithmetic, load_wide(arithmetic, table + LOG_SUM))
        m = narrow(arithmetic, load_wide(arithmetic, table + REFERENCE))
        shift_logarithms(arithmetic, tile, n_classes, m, log_sum)
    else:
        if plan.softmax != 0 or plan.kind != INDEX_TARGETS:
            put_back(arithmetic, table, tile, table + APART_EXP, n_classes, count)
        if plan.softmax != 0:
            inverse, inverse_low = two_parts(arithmetic, table, INVERSE, INVERSE_LOW)
            probabilities = slopes + area
            scale_block(arithmetic, tile, probabilities, n_classes, inverse, inverse_low)
            store_tile(
                results,
                probabilities,
                softmax_out,
                plan.softmax_inner,
                plan.softmax_class,
                n_classes,
                count,
            )
        scale, scale_low = two_parts(arithmetic, table, SCALE, SCALE_LOW)
        if n_classes <= COMPARED_CLASSES and not spread_wanted(plan):
            index, at_target = two_parts(arithmetic, table, CLASS, TARGET_GRADIENT)
            scale_and_place(arithmetic, tile, n_classes, scale, scale_low, index, at_target)
        else:
            scale_block(arithmetic, tile, tile, n_classes, scale, scale_low)
        factor = narrow(arithmetic, load_wide(arithmetic, table + SPREAD_SCALE))
        if spread_evenly(plan):
            beta = load_wide(arithmetic, table + SPREAD_SCALE) * (plan.label_smoothing / n_classes)
            subtract_even_from_tile(arithmetic, plan, tile, narrow(arithmetic, beta))
            distance = load_wide(arithmetic, table + SPREAD_DISTANCE)
            if any_lane(distance == np.inf):
                clear_infinite_of_tile(storage, plan, table, tile, outer, inner, count)
        elif spread_wanted(plan):
            subtract_mass(arithmetic, tile, mass, n_classes, factor)
        if plan.kind == INDEX_TARGETS and (n_classes > COMPARED_CLASSES or spread_wanted(plan)):
            put_back(arithmetic, table, tile, table + TARGET_GRADIENT, n_classes, count)
        if changed(plan):
            multiply(arithmetic, tile, slopes, n_classes)
        if plan.mask != 0:
            fill_masked_of_tile(arithmetic, plan, tile, 0.0, outer, inner, count)
    if together:
        return
    if buffer == 0:
        store_tile(results, tile, out, plan.out_inner, plan.out_class, n_classes, count)
    else:
        store_tile(results, tile, buffer + out % LINE_BYTES, plan.out_inner, plan.out_class, n_classes, count)
        flush(results, buffer, out, n_classes * count, first, last)


@routine
def clear_infinite_of_tile(storage, plan, table, tile, outer, inner, count):
    """`clear_where_infinite` of the rows of a tile that have mass at -inf."""
    size = itemsize(arithmetic_of(storage))
    for row in range(count):
        if load_double(table + SPREAD_DISTANCE + 8 * row) == np.inf:
            place = plan.logits + outer * plan.logits_outer + (inner + row) * plan.logits_inner
            clear_where_infinite(
                storage, tile + size * row, word(VECTOR_BYTES), place, plan.logits_class, plan.n_classes
            )


@routine
def leave_out(storage, plan, table, tile, low_parts, mass, count):
    """Take one class of each row out of its sum: the target, or the largest where there is no target."""
    size = itemsize(storage)
    n_classes = plan.n_classes
    if n_classes <= COMPARED_CLASSES and low_parts == 0 and plan.label_smoothing == 0.0:
        index = narrow(storage, load_wide(storage, table + CLASS))
        minus_infinity = splat_like(index, -np.inf)
        apart = minus_infinity
        for c in range(n_classes):
            place = tile + VECTOR_BYTES * c
            x = load(storage, place)
            here = index == c
            apart = select(here, x, apart)
            store(storage, place, select(here, minus_infinity, x))
        store_wide(storage, table + APART, widen(apart))
        return
    for row in range(count):
        apart = -np.inf
        store_double(table + APART_LOW + 8 * row, 0.0)
        chosen = int(load_double(table + CLASS + 8 * row))
        if chosen >= 0:
            place = tile + VECTOR_BYTES * chosen + size * row
            apart = np.float64(load_one(storage, place))
            store_one(storage, place, -np.inf)
            if low_parts != 0 and apart != -np.inf:
                low = load_one(storage, low_parts - tile + place)
                whole = apart + low
                store_double(table + APART_LOW + 8 * row, (apart - whole) + low)
                apart = whole
            if spread_evenly(plan):
                class_weight = 1.0
                if plan.weight != 0:
                    class_weight = load_double(plan.weight + 8 * chosen)
                store_double(table + SPREAD_AT_TARGET + 8 * row, plan.label_smoothing / n_classes * class_weight)
            elif plan.label_smoothing != 0.0:
                store_double(table + SPREAD_AT_TARGET + 8 * row, load_one(storage, mass - tile + place))
        store_double(table + APART + 8 * row, apart)


@routine
def find_largest(storage, table, tile, low_parts, n_classes):
    """The first class of each row whose logit is the reference, and the low part of that logit, into the table; -1 where there
    is none."""
    reference = narrow(storage, load_wide(storage, table + REFERENCE))
    index = splat_like(reference, -1.0)
    low = splat_like(reference, 0.0)
    for i in range(n_classes):
        c = n_classes - 1 - i
        here = load(storage, tile + VECTOR_BYTES * c) == reference
        index = select(here, splat_like(index, c), index)
        if low_parts != 0:
            low = select(here, load(storage, low_parts + VECTOR_BYTES * c), low)
    store_wide(storage, table + CLASS, widen(index))
    store_wide(storage, table + REFERENCE_LOW, widen(low))


@routine
def scale_and_place(storage, tile, n_classes, scale, scale_low, index, at_target):
    """`scale_block`, and the gradient at the class that was left out."""
    for c in range(n_classes):
        place = tile + VECTOR_BYTES * c
        e = load(storage, place)
        store(storage, place, select(index == c, at_target, fma(e, scale, e * scale_low)))


@routine
def put_back(storage, table, tile, value, n_classes, count):
    """Put a row's number (the line `value` of the table) at the class that was left out."""
    if n_classes <= COMPARED_CLASSES:
        index = narrow(storage, load_wide(storage, table + CLASS))
        number = narrow(storage, load_wide(storage, value))
        for c in range(n_classes):
            place = tile + VECTOR_BYTES * c
            store(storage, place, select(index == c, number, load(storage, place)))
        return
    for row in range(count):
        chosen = int(load_double(table + CLASS + 8 * row))
        if chosen >= 0:
            store_one(storage, tile + VECTOR_BYTES * chosen + itemsize(storage) * row, load_double(value + 8 * row))


@inlined
def two_parts(storage, table, high, low):
    return narrow(storage, load_wide(storage, table + high)), narrow(storage, load_wide(storage, table + low))


@block_kernel
def panel_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of steps of a few tiles; `scratch` is this thread's.

    The tiles of a step go through each stage together: the stages of one tile are chains of operations that wait for each
    other, those of several fill the gaps (C = 10: 1.63 to 1.2 ns an element for loss and gradient).
    """
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    rows = lanes(storage)
    step_rows = plan.tile_rows
    steps_per_outer = (plan.n_inner + step_rows - 1) // step_rows
    n_steps = plan.n_outer * steps_per_outer
    tile_bytes = plan.tile_bytes
    buffer = scratch + plan.line_buffer if plan.line_buffer != 0 else 0
    for block in range(first, last):
        for table in range(scratch, scratch + tile_bytes * (step_rows // rows), tile_bytes):
            start_block(arithmetic, table)
        first_step = block * plan.tiles_per_block
        last_step = min(first_step + plan.tiles_per_block, n_steps)
        for step in range(first_step, last_step):
            outer = step // steps_per_outer
            inner = (step - outer * steps_per_outer) * step_rows
            end = min(inner + step_rows, plan.n_inner)
            # (only a whole step of several tiles)
            whole = step_rows > rows and end - inner == step_rows and plan.n_classes > SEPARATE_CLASSES
            together = whole and plan.logits_inner == itemsize(storage)
            if together:
                source = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner
                load_together(storage, plan, scratch, step_rows // rows, source)
            table = scratch
            for row in range(inner, end, rows):
                sum_up_tile(storage, target_storage, plan, table, outer, row, min(rows, end - row), together)
                table += tile_bytes
            table = scratch
            for _ in range(inner, end, rows):
                finish_rows(storage, plan, table)
                table += tile_bytes
            if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                table = scratch
                for row in range(inner, end, rows):
                    store_row_values(storage, plan, table, scratch, outer, row, min(rows, end - row))
                    table += tile_bytes
            if plan.out != 0:
                out_together = whole and plan.out_inner == itemsize(result_of(storage))
                table = scratch
                for row in range(inner, end, rows):
                    count = min(rows, end - row)
                    is_first = step == first_step and row == inner
                    is_last = step == last_step - 1 and row + count == end
                    finish_tile(storage, plan, table, buffer, outer, row, count, is_first, is_last, out_together)
                    table += tile_bytes
                if out_together:
                    out = plan.out + outer * plan.out_outer + inner * plan.out_inner
                    store_together(result_of(storage), plan, scratch, step_rows // rows, out)
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
