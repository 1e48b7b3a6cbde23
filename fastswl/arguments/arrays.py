"""Which arrays are accepted, and in which dtype the results come.

The one place that knows the dtype table: every argument that is an array passes through `as_array`
or `as_float64`.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FLOAT16: Final = np.dtype(np.float16)
_FLOAT32: Final = np.dtype(np.float32)
_FLOAT64: Final = np.dtype(np.float64)
_INTEGERS: Final = tuple(np.dtype(code) for code in ("b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"))

#: dtype of gradients and probabilities, by the dtype of the input (native byte order)
RESULT_DTYPE: Final[dict[np.dtype[Any], np.dtype[Any]]] = {
    _FLOAT32: _FLOAT32,
    _FLOAT64: _FLOAT64,
    _FLOAT16: _FLOAT16,
    np.dtype(np.bool_): _FLOAT64,
    **dict.fromkeys(_INTEGERS, _FLOAT64),
}
#: dtype of per-sample losses, by the dtype of the logits
LOSS_DTYPE: Final[dict[np.dtype[Any], np.dtype[Any]]] = {**RESULT_DTYPE, _FLOAT16: _FLOAT32}
#: dtypes that class indices may have
INDEX_DTYPES: Final = frozenset(_INTEGERS)


def _register_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Add bfloat16 to the tables when `dtype` is it; `ml_dtypes` is never imported from here."""
    if dtype.name != "bfloat16" or dtype.itemsize != 2 or dtype.type.__module__ != "ml_dtypes":
        return False
    RESULT_DTYPE[dtype] = dtype
    LOSS_DTYPE[dtype] = _FLOAT32
    return True


def as_array(name: str, value: object) -> Array:
    """Read any array-like as an array that the kernels can walk.

    Parameters
    ----------
    name : str
        The argument's name, for error messages.
    value : array_like
        Array of bool, integers, float16, bfloat16, float32 or float64, any shape and strides;
        anything that `numpy.asarray` reads; or an object that offers only DLPack.

    Returns
    -------
    numpy.ndarray
        A plain array (masks and matrix types dropped) in native byte order and aligned: the
        caller's memory where it is so already, a copy otherwise.

    Raises
    ------
    TypeError
        For any other dtype (complex, longdouble, object, datetime, strings, ...) or an object that
        is no array.
    ValueError
        For nested sequences of unequal lengths.

    Examples
    --------
    >>> as_array("x", [[1, 2]]).dtype.name
    'int64'
    >>> as_array("x", [1j])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: x has dtype complex128; supported are bool, integers, float16, bfloat16, float32 ...
    """
    if type(value) is np.ndarray and value.dtype in RESULT_DTYPE and value.flags.carray:
        return value
    array = _read(name, value)
    try:
        native = array.dtype.newbyteorder("=")
    except TypeError:  # of NumPy's new kinds of dtypes, as StringDType
        native = array.dtype
    if native not in RESULT_DTYPE and not _register_bfloat16(native):
        raise TypeError(
            f"{name} has dtype {array.dtype}; supported are bool, integers, float16, bfloat16, float32 and float64"
        )
    if array.dtype != native or not array.flags.aligned:
        array = array.astype(native)
    return array


def _read(name: str, value: object) -> Array:
    """Call `numpy.asarray`, naming the argument in its errors; fall back on DLPack."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    except (TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype == object and array is not value and hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise TypeError(f"{name} cannot be read as an array through DLPack: {error}") from error
    return array


def as_float64(name: str, value: object) -> Array:
    """Read an array-like as float64: the caller's memory where it is that already, else a copy.

    Raises
    ------
    TypeError, ValueError
        As `as_array`.

    Examples
    --------
    >>> as_float64("weight", [1, 2])
    array([1., 2.])
    """
    array = as_array(name, value)
    return array if array.dtype == _FLOAT64 else array.astype(_FLOAT64)


def check_finite_non_negative(name: str, array: Array) -> None:
    """Raise ValueError with the first value of a float64 array that is negative, NaN or infinite.

    Examples
    --------
    >>> check_finite_non_negative("weight", np.array([1.0, -2.0]))
    Traceback (most recent call last):
    ValueError: weight must be finite and non-negative, got -2.0 at index 1
    """
    if not array.size or (array.min() >= 0.0 and array.max() < np.inf):
        return
    first = int(np.argmin((array >= 0.0) & (array < np.inf)))
    position = tuple(int(i) for i in np.unravel_index(first, array.shape))
    where = "" if not position else f" at index {position[0] if len(position) == 1 else position}"
    raise ValueError(f"{name} must be finite and non-negative, got {float(array[position])!r}{where}")


def promoted_dtype(first: np.dtype[Any], second: np.dtype[Any]) -> np.dtype[Any]:
    """Return NumPy's common dtype of two supported ones.

    Where NumPy has none (bfloat16 with float16 or integers), it is float32 for two half precisions,
    else float64.

    Examples
    --------
    >>> promoted_dtype(np.dtype("f4"), np.dtype("i8")).name
    'float64'
    """
    try:
        common = np.promote_types(first, second)
    except TypeError:
        half = LOSS_DTYPE[first] == LOSS_DTYPE[second] == _FLOAT32
        return _FLOAT32 if half else _FLOAT64
    return RESULT_DTYPE[common]
