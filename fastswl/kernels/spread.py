"""Target mass on every class, and masked classes: filled into scratch memory row by row, for any walk.

`lane_step` and `class_step` say how scratch memory is laid out: a tile has a row in a lane, a row block has classes in lanes.
"""

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.plan import PROBABILITY_TARGETS
from fastswl.simd import load_double, load_integer, load_one, store_one


@routine
def hide_masked_classes(storage, plan, logits, low_parts, to_slopes, class_step, outer, inner, first_class, n):
    """Masked classes of one row become -inf, whatever they were; where logits were changed (`low_parts` is not 0) their slopes,
    `to_slopes` bytes on, become 0."""
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner + first_class * plan.mask_class
    for c in range(n):
        if load_integer(place + plan.mask_class * c, 8, False) == 0:
            store_one(storage, logits + class_step * c, -np.inf)
            if low_parts != 0:
                store_one(storage, logits + to_slopes + class_step * c, 0.0)


@routine
def classes_left(plan, outer, inner):
    """How many classes of a row are not masked."""
    if plan.mask == 0:
        return plan.n_classes
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner
    left = 0
    for c in range(plan.n_classes):
        if load_integer(place + plan.mask_class * c, 8, False) != 0:
            left += 1
    return left


@routine
def spread_mass(storage, target_storage, plan, mass, class_step, outer, inner, first_class, n, unit):
    """The mass q of `n` classes of one row: w_c ((1 - eps) t_c + unit) of probability targets, w_c unit of index targets
    (less what stands at the target itself); unit = eps / (classes left)."""
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
