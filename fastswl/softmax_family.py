"""softmax, log_softmax and logsumexp: documentation, checks and allocation around the kernels."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy import empty, ndarray  # (an attribute of `np` takes 20 ns of 600 that a small call has)

from fastswl import lazy
from fastswl.arguments import (
    DEFAULT_AXIS,
    RESULT_DTYPE,
    as_array,
    check_output,
    class_axes,
    in_place_or_apart,
    promoted_dtype,
    require_apart,
)
from fastswl.blocks import run_over_axes
from fastswl.kept import REFUSED
from fastswl.signed_logsumexp import signed_logsumexp


def softmax(
    x: npt.ArrayLike,
    axis: int | tuple[int, ...] | None = DEFAULT_AXIS,
    *,
    out: npt.NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> Any:
    """Exponentials divided by their sum: ``exp(x) / sum(exp(x))`` along an axis.

    Parameters
    ----------
    x : array_like
        Array of any shape, strides and byte order: bool, integers, float16, ``ml_dtypes.bfloat16``,
        float32 or float64. Read where it lies (copied when byte-swapped or unaligned), never
        written.
    axis : int, tuple of int or None, default -1
        The class axis, or axes; None is the whole array, ``()`` makes each element a class of its
        own. An array without axes has one class.
    out : numpy.ndarray, optional
        Where to write the result: the shape of `x`, the dtype of the result, native byte order,
        aligned, writeable. It may be `x` itself. Other overlap with `x` raises.
    n_threads : int, optional
        How many threads to use at most; 1 starts no parallel region. None is `get_num_threads`. The
        result does not depend on it.

    Returns
    -------
    numpy.ndarray
        `out` if given, else a new array with the shape and the order of axes in memory of `x` (a
        NumPy scalar when `x` has no axes): float64 for float64, integers and bool, otherwise the
        dtype of `x`. Arithmetic is float64 for a float64 result, otherwise float32 with sums
        carried in float64.

    Raises
    ------
    TypeError
        For another dtype (complex, longdouble, object, ...), an `axis` or `n_threads` that is no
        integer, an `out` that is no array or of another dtype.
    ValueError
        For an axis given twice or (as `numpy.exceptions.AxisError`) out of range, ``n_threads <
        1``, an `out` of another shape, read-only, unaligned, byte-swapped or overlapping. Nothing
        has been written then.

    See Also
    --------
    log_softmax, logsumexp

    Notes
    -----
    Special values, by row: ``-inf`` beside finite values gives 0; all ``-inf``, any ``+inf`` or any
    NaN gives NaN for the row. An empty class axis gives the empty array (SciPy raises). When
    several axes cannot be walked as one, they are copied in blocks of at most 2 MiB.

    Names and meaning are those of `scipy.special.softmax` [1]_, except that the default axis is the
    last.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and
    softmax functions", IMA
       Journal of Numerical Analysis 41 (2021), :doi:`10.1093/imanum/draa038`.

    Examples
    --------
    >>> import fastswl as swl
    >>> swl.softmax([[0.0, 0.0], [-np.inf, 3.0]])
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    if (
        type(x) is ndarray
        and axis is DEFAULT_AXIS
        and (n_threads is None or (type(n_threads) is int and n_threads > 0))
    ):
        result = _seen_before("softmax", x, out, n_threads)
        if result is not None:
            return result
    return _same_shape("softmax", x, axis, out, n_threads)


