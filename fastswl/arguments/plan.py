"""The arguments of the loss, checked together and put into one plan for the kernels."""

from typing import NamedTuple

import numpy as np

from fastswl.arguments.arrays import (
    LOSS_DTYPE,
    RESULT_DTYPE,
    Array,
    as_array,
    as_float64,
    check_finite_non_negative,
)
from fastswl.arguments.axes import axis_last, class_axis
from fastswl.arguments.outputs import apart_or_copy, check_output, in_place_or_apart, require_apart
from fastswl.arguments.scalars import (
    DEFAULT_AXIS,
    DEFAULT_EMPTY,
    DEFAULT_IGNORE_INDEX,
    DEFAULT_LABEL_SMOOTHING,
    DEFAULT_LOGIT_SCALE,
    DEFAULT_REDUCTION,
    DEFAULT_UPSTREAM,
    DEFAULT_Z_LOSS,
    check_float32_weights,
    loss_scalars,
    real_number,
    scalars_in_float32,
)
from fastswl.arguments.targets import read_targets


class LossPlan(NamedTuple):
    """All that one evaluation of the loss needs, checked.

    ``rows`` stands for the axes of a per-sample loss.
    The arrays are views of the caller's memory wherever that is aligned and in native byte order.
    """

    logits: Array  # (*rows, C), class axis last, any strides
    targets: Array  # indices: rows, an integer dtype; probabilities: (*rows, C), any real dtype
    probabilities: bool  # which kind of targets
    weight: Array | None  # (C,), float64, contiguous
    sample_weight: Array | None  # float64, broadcast (strides may be 0) to rows
    ignore_index: int
    label_smoothing: float
    reduction: str  # "mean", "sum" or "none"
    normalizer: float | None
    empty: str  # "nan", "zero" or "raise"
    z_loss: float
    logit_scale: float
    softcap: float | None
    class_mask: Array | None  # bool, broadcast view of shape (*rows, C), class axis last
    upstream: float | Array  # a float, or float64 of shape rows
    loss: Array | None  # rows, where the per-sample losses go (reduction "none"), else None
    grad: Array | None  # (*rows, C), class axis last, or None when only the value is wanted
    n_threads: int
    probabilities_out: Array | None  # (*rows, C), dtype of grad: where softmax goes, or None


class OwnedBuffers(NamedTuple):
    """Memory of the library's own to write to, in the shape of the logits.

    It overlaps nothing of the caller's.
    """

    grad: Array
    probabilities: Array


def empty_error() -> ValueError:
    """Build the error for a mean whose divisor is zero under ``empty="raise"``.

    Examples
    --------
    >>> print(empty_error())
    empty='raise': the divisor of the mean is zero (no rows, all ignored, or all weights 0)
    """
    return ValueError("empty='raise': the divisor of the mean is zero (no rows, all ignored, or all weights 0)")


def read_logits(logits: object, axis: object) -> tuple[Array, int]:
    """Read the logits and the number of the class axis.

    Raises
    ------
    TypeError, ValueError
        As `as_array` and `class_axis`.
    """
    array = as_array("logits", logits)
    if axis is DEFAULT_AXIS and array.ndim:
        return array, array.ndim - 1
    return array, class_axis(axis, array.ndim)


