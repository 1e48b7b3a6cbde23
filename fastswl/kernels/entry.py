"""Small calls: one native function from Python's objects to a finished kernel, in this thread, holding the GIL.

All that does not change between calls of the same shapes stands in a plan that was made before; here the addresses are filled
in and what can differ between arrays of the same shape is looked at: alignment, write access, overlap. One block is run at once.
"""

import functools

import numpy as np
from numba import types

from fastswl.compilation import python_entry, routine
from fastswl.kept import REFUSED
from fastswl.kernels.block import settled
from fastswl.kernels.plan import (
    BEHIND_PLAN,
    LOGITS_WORD,
    LOGSUMEXP,
    OUT_WORD,
    PARTIALS_WORD,
    PROBABILITY_TARGETS,
    ROW_FACTOR_WORD,
    ROW_VALUES_WORD,
    SAMPLE_WEIGHT_WORD,
    SOFTMAX_WORD,
    TARGETS_WORD,
    WEIGHT_WORD,
    plan_to_fill_in,
)
from fastswl.kernels.scan import scan_rows, scan_vectors
from fastswl.kernels.targets import index_bytes, load_index, vectors_serve
from fastswl.simd import (
    ARRAY_ALIGNED,
    ARRAY_C_CONTIGUOUS,
    ARRAY_OBJECT,
    ARRAY_WRITEABLE,
    FLOAT32,
    array_data,
    array_flags,
    call_kernel,
    choose,
    formula,
    load_double,
    load_one,
    select,
    store_double,
    store_int64,
    to_float64,
    word,
)

_WORD = types.int64


@formula
def readable(array):
    """Whether an array is aligned and contiguous."""
    return array_flags(array) & (ARRAY_ALIGNED | ARRAY_C_CONTIGUOUS) == ARRAY_ALIGNED | ARRAY_C_CONTIGUOUS


@formula
def usable(array, extent, result):
    """Whether `result` (of `extent` bytes from its first element on) is a fit place for what comes from `array`."""
    apart = array_data(result) - array_data(array)
    return (
        readable(array)
        & readable(result)
        & (array_flags(result) & ARRAY_WRITEABLE != 0)
        & ((apart == 0) | (apart >= extent) | (-apart >= extent))
    )


@python_entry(_WORD, _WORD, _WORD, _WORD, returns=_WORD, nogil=True)
def run_serial(kernel, plan, scratch, n_blocks):
    """All blocks of a kernel in this thread, the GIL released."""
    return call_kernel(kernel, plan, scratch, 0, n_blocks)


@formula
def index_counts(plan, chosen):
    """Of an index: whether it is a class or ignored, 1 if it counts (else 0)."""
    ignored = chosen == plan.ignore_index
    return ignored | ((chosen >= 0) & (chosen < plan.n_classes)), select(ignored, 0, 1)


@routine
def rows_that_count(plan, target):
    """How many rows the mean divides by; negative if a class index is out of range."""
    if plan.kind == PROBABILITY_TARGETS:
        return plan.n_inner
    row, counted = word(0), 0.0
    if vectors_serve(plan):
        row, counted, _ = scan_vectors(plan, target, row, plan.n_inner)
    while row < plan.n_inner:
        good, counts = index_counts(plan, load_index(plan.index_code, target + plan.targets_inner * row))
        if not good:
            return -1
        counted += counts
        row += 1
    return int(counted)


@formula
def apart(first, first_bytes, second, second_bytes):
    """Whether two pieces of memory share nothing."""
    return (first + first_bytes <= second) | (second + second_bytes <= first)


@python_entry(_WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64)
def small_softmax(kernel, words, scratch, extent, x, out):
    """Softmax, log_softmax or (into a new array) logsumexp of contiguous arrays of one shape and dtype; 0, or REFUSED.

    Without `kernel` only the plan is filled in.
    """
    if plan_to_fill_in(words).operation == LOGSUMEXP:
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


@formula
def bytes_of_targets(plan):
    """Of contiguous ones. (Of one row there is no stride.)"""
    of_index = functools.partial(index_bytes, plan.index_code)
    of_row = choose(plan.kind == PROBABILITY_TARGETS, of_index, lambda: plan.targets_class * plan.n_classes)
    return of_row * plan.n_inner


@formula
def fits_loss(plan, extent, logits, targets, grad, other):
    """Whether arrays of the shapes of a plan are places that a kernel can read and write; the `other` result is the softmax, or the
    losses of rows (a plan that has these has their address from the first call on, see `keep_loss`)."""
    target, target_bytes = array_data(targets), bytes_of_targets(plan)
    logit, place = array_data(logits), array_data(other)

    def result_fits():
        return usable(logits, extent, grad) & apart(target, target_bytes, array_data(grad), extent)

    def softmax_fits():
        return readable(other) & apart(logit, extent, place, extent) & apart(target, target_bytes, place, extent)

    def losses_fit():
        # (of one row there is no stride)
        n_bytes = select(plan.row_values_inner == 0, 8, plan.row_values_inner) * plan.n_inner
        from_grad = choose(plan.out_class != 0, lambda: True, lambda: apart(array_data(grad), extent, place, n_bytes))
        own = apart(logit, extent, place, n_bytes) & apart(target, target_bytes, place, n_bytes) & from_grad
        return readable(other) & (array_flags(other) & ARRAY_WRITEABLE != 0) & own

    return (
        readable(targets)
        & choose(plan.out_class != 0, lambda: readable(logits), result_fits)
        & choose(plan.softmax_class != 0, lambda: True, softmax_fits)
        & choose(plan.row_values != 0, lambda: True, losses_fit)
    )


