"""The softmax-with-loss layer of a network that is trained by hand-written backpropagation."""

import math
from typing import Any, Final

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
    RESULT_DTYPE,
    Array,
    OwnedBuffers,
    as_array,
    axis_last,
    check_output,
    check_upstream,
    loss_plan,
    loss_scalars,
    overlaps,
    read_logits,
    thread_count,
)
from fastswl.functions import per_sample_losses, run_plan
from fastswl.kept import REFUSED, key_of_weights

# A number within these is a normal float32, far from overflow.
_SMALLEST_FLOAT32: Final = 2.0**-100
_LARGEST_FLOAT32: Final = 2.0**100


class SoftmaxWithLoss:
    """Softmax and cross entropy as the last layer of a network, with forward and backward passes.

    One pass over memory gives the loss, the probabilities and the gradient; `backward` only scales
    the latter.

    Parameters
    ----------
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction, normalizer, empty, \
z_loss, logit_scale, softcap, class_mask, n_threads
        As in `cross_entropy`. Arrays are copied.

    Attributes
    ----------
    y : numpy.ndarray or None
        Softmax of the logits after softcap, scale and mask, in the shape of the logits and the
        dtype of the gradient. The next `forward` may use its memory again. None before the first
        `forward`, like the two below.
    t : numpy.ndarray or None
        A copy of the targets as given.
    loss : np.float64, numpy.ndarray or None
        What `forward` returned.

    Raises
    ------
    TypeError, ValueError
        For a number or word of another type or out of its range; `axis`, the arrays, and what
        depends on the logits are checked by `forward`.

    See Also
    --------
    cross_entropy_value_and_grad

    Notes
    -----
    The layer owns its buffers and uses them again while shape and dtype of the logits stay the
    same. It keeps none of the caller's arrays. For half-precision logits the gradient is kept in
    half precision, too; to scale a loss against underflow, give the factor as ``upstream`` of
    `cross_entropy_value_and_grad` rather than as ``dout``.

    Source: the layer of that name in K. Saitoh, "Deep Learning from Scratch", chapter 5 and
    appendix A.

    Examples
    --------
    >>> import fastswl as swl
    >>> layer = swl.SoftmaxWithLoss()
    >>> loss = layer.forward(np.zeros((2, 4)), [1, 3])
    >>> print(loss.round(6), layer.y[0])
    1.386294 [0.25 0.25 0.25 0.25]
    >>> layer.backward()
    array([[ 0.125, -0.375,  0.125,  0.125],
           [ 0.125,  0.125,  0.125, -0.375]])
    """

    def __init__(
        self,
        *,
        axis: int = DEFAULT_AXIS,
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
        n_threads: int | None = None,
    ) -> None:
        self._scalars = loss_scalars(
            ignore_index,
            label_smoothing,
            reduction,
            normalizer,
            empty,
            z_loss,
            logit_scale,
            softcap,
        )
        self._axis = axis
        self._weight = _copy_or_none("weight", weight)
        self._sample_weight = _copy_or_none("sample_weight", sample_weight)
        self._class_mask = _copy_or_none("class_mask", class_mask)
        self._n_threads = None if n_threads is None else thread_count(n_threads)
        # what a call that is kept ready is known by, None where there can be none
        self._scalars_of_calls: tuple[Any, ...] | None = None
        # weights of classes or of rows, which such a call takes beside the arrays
        self._weights_of_calls = weights = self._sample_weight if weight is None else self._weight
        if (
            axis is DEFAULT_AXIS
            and (weight is None or sample_weight is None)
            and class_mask is normalizer is None
            and empty == DEFAULT_EMPTY
        ):
            index, smoothing, name, _, _, extra, scale, cap = self._scalars
            self._scalars_of_calls = (name, index, smoothing, extra, scale, cap)
            if weights is not None:
                self._scalars_of_calls += key_of_weights(weights.dtype, weights.shape, weight is None)
        self._buffers: OwnedBuffers | None = None
        self._grad_view: Array | None = None  # class axis last; None before the first forward
        self._class_axis = 0
        self.y: Array | None = None
        self.t: Array | None = None
        self.loss: Any = None

    def forward(self, x: npt.ArrayLike, t: npt.ArrayLike) -> Any:
        """Compute the loss, and with it all that `backward` needs.

        Parameters
        ----------
        x : array_like
            Logits, as in `cross_entropy`.
        t : array_like
            Class indices or (one-hot) probabilities, as in `cross_entropy`.

        Returns
        -------
        np.float64 or numpy.ndarray
            The loss as `cross_entropy` returns it.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `cross_entropy`; the layer is as it was before the call then.

        Examples
        --------
        >>> print(SoftmaxWithLoss(reduction="sum").forward(np.zeros((2, 4)), [1, 3]).round(6))
        2.772589
        """
        if self._scalars_of_calls is not None and type(x) is type(t) is np.ndarray:
            loss = self._forward_seen_before(x, t)
            if loss is not None:
                return loss
        threads = lazy.resolved_thread_count(self._n_threads)
        logits, axis = read_logits(x, self._axis)
        targets = as_array("targets", t)
        buffers = self._buffers_for(logits, targets)
        (
            ignore_index,
            label_smoothing,
            reduction,
            normalizer,
            empty,
            z_loss,
            logit_scale,
            softcap,
        ) = self._scalars
        plan, _ = loss_plan(
            logits, targets, axis, self._weight, self._sample_weight, ignore_index,
            label_smoothing, reduction, normalizer, empty, z_loss, logit_scale, softcap,
            self._class_mask, DEFAULT_UPSTREAM, None, True, None, threads, buffers,
        )  # fmt: skip
        loss = run_plan(plan)
        if loss is None:
            loss = per_sample_losses(plan, None)
        self._buffers = buffers
        self._grad_view = plan.grad
        self.y = buffers.probabilities
        self._class_axis = axis
        self.t = targets.copy()
        self.loss = loss
        return loss

    def _forward_seen_before(self, x: Array, t: Array) -> np.float64 | None:
        """Return the loss of contiguous arrays of shapes seen before, None to go the way of all checks."""
        owned = self._buffers
        dtype, shape = x.dtype, x.shape
        if owned is None or owned.grad.shape != shape or owned.grad.dtype != dtype:
            return None
        key = (dtype, shape, t.dtype, t.shape, 2, self._scalars_of_calls)
        call = lazy.kept_call(key, self._n_threads)
        if call is None:
            return None
        weights = () if self._weights_of_calls is None else (self._weights_of_calls,)
        value = call(x, t, owned.grad, owned.probabilities, *weights)
        if value == REFUSED:
            return None
        self._grad_view = owned.grad
        self._class_axis = x.ndim - 1
        self.y = owned.probabilities
        self.t = t.copy()
        self.loss = loss = np.float64(value)
        return loss

    def _buffers_for(self, logits: Array, targets: Array) -> OwnedBuffers:
        """Return the last buffers if they fit and the caller's arrays lie apart, else new ones."""
        dtype = RESULT_DTYPE[logits.dtype]
        owned = self._buffers
        if (
            owned is not None
            and owned.grad.shape == logits.shape
            and owned.grad.dtype == dtype
            and not overlaps(owned.probabilities, logits)
            and not overlaps(owned.probabilities, targets)
        ):
            return owned
        return OwnedBuffers(np.empty_like(logits, dtype), np.empty_like(logits, dtype))

    def backward(self, dout: float | npt.ArrayLike = 1, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return the gradient of the last loss with respect to the logits.

        Parameters
        ----------
        dout : float or array_like, default 1
            The gradient that arrives from above: a real number, or with ``reduction="none"`` an
            array of the shape of the loss.
        out : numpy.ndarray, optional
            Where to write the gradient: the shape of the logits, the dtype of the gradient, native
            byte order, aligned, writeable.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array that is the caller's: ``(y - t) * dout / batch_size`` for plain
            targets and "mean". The product is rounded to the dtype of the gradient.

        Raises
        ------
        RuntimeError
            Before the first `forward`.
        TypeError, ValueError
            For a `dout` that is no real number (or array of the shape of the loss), or an unusable
            `out`.

        Examples
        --------
        >>> layer = SoftmaxWithLoss()
        >>> loss = layer.forward(np.zeros((1, 2)), [1])
        >>> layer.backward(dout=2)
        array([[ 1., -1.]])
        """
        if self._buffers is None or self._grad_view is None:
            raise RuntimeError("backward needs a forward before it")
        grad = self._buffers.grad
        rows = self._grad_view.shape[:-1]
        factor = check_upstream("dout", dout, self._scalars[2], rows)
        if out is None:
            result = target = np.empty_like(grad)
        else:
            result = out
            target = check_output("out", out, grad.shape, grad.dtype)
        if isinstance(factor, float):
            if factor == 1.0:
                np.copyto(target, grad)
            else:
                _scale(grad, factor, target)
        else:
            _scale(self._grad_view, factor[..., np.newaxis], axis_last(target, self._class_axis))
        return result


def _copy_or_none(name: str, value: object) -> Array | None:
    """Copy an option that is an array, so that the caller's is not kept."""
    return None if value is None else as_array(name, value).copy()


def _scale(grad: Array, factor: float | Array, target: Array) -> None:
    """Write grad * factor to `target`, in float64 unless a float32 product is as good; 0 stays 0, whatever the factor is."""
    if not (math.isfinite(factor) if isinstance(factor, float) else np.isfinite(factor).all()):
        # (an ignored row's gradient is 0)
        factor = np.where(grad == 0, 0.0, factor)
    with np.errstate(all="ignore"):
        if (
            isinstance(factor, float)
            and grad.dtype == np.float32
            and _SMALLEST_FLOAT32 < abs(factor) < _LARGEST_FLOAT32
        ):
            np.multiply(grad, np.float32(factor), out=target)
        else:
            np.multiply(grad, factor, out=target, dtype=np.float64, casting="unsafe")