def loss_plan(
    logits: object,
    targets: object,
    axis: object,
    weight: object,
    sample_weight: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    normalizer: object,
    empty: object,
    z_loss: object,
    logit_scale: object,
    softcap: object,
    class_mask: object,
    upstream: object,
    out: object,
    with_grad: bool,
    grad_out: object,
    n_threads: int,
    owned: OwnedBuffers | None,
) -> tuple[LossPlan, Array | None]:
    """Check every argument of the loss and lay out its results; nothing is written.

    Parameters
    ----------
    logits, targets, axis, weight, sample_weight, ignore_index, label_smoothing, reduction, \
normalizer, empty, z_loss, logit_scale, softcap, class_mask, upstream, out, grad_out
        As the caller of `fastswl.cross_entropy_value_and_grad` gave them.
    with_grad : bool
        Whether the gradient is wanted.
    n_threads : int
        A checked thread count.
    owned : OwnedBuffers or None
        Where gradient and probabilities go, instead of `grad_out`.

    Returns
    -------
    plan : LossPlan
    grad : numpy.ndarray or None
        The array of the gradient with the axes of `logits` (of which ``plan.grad`` is a view).

    Raises
    ------
    TypeError, ValueError
        Naming the argument and its value.

    Examples
    --------
    >>> plan, grad = loss_plan(
    ...     np.zeros((2, 3)), [0, 1], 1, None, None, -100, 0.0, "none", None, "nan", 0.0, 1.0,
    ...     None, None, 1.0, None, True, None, 1, None,
    ... )
    >>> plan.loss.shape, grad.shape
    ((2,), (2, 3))
    """
    logits_array, axis_number = read_logits(logits, axis)
    dtype, shape = logits_array.dtype, logits_array.shape
    last = axis_number == len(shape) - 1
    view = logits_array if last else axis_last(logits_array, axis_number)
    rows = view.shape[:-1]
    targets_array, probabilities = read_targets(targets, shape, rows, axis_number)
    if not (
        ignore_index is DEFAULT_IGNORE_INDEX
        and label_smoothing is DEFAULT_LABEL_SMOOTHING
        and reduction is DEFAULT_REDUCTION
        and normalizer is None
        and empty is DEFAULT_EMPTY
        and z_loss is DEFAULT_Z_LOSS
        and logit_scale is DEFAULT_LOGIT_SCALE
        and softcap is None
    ):
        (
            ignore_index,
            label_smoothing,
            reduction,
            normalizer,
            empty,
            z_loss,
            logit_scale,
            softcap,
        ) = loss_scalars(
            ignore_index,
            label_smoothing,
            reduction,
            normalizer,
            empty,
            z_loss,
            logit_scale,
            softcap,
        )
        if probabilities and ignore_index >= 0:
            raise ValueError(f"ignore_index must be negative with probability targets, got {ignore_index}")
        if LOSS_DTYPE[dtype] == np.float32:
            logit_scale, softcap = scalars_in_float32(logit_scale, softcap)

    if weight is not None:
        weight = _class_weights(weight, shape[axis_number])
        if LOSS_DTYPE[dtype] == np.float32 and (probabilities or label_smoothing):
            check_float32_weights(weight)
    if sample_weight is not None:
        sample_weight = _sample_weights(sample_weight, rows)
    if class_mask is not None:
        class_mask = _class_mask(class_mask, shape, axis_number)
    if upstream is not DEFAULT_UPSTREAM:
        upstream = check_upstream("upstream", upstream, str(reduction), rows)

    loss = None
    if reduction == "none":
        loss_dtype = LOSS_DTYPE[dtype]
        loss = np.empty(rows, loss_dtype) if out is None else check_output("out", out, rows, loss_dtype)
    elif out is not None:
        raise ValueError(f"out goes with reduction='none' only, got reduction={reduction!r}")

    grad = grad_view = probabilities_out = None
    if owned is not None:
        grad = owned.grad
        grad_view = axis_last(grad, axis_number)
        probabilities_out = axis_last(owned.probabilities, axis_number)
    elif with_grad:
        if grad_out is None:
            grad = np.empty_like(logits_array, RESULT_DTYPE[dtype])
        else:
            grad = check_output("grad_out", grad_out, shape, RESULT_DTYPE[dtype])
        if grad_out is not None and grad is logits_array:
            grad_view = view
        else:
            grad_view = grad if last else axis_last(grad, axis_number)

    if out is not None or grad_out is not None:
        view, targets_array, weight, sample_weight, upstream = _inputs_apart(
            view, targets_array, probabilities, weight, sample_weight, class_mask, upstream,
            None if out is None else loss, None if grad_out is None else grad_view,
        )  # fmt: skip
    # tuple.__new__ takes half the time of LossPlan(...), which every small call would pay
    plan = tuple.__new__(
        LossPlan,
        (
            view, targets_array, probabilities, weight, sample_weight, ignore_index,
            label_smoothing, reduction, normalizer, empty, z_loss, logit_scale, softcap,
            class_mask, upstream, loss, grad_view, n_threads, probabilities_out,
        ),
    )  # fmt: skip
    return plan, grad


def _class_weights(weight: object, n_classes: int) -> Array:
    """Return class weights as a contiguous float64 array of shape (C,), non-negative and finite."""
    array = as_float64("weight", weight)
    if array.shape != (n_classes,):
        raise ValueError(f"weight has shape {array.shape}, the logits have {n_classes} classes: ({n_classes},)")
    check_finite_non_negative("weight", array)
    return np.ascontiguousarray(array)


