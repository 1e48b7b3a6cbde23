"""The loss and its gradient: documentation, checks and allocation around the kernels.

The functions of the softmax family are in `fastswl.softmax_family`, the layer in `fastswl.layer`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastswl import lazy
from fastswl.arguments import (
    DEFAULT_AXIS,
    DEFAULT_EMPTY,
    DEFAULT_IGNORE_INDEX,
    DEFAULT_LABEL_SMOOTHING,
    DEFAULT_LOGIT_SCALE,
    DEFAULT_REDUCTION,
    DEFAULT_UPSTREAM,
    DEFAULT_Z_LOSS,
    LOSS_DTYPE,
    LossPlan,
    empty_error,
    index_error,
    loss_plan,
)
from fastswl.kept import REFUSED, key_of_weights


class LossAndGrad(NamedTuple):
    """What `cross_entropy_value_and_grad` returns.

    Attributes
    ----------
    loss : np.float64 or numpy.ndarray
        As `cross_entropy` returns it.
    grad : numpy.ndarray
        The gradient with respect to the logits, in their shape.
    """

    loss: Any
    grad: npt.NDArray[Any]


def cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    axis: int = DEFAULT_AXIS,
    *,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    label_smoothing: float = DEFAULT_LABEL_SMOOTHING,
    reduction: str = DEFAULT_REDUCTION,
    normalizer: float | None = None,
    empty: str = DEFAULT_EMPTY,
    z_loss: float = DEFAULT_Z_LOSS,
    logit_scale: float = DEFAULT_LOGIT_SCALE,
    softcap: float | None = None,
    class_mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> Any:
    """Cross entropy of the softmax of logits, with the semantics of PyTorch.

    Parameters
    ----------
    logits : array_like
        Array with a class axis of length C: bool, integers, float16, ``ml_dtypes.bfloat16``,
        float32 or float64, any strides and byte order. Read where it lies (copied when byte-swapped
        or unaligned).
    targets : array_like
        *Class indices*: any integer dtype, the shape of `logits` without the class axis. Or *class
        probabilities*: any of the dtypes above, the shape of `logits`; rows need not sum to 1.
    axis : int, default -1
        The class axis.
    weight : array_like of shape (C,), optional
        Weight of each class, finite and non-negative. A class of weight 0 adds 0 even where its
        logit is ``-inf``.
    sample_weight : array_like, optional
        Broadcastable to the per-sample losses; finite and non-negative. Multiplies a row's loss and
        its share of the mean's divisor. A row of weight 0 counts as ignored.
    ignore_index : int, default -100
        Index of rows to ignore: loss and gradient 0, no share of the divisor, logits never read.
        Must be negative with probability targets, where it has no effect.
    label_smoothing : float, default 0.0
        In [0, 1]: the share of the target spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[y] * sample_weight`` over the rows that are not
        ignored; with probability targets by the number of rows (the sum of `sample_weight`),
        whatever the class weights. So the mean is not the mean of the per-sample losses when there
        are weights.
    normalizer : float, optional
        Replaces the divisor of "mean"; finite and non-negative.
    empty : {"nan", "zero", "raise"}, default "nan"
        What "mean" gives when the divisor is zero: NaN, 0 (gradient 0, too), or a ValueError.
    z_loss : float, default 0.0
        Non-negative s: adds ``s * logsumexp**2`` to each row that is not ignored, without class
        weight.
    logit_scale : float, default 1.0
        Positive factor of the logits (1 / temperature), applied after `softcap`.
    softcap : float, optional
        Positive c: the logits become ``c * tanh(logits / c)``. Where arithmetic is float32, this and
        `logit_scale` are normal numbers of that type (a `softcap` beyond them is none), and so is
        `weight`, or 0, where targets have mass on every class.
    class_mask : array_like of bool, optional
        Shape (C,) for the class axis, whichever it is, or broadcastable to `logits`. A False class
        is as if it were not there. A target on it (or probability there) has loss ``inf``; a row
        with no class left counts as all ``-inf``.
    out : numpy.ndarray, optional
        With ``reduction="none"``: where the per-sample losses go; exact shape and dtype, native
        byte order, aligned, writeable. It must not overlap `logits`, probability targets or
        `class_mask`.
    n_threads : int, optional
        How many threads to use at most; 1 starts no parallel region. None is `get_num_threads`. The
        result does not depend on it.

    Returns
    -------
    np.float64 or numpy.ndarray
        The mean or sum; or with ``reduction="none"`` an array of the shape of `logits` without the
        class axis (a NumPy scalar when no axes are left, unless it is `out`): float64 for float64,
        integers and bool, float32 for float32 and half precision. Arithmetic is float64 for the
        former, float32 for the latter with sums carried in float64; rows are summed in float64 in a
        fixed order.

    Raises
    ------
    TypeError
        For an unsupported dtype (complex, longdouble, object, ...), or an option of another type.
    ValueError
        For targets that fit neither kind (both shapes are printed), an option out of its range, an
        unusable `out`, or an empty mean with ``empty="raise"``.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`: the first position, its value
        and C are named. Negative indices never wrap. Every error comes before anything is written.

    See Also
    --------
    cross_entropy_value_and_grad, SoftmaxWithLoss

    Notes
    -----
    The loss of a row is ``Q * logsumexp(x) - sum(q * x)`` for the target mass q >= 0 and its sum Q.
    Special values: a target on ``-inf`` has loss ``inf``; a probability (or weight) of 0 there adds
    0; a row of all ``-inf``, one with ``+inf`` and one with NaN have loss NaN. With no rows, the
    sum is 0 and the mean follows `empty`. With rows but no classes (C = 0) every loss is 0, or
    ``inf`` with a `z_loss`, and the mean has a divisor of zero, as in PyTorch.

    The half-precision losses are float32, where PyTorch rounds them to half.

    Source of the semantics:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html

    Examples
    --------
    >>> import fastswl as swl
    >>> logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> print(swl.cross_entropy(logits, [0, 1], reduction="none").round(6))
    [0.239545 1.098612]
    >>> swl.cross_entropy(logits, [0, 3])
    Traceback (most recent call last):
    IndexError: targets[1] is 3, outside [0, 3) for 3 classes, and not ignore_index
    """
    if (
        (n_threads is None or (type(n_threads) is int and n_threads > 0))
        and axis is DEFAULT_AXIS
        and normalizer is class_mask is None
        and (sample_weight is None or (weight is None and type(sample_weight) is np.ndarray))
        and (out is None or type(out) is np.ndarray)
        and (weight is None or type(weight) is np.ndarray)
        and empty is DEFAULT_EMPTY
        and type(reduction) is str
        and type(ignore_index) is int
        and type(label_smoothing) is type(z_loss) is type(logit_scale) is float
        and (softcap is None or type(softcap) is float)
        and type(logits) is type(targets) is np.ndarray
    ):
        scalars = (reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap)
        value = _seen_before(logits, targets, scalars, None, False, n_threads, weight, sample_weight, out)
        if value is not None:
            return value
    plan, _ = loss_plan(
        logits, targets, axis, weight, sample_weight, ignore_index, label_smoothing, reduction,
        normalizer, empty, z_loss, logit_scale, softcap, class_mask, DEFAULT_UPSTREAM, out, False,
        None, lazy.resolved_thread_count(n_threads), None,
    )  # fmt: skip
    loss = run_plan(plan)
    return loss if loss is not None else per_sample_losses(plan, out)


def _seen_before(
    logits: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    scalars: tuple[Any, ...],
    grad_out: Any,
    with_grad: bool,
    n_threads: int | None,
    weight: npt.NDArray[Any] | None,
    sample_weight: npt.NDArray[Any] | None,
    out: npt.NDArray[Any] | None,
) -> Any:
    """Return the result for contiguous arrays of shapes and scalar options seen before, None to go the way of all checks."""
    dtype, shape = logits.dtype, logits.shape
    weights = sample_weight if weight is None else weight
    if weights is not None:
        scalars = (*scalars, *key_of_weights(weights.dtype, weights.shape, weight is None))
    key = (dtype, shape, targets.dtype, targets.shape, int(with_grad), scalars)
    call = lazy.prepared.get(key) if n_threads is None else lazy.kept_call(key, n_threads)
    if call is None:
        return None
    grad = grad_out
    if not with_grad:
        grad = logits
    elif grad is None:
        grad = np.empty(shape, dtype)
    elif type(grad) is not np.ndarray or grad.dtype is not dtype or grad.shape != shape:
        return None
    losses = logits
    if scalars[0] == "none":
        losses = np.empty(shape[:-1], LOSS_DTYPE[dtype]) if out is None else out
        if losses.shape != shape[:-1] or losses.dtype is not LOSS_DTYPE[dtype]:
            return None
    elif out is not None:
        return None
    value = call(logits, targets, grad, losses) if weights is None else call(logits, targets, grad, losses, weights)
    if value == REFUSED:
        return None
    loss = np.float64(value) if losses is logits else losses
    return LossAndGrad(loss, grad) if with_grad else loss


def per_sample_losses(plan: LossPlan, out: Any) -> Any:
    """Return the losses that a plan has written: `out` itself, an array or a NumPy scalar."""
    if out is not None:
        return out
    losses = plan.loss
    return losses if losses is None or losses.ndim else losses[()]


def cross_entropy_value_and_grad(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    axis: int = DEFAULT_AXIS,
    *,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    label_smoothing: float = DEFAULT_LABEL_SMOOTHING,
    reduction: str = DEFAULT_REDUCTION,
    normalizer: float | None = None,
    empty: str = DEFAULT_EMPTY,
    z_loss: float = DEFAULT_Z_LOSS,
    logit_scale: float = DEFAULT_LOGIT_SCALE,
    softcap: float | None = None,
    class_mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    n_threads: int | None = None,
    upstream: float | npt.ArrayLike = DEFAULT_UPSTREAM,
    grad_out: npt.NDArray[Any] | None = None,
) -> LossAndGrad:
    """Cross entropy and its gradient with respect to the logits, in one pass over memory.

    Parameters
    ----------
    logits, targets, axis, weight, sample_weight, ignore_index, label_smoothing, reduction, \
normalizer, empty, z_loss, logit_scale, softcap, class_mask, out, n_threads
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        The gradient that arrives from above: a real number, or with ``reduction="none"`` an array
        of the per-sample shape.
    grad_out : numpy.ndarray, optional
        Where to write the gradient: the shape of `logits`, the dtype of the result, native byte
        order, aligned, writeable. ``grad_out=logits`` overwrites the logits with their gradient;
        any other overlap with logits, probability targets, `class_mask` or `out` raises.

    Returns
    -------
    LossAndGrad
        ``loss`` as `cross_entropy` returns it, and ``grad``, the gradient of ``sum(upstream *
        loss)``: `grad_out` if given, else a new array with the shape and the order of axes in
        memory of `logits`; float64 for float64, integers and bool, otherwise the dtype of `logits`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`, before anything is written.

    See Also
    --------
    cross_entropy, SoftmaxWithLoss

    Notes
    -----
    The gradient of a row is ``Q * softmax(x) - q`` in the terms of `cross_entropy`: for plain
    targets, ``y - t``. It is exactly 0 for ignored rows, whatever `empty` says, and for rows of all
    ``-inf``; 0 at ``-inf`` beside finite logits, also when the target is there; NaN in rows with
    ``+inf`` or NaN.

    Examples
    --------
    >>> import fastswl as swl
    >>> loss, grad = swl.cross_entropy_value_and_grad(np.zeros((1, 2), dtype=np.float32), [1])
    >>> print(loss.round(6), grad)
    0.693147 [[ 0.5 -0.5]]
    """
    if (
        (n_threads is None or (type(n_threads) is int and n_threads > 0))
        and axis is DEFAULT_AXIS
        and normalizer is class_mask is None
        and (sample_weight is None or (weight is None and type(sample_weight) is np.ndarray))
        and (out is None or type(out) is np.ndarray)
        and (weight is None or type(weight) is np.ndarray)
        and empty is DEFAULT_EMPTY
        and type(reduction) is str
        and type(ignore_index) is int
        and type(label_smoothing) is type(z_loss) is type(logit_scale) is float
        and (softcap is None or type(softcap) is float)
        and upstream is DEFAULT_UPSTREAM
        and type(logits) is type(targets) is np.ndarray
    ):
        scalars = (reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap)
        value: LossAndGrad | None = _seen_before(
            logits, targets, scalars, grad_out, True, n_threads, weight, sample_weight, out
        )
        if value is not None:
            return value
    plan, grad = loss_plan(
        logits, targets, axis, weight, sample_weight, ignore_index, label_smoothing, reduction,
        normalizer, empty, z_loss, logit_scale, softcap, class_mask, upstream, out, True, grad_out,
        lazy.resolved_thread_count(n_threads), None,
    )  # fmt: skip
    loss = run_plan(plan)
    if loss is None:
        loss = per_sample_losses(plan, out)
    return LossAndGrad(loss, grad if grad_out is None else grad_out)  # type: ignore[arg-type]


def run_plan(plan: LossPlan) -> np.float64 | None:
    """Evaluate a plan of the loss: the mean or sum, or None when per-sample losses were written."""
    if plan.logits.size:
        result: np.float64 | None = lazy.dispatch.run_loss(plan)
        return result
    return _loss_without_logits(plan)


def _loss_without_logits(plan: LossPlan) -> np.float64 | None:
    """Evaluate the loss of no rows, or of rows with no classes.

    Sums without terms are 0; the z-loss of a row is that of lse = -inf.
    """
    rows = plan.logits.shape[:-1]
    n_rows = math.prod(rows)
    per_sample = np.zeros(rows)
    if n_rows and not plan.probabilities:
        wrong = np.flatnonzero(plan.targets != plan.ignore_index)
        if wrong.size:
            raise index_error(plan.targets, int(wrong[0]), 0)
    elif n_rows and plan.z_loss:
        per_sample[() if plan.sample_weight is None else plan.sample_weight > 0.0] = np.inf
    if plan.loss is not None:
        plan.loss[...] = per_sample
        return None
    total = np.float64(per_sample.sum())
    if plan.reduction == "sum":
        return total
    if plan.normalizer:
        return np.float64(total / plan.normalizer)
    if plan.empty == "raise":
        raise empty_error()
    return np.float64(0.0 if plan.empty == "zero" else np.nan)