@formula
def fill_in(words, plan, logits, targets, grad, other, divisor):
    """The addresses of a loss into the words of its plan, and the factor of its gradient."""
    store_int64(words + OUT_WORD, select(plan.out_class != 0, array_data(grad), 0))
    store_int64(words + SOFTMAX_WORD, select(plan.softmax_class != 0, array_data(other), 0))
    store_int64(words + ROW_VALUES_WORD, select(plan.row_values != 0, array_data(other), 0))
    store_int64(words + LOGITS_WORD, array_data(logits))
    store_int64(words + TARGETS_WORD, array_data(targets))
    store_int64(words + PARTIALS_WORD, words + BEHIND_PLAN)
    store_double(words + ROW_FACTOR_WORD, 1.0 / divisor * plan.logit_scale)


@python_entry(
    _WORD, _WORD, _WORD, _WORD, _WORD, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64
)
def small_loss(kernel, words, scratch, extent, is_mean, logits, targets, grad, other):
    """Mean or sum of the loss; the gradient, the softmax and the losses of rows, where the plan has these (else any array stands for
    them).

    Without `kernel` only the plan is filled in, and the divisor comes back. REFUSED where an index is out of range, the mean has
    nothing to divide by or an array can't be used.
    """
    plan = plan_to_fill_in(words)
    if not fits_loss(plan, extent, logits, targets, grad, other):
        return REFUSED
    counted = rows_that_count(plan, array_data(targets))
    if counted < 0 or (is_mean != 0 and counted == 0):
        return REFUSED
    divisor = float(counted) if is_mean != 0 else 1.0
    fill_in(words, plan, logits, targets, grad, other, divisor)
    return run_loss(kernel, words, scratch, divisor)


@routine
def run_loss(kernel, words, scratch, divisor):
    """The loss of a plan that is filled in; without `kernel` what the sum is to be divided by."""
    if kernel == 0:
        return divisor
    call_kernel(kernel, words, scratch, 0, 1)
    return settled(load_double(words + BEHIND_PLAN), load_double(words + BEHIND_PLAN + 8)) / divisor


@formula
def weight_at(source, are_float32, i):
    """The i-th of float32 or float64 weights."""
    wide, narrow = lambda: load_double(source + 8 * i), lambda: to_float64(load_one(FLOAT32, source + 4 * i))
    return choose(are_float32 != 0, wide, narrow)


@routine
def are_same_weights(source, are_float32, n, held):
    """Whether weights are those that are held as float64."""
    same = True
    for i in range(n):
        same = same and weight_at(source, are_float32, i) == load_double(held + 8 * i)
    return same


@routine
def copy_weights(source, are_float32, n, target):
    """Weights as float64; whether they are finite and not negative."""
    for i in range(n):
        weight = weight_at(source, are_float32, i)
        if not (weight >= 0.0 and weight < np.inf):
            return False
        store_double(target + 8 * i, weight)
    return True


@python_entry(
    _WORD, _WORD, _WORD, _WORD, _WORD, _WORD, _WORD, _WORD,
    ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, ARRAY_OBJECT, returns=types.float64,
)  # fmt: skip
def small_weighted_loss(
    kernel, words, scratch, extent, is_mean, room, are_float32, of_rows, logits, targets, grad, other, weights
):
    """`small_loss` with weights of classes or of rows (float32 or float64), of which a copy goes to `room` bytes behind the plan.
    Without `room` the plan has them, with what is made of them for every class, and others are REFUSED."""
    plan = plan_to_fill_in(words)
    if not fits_loss(plan, extent, logits, targets, grad, other) or not readable(weights):
        return REFUSED
    if room == 0:
        if not are_same_weights(array_data(weights), are_float32, plan.n_classes, plan.weight):
            return REFUSED
    else:
        count, place = (plan.n_inner, SAMPLE_WEIGHT_WORD) if of_rows != 0 else (plan.n_classes, WEIGHT_WORD)
        if not copy_weights(array_data(weights), are_float32, count, words + room):
            return REFUSED
        store_int64(words + place, words + room)
    store_int64(words + TARGETS_WORD, array_data(targets))
    bad, high, low = scan_rows(plan, word(0), plan.n_inner)
    divisor = high + low if is_mean != 0 else 1.0
    if bad >= 0 or divisor == 0.0:
        return REFUSED
    fill_in(words, plan, logits, targets, grad, other, divisor)
    return run_loss(kernel, words, scratch, divisor)
