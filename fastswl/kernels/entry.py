"""Small calls: one native function from Python's objects to a finished kernel, in this thread, holding the GIL.

All that does not change between calls of the same shapes stands in a plan that was made before; here the addresses are filled
in and what can differ between arrays of the same shape is looked at: alignment, write access, overlap. One block is run at once.
"""

import numpy as np
from numba import types

from fastswl.arguments import REFUSED
from fastswl.compilation import inlined, python_entry
from fastswl.kernels.plan import (
    BEHIND_PLAN,
    LOGITS_WORD,
    LOGSUMEXP,
    OUT_WORD,
    PARTIALS_WORD,
    PROBABILITY_TARGETS,
    ROW_FACTOR_WORD,
    ROW_VALUES_WORD,
    SOFTMAX_WORD,
    TARGETS_WORD,
    load_plan,
)
from fastswl.kernels.targets import INT64, load_index
from fastswl.simd import (
    ARRAY_ALIGNED,
    ARRAY_C_CONTIGUOUS,
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


@inlined
def readable(array):
    """Whether an array is aligned and contiguous."""
    return array_flags(array) & (ARRAY_ALIGNED | ARRAY_C_CONTIGUOUS) == ARRAY_ALIGNED | ARRAY_C_CONTIGUOUS


@inlined
def usable(array, extent, result):
    """Whether `result` (of `extent` bytes from its first element on) is a fit place for what comes from `array`."""
    apart = array_data(result) - array_data(array)
    return (
        readable(array)
        and readable(result)
        and array_flags(result) & ARRAY_WRITEABLE != 0
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


@inlined
def rows_that_count(plan, target):
    """How many rows the mean divides by; negative if a class index is out of range."""
    if plan.kind == PROBABILITY_TARGETS:
        return plan.n_inner
    if plan.index_code == INT64:
        return count_int64(target, plan.n_inner, plan.ignore_index, plan.n_classes)
    counted = 0
    for row in range(plan.n_inner):
        chosen = load_index(plan.index_code, target + plan.targets_inner * row)
        if chosen != plan.ignore_index:
            if chosen < 0 or chosen >= plan.n_classes:
                return -1
            counted += 1
    return counted


@inlined
def apart(first, first_bytes, second, second_bytes):
    """Whether two pieces of memory share nothing."""
    return first + first_bytes <= second or second + second_bytes <= first


@python_entry(_WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64)
def small_softmax(kernel, words, scratch, extent, x, out):
    """Softmax, log_softmax or (into a new array) logsumexp of contiguous arrays of one shape and dtype; 0, or REFUSED.

    Without `kernel` only the plan is filled in.
    """
    if load_plan(words).operation == LOGSUMEXP:
        if not readable(x) or not readable(out):
            return REFUSED
        store_int64(words + ROW_VALUES_WORD, array_data(out))
    else:
        if not usable(x, extent, out):
            return REFUSED
        store_int64(words + OUT_WORD, array_data(out))
    store_int64(words + LOGITS_WORD, array_data(x))
    if kernel != 0:
        call_kernel(kernel, words, scratch, 0, 1)
    return 0.0


@python_entry(
    _WORD, _WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64
)
def small_loss(kernel, words, scratch, extent, is_mean, logits, targets, grad, probabilities):
    """Mean or sum of the loss; the gradient and the softmax, where the plan has these (else any array stands for them).

    Without `kernel` only the plan is filled in, and the divisor comes back. REFUSED where an index is out of range, the mean has
    nothing to divide by or an array can't be used.
    """
    plan = load_plan(words)
    target = array_data(targets)
    if not readable(targets):
        return REFUSED
    counted = rows_that_count(plan, target)
    if counted < 0 or (is_mean != 0 and counted == 0):
        return REFUSED
    divisor = float(counted) if is_mean != 0 else 1.0
    target_bytes = plan.targets_inner * plan.n_inner
    if plan.out_class != 0:
        if not usable(logits, extent, grad) or not apart(target, target_bytes, array_data(grad), extent):
            return REFUSED
        store_int64(words + OUT_WORD, array_data(grad))
    elif not readable(logits):
        return REFUSED
    if plan.softmax_class != 0:
        place = array_data(probabilities)
        if not readable(probabilities):
            return REFUSED
        if not apart(array_data(logits), extent, place, extent) or not apart(target, target_bytes, place, extent):
            return REFUSED
        store_int64(words + SOFTMAX_WORD, place)
    store_int64(words + LOGITS_WORD, array_data(logits))
    store_int64(words + TARGETS_WORD, target)
    store_int64(words + PARTIALS_WORD, words + BEHIND_PLAN)
    store_double(words + ROW_FACTOR_WORD, 1.0 / divisor * plan.logit_scale)
    if kernel == 0:
        return divisor
    call_kernel(kernel, words, scratch, 0, 1)
    return (load_double(words + BEHIND_PLAN) + load_double(words + BEHIND_PLAN + 8)) / divisor