def _sample_weights(sample_weight: object, rows: tuple[int, ...]) -> Array:
    """Return sample weights as non-negative finite float64, broadcast to the per-sample shape."""
    array = as_float64("sample_weight", sample_weight)
    # (before it is broadcast, maybe to no rows)
    check_finite_non_negative("sample_weight", array)
    try:
        return np.broadcast_to(array, rows) if array.shape != rows else array
    except ValueError:
        raise ValueError(
            f"sample_weight of shape {array.shape} does not broadcast to the per-sample shape {rows}"
        ) from None


def _class_mask(class_mask: object, shape: tuple[int, ...], axis: int) -> Array:
    """Return a class mask as a bool view of the shape of the logits, class axis last.

    A mask of shape (C,) lies along the class axis, whichever that is; any other broadcasts as NumPy
    does it.
    """
    array = as_array("class_mask", class_mask)
    if array.dtype != np.bool_:
        raise TypeError(f"class_mask must have dtype bool, got {array.dtype}")
    moved_shape = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    if array.shape == (shape[axis],):
        return np.broadcast_to(array, moved_shape)
    try:
        return axis_last(np.broadcast_to(array, shape), axis)
    except ValueError:
        raise ValueError(
            f"class_mask of shape {array.shape} is neither ({shape[axis]},) for the classes nor "
            f"broadcasts to the logits of shape {shape}"
        ) from None


def check_upstream(name: str, upstream: object, reduction: str, rows: tuple[int, ...]) -> float | Array:
    """Return the gradient from above: a float, or with reduction "none" an array like the losses.

    Raises
    ------
    TypeError
        When it is neither a real number nor a real array.
    ValueError
        For an array with another reduction, or of another shape.

    Examples
    --------
    >>> check_upstream("upstream", 2, "mean", (3,))
    2.0
    >>> check_upstream("upstream", [1, 2, 3], "mean", (3,))
    Traceback (most recent call last):
    ValueError: upstream must be a number unless reduction='none', got an array of shape (3,)
    """
    if isinstance(upstream, (float, int, np.generic)):
        return real_number(name, upstream)
    array = as_float64(name, upstream)
    if array.ndim == 0:
        return real_number(name, upstream)
    if reduction != "none":
        raise ValueError(f"{name} must be a number unless reduction='none', got an array of shape {array.shape}")
    if array.shape != rows:
        raise ValueError(f"{name} has shape {array.shape}, the per-sample losses have shape {rows}")
    return array


def _inputs_apart(
    logits: Array,
    targets: Array,
    probabilities: bool,
    weight: Array | None,
    sample_weight: Array | None,
    class_mask: Array | None,
    upstream: float | Array,
    loss: Array | None,
    grad: Array | None,
) -> tuple[Array, Array, Array | None, Array | None, float | Array]:
    """Make sure that no caller's output shares memory with what is read, copying small inputs.

    Parameters
    ----------
    logits, targets, probabilities, weight, sample_weight, class_mask, upstream
        As in `LossPlan`.
    loss, grad : numpy.ndarray or None
        What is to be written in arrays of the caller.

    Returns
    -------
    tuple
        Logits, targets, weight, sample_weight and upstream to read from.

    Raises
    ------
    ValueError
        When `out` overlaps logits, probabilities, mask or `grad_out`, or `grad_out` overlaps
        probabilities or mask, or the logits without being the same array.
    """
    outputs = []
    if loss is not None:
        require_apart("out", loss, "logits", logits)
        outputs.append(("out", loss))
    if grad is not None:
        if loss is not None:
            require_apart("out", loss, "grad_out", grad)
        logits = in_place_or_apart("grad_out", grad, "logits", logits)
        outputs.append(("grad_out", grad))
    for name, array in outputs:
        if probabilities:
            require_apart(name, array, "targets", targets)
        if class_mask is not None:
            require_apart(name, array, "class_mask", class_mask)
    if not probabilities:
        targets = apart_or_copy(outputs, targets)
    if weight is not None:
        weight = apart_or_copy(outputs, weight)
    if sample_weight is not None:
        sample_weight = apart_or_copy(outputs, sample_weight)
    if isinstance(upstream, np.ndarray):
        upstream = apart_or_copy(outputs, upstream)
    return logits, targets, weight, sample_weight, upstream