def log_softmax(
    x: npt.ArrayLike,
    axis: int | tuple[int, ...] | None = DEFAULT_AXIS,
    *,
    out: npt.NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> Any:
    """Logarithm of the softmax, ``x - log(sum(exp(x)))`` along an axis.

    Accurate also where the softmax is near 0 or 1.

    Parameters
    ----------
    x : array_like
        As in `softmax`.
    axis : int, tuple of int or None, default -1
        As in `softmax`.
    out : numpy.ndarray, optional
        As in `softmax`.
    n_threads : int, optional
        As in `softmax`.

    Returns
    -------
    numpy.ndarray
        As in `softmax`.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    See Also
    --------
    softmax, logsumexp

    Notes
    -----
    Special values, by row: ``-inf`` beside finite values stays ``-inf``; all ``-inf`` gives NaN; a
    ``+inf`` gives NaN there and ``-inf`` at the finite values; any NaN gives NaN for the row. An
    empty class axis gives the empty array. Names and meaning are those of
    `scipy.special.log_softmax`, except that the default axis is the last.

    Examples
    --------
    >>> import fastswl as swl
    >>> print(swl.log_softmax([0.0, 0.0]).round(6))
    [-0.693147 -0.693147]
    """
    if (
        type(x) is ndarray
        and axis is DEFAULT_AXIS
        and (n_threads is None or (type(n_threads) is int and n_threads > 0))
    ):
        result = _seen_before("log_softmax", x, out, n_threads)
        if result is not None:
            return result
    return _same_shape("log_softmax", x, axis, out, n_threads)


def _seen_before(operation: str, x: npt.NDArray[Any], out: Any, n_threads: int | None) -> Any:
    """Return the result of a contiguous array of a shape seen before, None if it has to go the way of all checks."""
    dtype, shape = x.dtype, x.shape
    key = (operation, dtype, shape)
    call = lazy.prepared.get(key) if n_threads is None else lazy.kept_call(key, n_threads)
    if call is None:
        return None
    if out is None:
        out = empty(shape, dtype)
    elif type(out) is not ndarray or out.dtype is not dtype or out.shape != shape:
        return None
    # 0.0, or refused
    return None if call(x, out) else out


def _same_shape(operation: str, x: object, axis: object, out: Any, n_threads: int | None) -> Any:
    """Check, allocate and run softmax or log_softmax."""
    threads = lazy.resolved_thread_count(n_threads)
    array = as_array("x", x)
    axes = None if axis is DEFAULT_AXIS and array.ndim else class_axes(axis, array.ndim)
    dtype = RESULT_DTYPE[array.dtype]
    if out is None:
        target = result = np.empty_like(array, dtype)
    else:
        result = out
        target = check_output("out", out, array.shape, dtype)
        array = in_place_or_apart("out", target, "x", array)
    if array.size:
        if axes is None:
            lazy.dispatch.run_softmax_family(operation, array, target, threads)
        else:
            run_over_axes(lazy.dispatch.run_softmax_family, operation, array, axes, target, threads)
    return result if out is not None or result.ndim else result[()]


def logsumexp(
    x: npt.ArrayLike,
    axis: int | tuple[int, ...] | None = DEFAULT_AXIS,
    *,
    b: npt.ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    out: npt.NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> Any:
    """Logarithm of the sum of exponentials, ``log(sum(b * exp(x)))`` along an axis.

    Parameters
    ----------
    x : array_like
        As in `softmax`.
    axis : int, tuple of int or None, default -1
        As in `softmax`; with `b` it counts in the common shape of both.
    b : array_like, optional
        Real factors of any sign that broadcast with `x`. Entries where `b` is 0 drop out, whatever
        `x` is there, NaN too.
    keepdims : bool, default False
        Keep the reduced axes, with length 1.
    return_sign : bool, default False
        Return the pair of ``log(abs(sum))`` and the sign of the sum. Otherwise a negative sum gives
        NaN.
    out : numpy.ndarray, optional
        Where to write the logarithm: the shape and dtype of the result, native byte order, aligned,
        writeable, sharing no memory with `x` or `b`.
    n_threads : int, optional
        As in `softmax`; sums with `b` use one thread.

    Returns
    -------
    result : numpy.ndarray or NumPy scalar
        The shape of `x` without the class axes; a NumPy scalar when no axes are left (unless it is
        `out`). Its dtype is the one `softmax` would have; with `b`, NumPy's common dtype of that
        and of `b` (a Python number for `b` counts as no dtype). Arithmetic is float64 for a float64
        result and always with `b`; otherwise float32 with sums carried in float64.
    sign : numpy.ndarray or NumPy scalar
        Only with `return_sign`: 1, -1, 0 or NaN, in the shape and dtype of `result`.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`; also for shapes of `x` and `b` that do not broadcast.

    See Also
    --------
    softmax, log_softmax

    Notes
    -----
    Special values, by row: all ``-inf``, and an empty class axis, give ``-inf`` (sign 0); a
    ``+inf`` gives ``+inf``; any NaN gives NaN. With `b`, infinite terms of both signs give NaN.
    Names and meaning are those of `scipy.special.logsumexp`, except that the default axis is the
    last, and that the sign of an empty sum is 0.

    Examples
    --------
    >>> import fastswl as swl
    >>> print(swl.logsumexp([1000.0, 1000.0]).round(6))
    1000.693147
    >>> value, sign = swl.logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    >>> print(value.round(6), sign)
    1.541325 -1.0
    """
    if (
        type(x) is ndarray
        and axis is DEFAULT_AXIS
        and b is out is None
        and keepdims is return_sign is False
        and (n_threads is None or (type(n_threads) is int and n_threads > 0))
    ):
        key = ("logsumexp", x.dtype, x.shape)
        call = lazy.prepared.get(key) if n_threads is None else lazy.kept_call(key, n_threads)
        if call is not None:
            result = np.empty(x.shape[:-1], x.dtype)
            if call(x, result) != REFUSED:
                return result if result.ndim else result[()]
    threads = lazy.resolved_thread_count(n_threads)
    array = as_array("x", x)
    dtype = RESULT_DTYPE[array.dtype]
    factors = None
    if b is not None:
        factors = as_array("b", b)
        if not isinstance(b, (int, float)) or isinstance(b, np.generic):
            dtype = promoted_dtype(dtype, factors.dtype)
        try:
            array, factors = np.broadcast_arrays(array, factors)
        except ValueError:
            raise ValueError(f"b of shape {factors.shape} does not broadcast with x of shape {array.shape}") from None
    last = axis is DEFAULT_AXIS and array.ndim > 0
    axes = (array.ndim - 1,) if last else class_axes(axis, array.ndim)
    rows = array.shape[:-1] if last else tuple(n for i, n in enumerate(array.shape) if i not in axes)
    shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape)) if keepdims else rows
    if out is None:
        target = result = np.empty(shape, dtype)
    else:
        result = out
        target = check_output("out", out, shape, dtype)
        require_apart("out", target, "x", array)
        if factors is not None:
            require_apart("out", target, "b", factors)
    sign = np.empty(shape, dtype) if return_sign else None
    row_target = target.squeeze(axes) if keepdims and axes else target
    row_sign = sign.squeeze(axes) if sign is not None and keepdims and axes else sign
    if not array.size:
        target.fill(-np.inf)
        if sign is not None:
            sign.fill(0.0)
    elif factors is not None:
        signed_logsumexp(array, factors, axes, row_target, row_sign)
    else:
        if last:
            lazy.dispatch.run_softmax_family("logsumexp", array, row_target, threads)
        else:
            run_over_axes(lazy.dispatch.run_softmax_family, "logsumexp", array, axes, row_target, threads)
        if sign is not None:
            sign[...] = np.where(target == -np.inf, 0.0, np.where(np.isnan(target), np.nan, 1.0))
    value = result if out is not None or result.ndim else result[()]
    if sign is None:
        return value
    return value, (sign if sign.ndim else sign[()])
