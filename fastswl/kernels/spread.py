"""Target mass on every class, and masked classes, in scratch memory.

`class_step` says how scratch memory is laid out: a tile has a vector a class and a row in a lane, a part of a row has its
classes in lanes.
"""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import settled
from fastswl.kernels.plan import PROBABILITY_TARGETS
from fastswl.simd import (
    VECTOR_BYTES,
    arithmetic_of,
    itemsize,
    lane_numbers,
    lanes,
    load,
    load_double,
    load_integer,
    load_one,
    same_arithmetic,
    select,
    store,
    store_one,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import accumulate


@routine
def fill_masked(storage, plan, block, value, class_step, outer, inner, first_class, n):
    """Put `value` at the masked ones of `n` classes of one row."""
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner + first_class * plan.mask_class
    for c in range(n):
        if load_integer(place + plan.mask_class * c, 8, False) == 0:
            store_one(storage, block + class_step * c, value)


@inlined
def fill_masked_of_tile(storage, plan, tile, value, outer, inner, count):
    """`fill_masked` of all rows of a tile."""
    for row in range(count):
        place = tile + itemsize(storage) * row
        fill_masked(storage, plan, place, value, word(VECTOR_BYTES), outer, inner + row, word(0), plan.n_classes)


@routine
def spread_unit(plan, outer, inner):
    """Smoothing of each class of a row: eps / (classes that are not masked)."""
    if plan.mask == 0:
        return plan.label_smoothing / plan.n_classes
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner
    left = 0
    for c in range(plan.n_classes):
        if load_integer(place + plan.mask_class * c, 8, False) != 0:
            left += 1
    return plan.label_smoothing / max(left, 1)


@routine
def spread_mass(storage, target_storage, plan, mass, class_step, outer, inner, first_class, n, unit):
    """The mass q of `n` classes of one row, one by one: w_c ((1 - eps) t_c + unit) of probability targets, w_c unit of
    index targets (less what stands at the target itself)."""
    t_place = plan.targets + outer * plan.targets_outer + inner * plan.targets_inner + first_class * plan.targets_class
    mask_place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner + first_class * plan.mask_class
    for c in range(n):
        q = unit
        if plan.mask != 0 and load_integer(mask_place + plan.mask_class * c, 8, False) == 0:
            q = 0.0
        if plan.kind == PROBABILITY_TARGETS:
            q += (1.0 - plan.label_smoothing) * load_one(target_storage, t_place + plan.targets_class * c)
        if plan.weight != 0:
            q *= load_double(plan.weight + 8 * (first_class + c))
        store_one(storage, mass + class_step * c, q)


@inlined
def vectors_serve(storage, target_storage, plan):
    """Whether the mass can be made a vector at a time: no mask, targets that are worked on in the type of the logits."""
    return plan.mask == 0 and (plan.kind != PROBABILITY_TARGETS or same_arithmetic(storage, target_storage))


@routine
def smooth_part(storage, plan, mass, first_class, n_vectors):
    """q = w ((1 - eps) t + unit) in place, lanes along the classes; nothing to do for plain targets."""
    if plan.label_smoothing == 0.0 and plan.weight == 0:
        return
    keep, unit = 1.0 - plan.label_smoothing, plan.label_smoothing / plan.n_classes
    weights = plan.weight_vector + itemsize(storage) * first_class
    for i in range(n_vectors):
        place = mass + VECTOR_BYTES * i
        q = load(storage, place) * keep + unit
        if plan.weight != 0:
            q = q * load(storage, weights + VECTOR_BYTES * i)
        store(storage, place, q)


@routine
def smooth_tile(storage, plan, mass):
    """The same for a tile, a lane a row."""
    if plan.label_smoothing == 0.0 and plan.weight == 0:
        return
    keep, unit = 1.0 - plan.label_smoothing, plan.label_smoothing / plan.n_classes
    for c in range(plan.n_classes):
        place = mass + VECTOR_BYTES * c
        q = load(storage, place) * keep + unit
        if plan.weight != 0:
            q = q * load_double(plan.weight + 8 * c)
        store(storage, place, q)


@routine
def even_distance_of_part(storage, plan, logits, low_parts, first_class, n, reference):
    """Sum of w (m - x) over the n classes of a part; inf where a class of some weight is -inf."""
    high = wide_zero(storage)
    low = wide_zero(storage)
    width = lanes(storage)
    weights = plan.weight_vector + itemsize(storage) * first_class
    for i in range((n + width - 1) // width):
        gap = reference - widen(load(storage, logits + VECTOR_BYTES * i))
        if low_parts != 0:
            gap = gap - widen(load(storage, low_parts + VECTOR_BYTES * i))
        if plan.weight != 0:
            w = widen(load(storage, weights + VECTOR_BYTES * i))
            gap = select(w == 0.0, wide_zero(storage), gap * w)
        if width * (i + 1) > n:
            gap = select(lane_numbers(storage) < float(n - width * i), gap, wide_zero(storage))
        high, low = accumulate(storage, high, low, gap)
    return settled(high, low)


@routine
def even_distance_of_tile(storage, plan, tile, low_parts, reference):
    """The same for all classes of a tile, a lane a row."""
    high = wide_zero(storage)
    low = wide_zero(storage)
    for c in range(plan.n_classes):
        gap = reference - widen(load(storage, tile + VECTOR_BYTES * c))
        if low_parts != 0:
            gap = gap - widen(load(storage, low_parts + VECTOR_BYTES * c))
        if plan.weight != 0:
            w = load_double(plan.weight + 8 * c)
            gap = gap * w
            if w == 0.0:
                gap = wide_zero(storage)
        high, low = accumulate(storage, high, low, gap)
    return settled(high, low)


@routine
def subtract_even_from_part(storage, plan, values, first_class, n_vectors, unit):
    """values - unit w, in place, lanes along the classes."""
    weights = plan.weight_vector + itemsize(storage) * first_class
    for i in range(n_vectors):
        place = values + VECTOR_BYTES * i
        taken = unit
        if plan.weight != 0:
            taken = unit * load(storage, weights + VECTOR_BYTES * i)
        store(storage, place, load(storage, place) - taken)


@routine
def subtract_even_from_tile(storage, plan, tile, unit):
    """The same for a tile, a lane a row."""
    for c in range(plan.n_classes):
        place = tile + VECTOR_BYTES * c
        taken = unit
        if plan.weight != 0:
            taken = unit * load_double(plan.weight + 8 * c)
        store(storage, place, load(storage, place) - taken)


@routine
def clear_where_infinite(storage, values, class_step, source, class_stride, n):
    """0 in `values` where the logits at `source` are -inf: what the smoothing of a class takes off the gradient is not felt there."""
    arithmetic = arithmetic_of(storage)
    for c in range(n):
        if load_one(storage, source + class_stride * c) == -np.inf:
            store_one(arithmetic, values + class_step * c, 0.0)
