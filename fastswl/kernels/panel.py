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
    PROBABILITY_TARGETS,
    SOFTMAX,
    load_plan,
)
from fastswl.kernels.rows import (
    APART,
    APART_EXP,
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
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    columns_in_group,
    itemsize,
    lanes,
    load,
    load_double,
    load_int64,
    load_one,
    load_wide,
    narrow,
    result_of,
    select,
    splat_like,
    store,
    store_double,
    store_int64,
    store_one,
    store_wide,
    transpose_in,
    transpose_out,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import exp_reference, nearest_power

#: a logit's distance from 0 from which on the row's maximum is subtracted first
FAR_32, FAR_64 = 1024.0, 4096.0


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
    else:
        size = itemsize(arithmetic)
        for c in range(n_classes):
            for row in range(count):
                value = load_one(arithmetic, tile + VECTOR_BYTES * c + size * row)
                store_one(storage, target + class_stride * c + row_stride * row, value)


@routine
def panel_tile(storage, target_storage, plan, scratch, outer, inner, count):
    """One tile, from its logits to its results."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    n_classes = plan.n_classes
    table = scratch
    tile = scratch + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    mass, low_area, slopes = tile + area, tile + 2 * area, tile + 3 * area
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner
    softmax_out = plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner

    active = describe_rows(storage, plan, table, outer, inner, count)
    source = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner
    load_tile(storage, tile, source, plan.logits_inner, plan.logits_class, n_classes, count)
    if active < count:
        # an ignored row is as if it were 0
        for row in range(count):
            if load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
                for c in range(n_classes):
                    store_one(arithmetic, tile + VECTOR_BYTES * c + size * row, 0.0)
    transformed = plan.softcap != 0.0 or plan.logit_scale != 1.0
    low_parts = 0
    if transformed:
        low_parts = low_area
        cap_and_scale(arithmetic, tile, low_parts, slopes, n_classes, plan.softcap, plan.logit_scale)
    if plan.mask != 0:
        for row in range(count):
            hide_masked_classes(
                arithmetic,
                plan,
                tile + size * row,
                low_parts,
                slopes - tile,
                word(VECTOR_BYTES),
                outer,
                inner + row,
                word(0),
                n_classes,
            )

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

    spread = plan.kind == PROBABILITY_TARGETS or (plan.kind == INDEX_TARGETS and plan.label_smoothing != 0.0)
    if spread:
        for row in range(count):
            unit = plan.label_smoothing / max(classes_left(plan, outer, inner + row), 1)
            place = mass + size * row
            spread_mass(
                arithmetic,
                target_storage,
                plan,
                place,
                word(VECTOR_BYTES),
                outer,
                inner + row,
                word(0),
                n_classes,
                unit,
            )
        q_sum, distance = mass_and_distance(arithmetic, tile, low_parts, mass, n_classes, widen(m))
        store_wide(arithmetic, table + SPREAD_MASS, q_sum)
        store_wide(arithmetic, table + SPREAD_DISTANCE, distance)

    leave_out(arithmetic, plan, table, tile, low_parts, mass, count)
    magic, lowest = exp_reference(arithmetic, power)
    keep_logits = plan.operation == LOG_SOFTMAX
    # the next tile, where rows follow each other
    ahead = source + plan.logits_inner * lanes(storage)
    exponentials = mass if keep_logits else tile
    rest, rest_low = exp_and_sum(arithmetic, tile, low_parts, exponentials, n_classes, magic, lowest, ahead)
    store_wide(arithmetic, table + REST, rest)
    store_wide(arithmetic, table + REST_LOW, rest_low)
    finish_rows(storage, plan, table)
    if plan.operation == LOGSUMEXP or plan.operation == LOSS:
        store_row_values(storage, plan, table, outer, inner, count)
    if plan.out == 0:
        return

    results = result_of(storage)
    if plan.operation == SOFTMAX:
        inverse, inverse_low = two_parts(arithmetic, table, INVERSE, INVERSE_LOW)
        scale_block(arithmetic, tile, tile, n_classes, inverse, inverse_low)
    elif plan.operation == LOG_SOFTMAX:
        put_back(arithmetic, table, tile, APART, count)
        log_sum = narrow(arithmetic, load_wide(arithmetic, table + LOG_SUM))
        shift_logarithms(arithmetic, tile, n_classes, m, log_sum)
    else:
        put_back(arithmetic, table, tile, APART_EXP, count)
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
        scale_block(arithmetic, tile, tile, n_classes, scale, scale_low)
        if spread:
            factor = narrow(arithmetic, load_wide(arithmetic, table + SPREAD_SCALE))
            subtract_mass(arithmetic, tile, mass, n_classes, factor)
        if plan.kind == INDEX_TARGETS:
            put_back(arithmetic, table, tile, TARGET_GRADIENT, count)
        if transformed:
            multiply(arithmetic, tile, slopes, n_classes)
    store_tile(results, tile, out, plan.out_inner, plan.out_class, n_classes, count)


@routine
def leave_out(storage, plan, table, tile, low_parts, mass, count):
    """Take one class of each row out of its sum: the target, or the largest where there is no target."""
    size = itemsize(storage)
    n_classes = plan.n_classes
    for row in range(count):
        apart = -np.inf
        if plan.operation != SOFTMAX:
            column = tile + size * row
            if plan.kind != INDEX_TARGETS:
                store_int64(
                    table + CLASS + 8 * row,
                    first_equal(storage, column, n_classes, load_double(table + REFERENCE + 8 * row)),
                )
            chosen = load_int64(table + CLASS + 8 * row)
            if chosen >= 0:
                apart = load_one(storage, column + VECTOR_BYTES * chosen)
                store_one(storage, column + VECTOR_BYTES * chosen, -np.inf)
                if low_parts != 0:
                    apart += load_one(storage, low_parts + VECTOR_BYTES * chosen + size * row)
                if plan.label_smoothing != 0.0:
                    at_target = load_one(storage, mass + VECTOR_BYTES * chosen + size * row)
                    store_double(table + SPREAD_AT_TARGET + 8 * row, at_target)
        store_double(table + APART + 8 * row, apart)


@routine
def first_equal(storage, column, n_classes, value):
    """The first class of a lane whose logit is `value`, -1 where there is none."""
    for c in range(n_classes):
        if load_one(storage, column + VECTOR_BYTES * c) == value:
            return c
    return -1


@routine
def put_back(storage, table, tile, name, count):
    """Put a row's number of the table at the class that was left out."""
    for row in range(count):
        chosen = load_int64(table + CLASS + 8 * row)
        if chosen >= 0:
            store_one(
                storage, tile + VECTOR_BYTES * chosen + itemsize(storage) * row, load_double(table + name + 8 * row)
            )


@inlined
def two_parts(storage, table, high, low):
    return narrow(storage, load_wide(storage, table + high)), narrow(storage, load_wide(storage, table + low))


@block_kernel
def panel_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of tiles; `scratch` is this thread's."""
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    rows = lanes(storage)
    tiles_per_outer = (plan.n_inner + rows - 1) // rows
    n_tiles = plan.n_outer * tiles_per_outer
    for block in range(first, last):
        start_block(arithmetic, scratch)
        first_tile = block * plan.tiles_per_block
        for tile in range(first_tile, min(first_tile + plan.tiles_per_block, n_tiles)):
            outer = tile // tiles_per_outer
            inner = (tile - outer * tiles_per_outer) * rows
            panel_tile(storage, target_storage, plan, scratch, outer, inner, min(rows, plan.n_inner - inner))
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
