"""Small calls: one native function from Python's objects to a finished kernel, in this thread, holding the GIL.

All that does not change between calls of the same shapes stands in a plan that was made before; here the addresses are filled
in and what can differ between arrays of the same shape is looked at: alignment, write access, overlap. All rows are one block.
"""

import numpy as np
from numba import types

from fastswl.compilation import inlined, python_entry
from fastswl.kernels.plan import LOGITS_WORD, OUT_WORD, ROW_FACTOR_WORD, TARGETS_WORD, load_plan
from fastswl.kernels.targets import load_index
from fastswl.simd import (
    ARRAY_ALIGNED,
    ARRAY_OBJECT,
    ARRAY_WRITEABLE,
    array_data,
    array_flags,
    call_kernel,
    load_double,
    load_int64,
    store_double,
    store_int64,
)

_WORD = types.int64
#: what the entries return instead of a result: take the way of all checks
REFUSED = -1.0


@inlined
def usable(array, extent, result):
    """Whether `result` (of `extent` bytes from its first element on) is a fit place for what comes from `array`."""
    apart = array_data(result) - array_data(array)
    return (
        array_flags(array) & ARRAY_ALIGNED != 0
        and array_flags(result) & (ARRAY_ALIGNED | ARRAY_WRITEABLE) == ARRAY_ALIGNED | ARRAY_WRITEABLE
        and (apart == 0 or apart >= extent or -apart >= extent)
    )


@inlined
def count_int64(target, n_rows, ignore_index, n_classes):
    """How many of `n_rows` class indices count; negative if one is out of range. Simple enough for LLVM's vectoriser."""
    counted = 0
    wrong = 0
    for row in range(n_rows):
        chosen = load_int64(target + 8 * row)
        ignored = chosen == ignore_index
        # an unsigned comparison: negative indices are large
        wrong += (not ignored) & (np.uint64(chosen) >= np.uint64(n_classes))
        counted += not ignored
    return counted if wrong == 0 else -1


@python_entry(_WORD, _WORD, _WORD, _WORD, returns=_WORD, nogil=True)
def run_serial(kernel, plan, scratch, n_blocks):
    """All blocks of a kernel in this thread, the GIL released."""
    return call_kernel(kernel, plan, scratch, 0, n_blocks)


@python_entry(_WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64)
def small_softmax(kernel, words, scratch, extent, x, out):
    """Softmax or log_softmax of contiguous arrays of one shape and dtype; 0, or REFUSED."""
    if not usable(x, extent, out):
        return REFUSED
    store_int64(words + LOGITS_WORD, array_data(x))
    store_int64(words + OUT_WORD, array_data(out))
    call_kernel(kernel, words, scratch, 0, 1)
    return 0.0


@python_entry(_WORD, _WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64)
def small_loss(kernel, words, scratch, extent, is_mean, logits, targets, grad):
    """Mean or sum of the loss of class indices, and the gradient unless `grad` is `logits` and the plan has none.

    REFUSED where an index is out of range, or the mean has nothing to divide by.
    """
    plan = load_plan(words)
    target = array_data(targets)
    if array_flags(targets) & ARRAY_ALIGNED == 0:
        return REFUSED
    counted = 0
    if plan.targets_inner == 8:
        counted = count_int64(target, plan.n_inner, plan.ignore_index, plan.n_classes)
        if counted < 0:
            return REFUSED
    else:
        for row in range(plan.n_inner):
            chosen = load_index(plan.index_code, target + plan.targets_inner * row)
            if chosen != plan.ignore_index:
                if chosen < 0 or chosen >= plan.n_classes:
                    return REFUSED
                counted += 1
    if plan.out_class != 0:
        behind = target - array_data(grad)
        if not usable(logits, extent, grad) or (behind < extent and -behind < plan.targets_inner * plan.n_inner):
            return REFUSED
        store_int64(words + OUT_WORD, array_data(grad))
    elif array_flags(logits) & ARRAY_ALIGNED == 0:
        return REFUSED
    divisor = 1.0
    if is_mean != 0:
        if counted == 0:
            return REFUSED
        divisor = float(counted)
    store_int64(words + LOGITS_WORD, array_data(logits))
    store_int64(words + TARGETS_WORD, target)
    store_double(words + ROW_FACTOR_WORD, 1.0 / divisor)
    call_kernel(kernel, words, scratch, 0, 1)
    return (load_double(plan.partials) + load_double(plan.partials + 8)) / divisor
