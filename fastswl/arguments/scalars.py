"""Checks of arguments that are numbers or words."""

import math
import numbers
import operator
from typing import Final

import numpy as np
import numpy.typing as npt

from fastswl.arguments.arrays import as_array

# Defaults of the public functions. An argument that *is* its default has been checked already:
# comparing identities keeps a plain call short, and an equal value that is another object just
# takes the full check.
DEFAULT_AXIS: Final = -1
DEFAULT_IGNORE_INDEX: Final = -100
DEFAULT_LABEL_SMOOTHING: Final[float] = 0.0
DEFAULT_REDUCTION: Final = "mean"
DEFAULT_EMPTY: Final = "nan"
DEFAULT_Z_LOSS: Final[float] = 0.0
DEFAULT_LOGIT_SCALE: Final[float] = 1.0
DEFAULT_UPSTREAM: Final[float] = 1.0

REDUCTIONS: Final = ("mean", "sum", "none")
EMPTY_RULES: Final = ("nan", "zero", "raise")
_LOWEST_INT64: Final = -(2**63)
_HIGHEST_INT64: Final = 2**63 - 1
_SMALLEST: Final = math.nextafter(0.0, 1.0)  # the smallest float above 0
_LARGEST: Final = math.nextafter(math.inf, 0.0)  # the largest finite float
_SMALLEST_NORMAL_FLOAT32, _LARGEST_NORMAL_FLOAT32 = (
    float(limit) for limit in (np.finfo("f4").tiny, np.finfo("f4").max)
)


def real_number(name: str, value: object) -> float:
    """Return a real number (Python's, NumPy's, or an array without axes) as a float.

    Raises
    ------
    TypeError
        For bool, complex, strings, arrays with axes and other objects.
    ValueError
        For an int too large for a float.

    Examples
    --------
    >>> real_number("z_loss", np.float32(0.5))
    0.5
    >>> real_number("z_loss", True)
    Traceback (most recent call last):
    TypeError: z_loss must be a real number, got True
    """
    if type(value) is float:
        return value
    if not isinstance(value, (bool, np.bool_)):
        if isinstance(value, numbers.Real):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(f"{name} is too large for a float: {value!r}") from None
        if hasattr(value, "__float__") and getattr(value, "ndim", None) == 0:
            array = as_array(name, value)
            if array.dtype != np.bool_:
                return float(array)
    raise TypeError(f"{name} must be a real number, got {value!r}")


def integer(name: str, value: object) -> int:
    """Return an integer (Python's, NumPy's or any object with ``__index__``) as an int.

    Raises
    ------
    TypeError
        For bool, float, and whatever else is no integer.

    Examples
    --------
    >>> integer("n_threads", 2.0)
    Traceback (most recent call last):
    TypeError: n_threads must be an integer, got 2.0
    """
    if type(value) is int:
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "i")
    if not isinstance(value, bool) and kind in "iu":
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} must be an integer, got {value!r}")


def thread_count(n_threads: object, name: str = "n_threads") -> int:
    """Return a thread count of at least 1; errors call it by `name`.

    Raises
    ------
    TypeError
        For bool, float and other objects that are no integers.
    ValueError
        Below 1.

    Examples
    --------
    >>> thread_count(0)
    Traceback (most recent call last):
    ValueError: n_threads must be at least 1, got 0
    """
    count = integer(name, n_threads)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _word(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return one of the allowed words; TypeError for no string, ValueError for another one."""
    if isinstance(value, str) and value in allowed:
        return str(value)
    error = ValueError if isinstance(value, str) else TypeError
    choices = ", ".join(repr(word) for word in allowed)
    raise error(f"{name} must be one of {choices}, got {value!r}")


def _number_in(name: str, value: object, low: float, high: float, rule: str) -> float:
    """Return a float with low <= value <= high, else raise ValueError quoting `rule`."""
    number = real_number(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be {rule}, got {value!r}")
    return number


def scalars_in_float32(logit_scale: float, softcap: float | None) -> tuple[float, float | None]:
    """Check the scalars of the change of the logits where that is done in float32.

    A softcap that no float32 logit comes near is none.

    Raises
    ------
    ValueError
        For one that is no normal number of that type.

    Examples
    --------
    >>> scalars_in_float32(0.5, 1e39)
    (0.5, None)
    >>> scalars_in_float32(1e39, None)
    Traceback (most recent call last):
    ValueError: logit_scale must be in the normal range of float32, as the logits are, got 1e+39
    """
    if softcap is not None and softcap > _LARGEST_NORMAL_FLOAT32:
        softcap = None
    for name, value in (("logit_scale", logit_scale), ("softcap", softcap)):
        if value is not None and not _SMALLEST_NORMAL_FLOAT32 <= value <= _LARGEST_NORMAL_FLOAT32:
            raise ValueError(f"{name} must be in the normal range of float32, as the logits are, got {value!r}")
    return logit_scale, softcap


def check_float32_weights(weight: npt.NDArray[np.float64]) -> None:
    """Check class weights that float32 target mass is multiplied by.

    Raises
    ------
    ValueError
        For one other than 0 that is no normal number of that type.

    Examples
    --------
    >>> check_float32_weights(np.array([0.0, 1e-50]))
    Traceback (most recent call last):
    ValueError: weight must be 0 or in the normal range of float32, as the logits are, got 1e-50 at index 1
    """
    outside = (weight != 0.0) & ((weight < _SMALLEST_NORMAL_FLOAT32) | (weight > _LARGEST_NORMAL_FLOAT32))
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(
            f"weight must be 0 or in the normal range of float32, as the logits are, got {float(weight[first])!r} at index {first}"
        )


def loss_scalars(
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    normalizer: object,
    empty: object,
    z_loss: object,
    logit_scale: object,
    softcap: object,
) -> tuple[int, float, str, float | None, str, float, float, float | None]:
    """Check the options of the loss that are numbers or words, whatever the arrays are.

    Returns
    -------
    tuple
        The arguments in the order given, as exact Python types.

    Raises
    ------
    TypeError
        For a value of another type (bool is no number here).
    ValueError
        For a value outside its range, or a `normalizer` with a reduction other than "mean".

    Examples
    --------
    >>> loss_scalars(-1, 0, "sum", None, "zero", 0, 1, None)
    (-1, 0.0, 'sum', None, 'zero', 0.0, 1.0, None)
    >>> loss_scalars(-1, 1.5, "sum", None, "zero", 0, 1, None)
    Traceback (most recent call last):
    ValueError: label_smoothing must be in [0, 1], got 1.5
    """
    checked_index = integer("ignore_index", ignore_index)
    if not _LOWEST_INT64 <= checked_index <= _HIGHEST_INT64:
        raise ValueError(f"ignore_index must fit 64 signed bits, got {checked_index}")
    smoothing, extra, scale = DEFAULT_LABEL_SMOOTHING, DEFAULT_Z_LOSS, DEFAULT_LOGIT_SCALE
    if label_smoothing is not DEFAULT_LABEL_SMOOTHING:
        smoothing = _number_in("label_smoothing", label_smoothing, 0.0, 1.0, "in [0, 1]")
    if z_loss is not DEFAULT_Z_LOSS:
        extra = _number_in("z_loss", z_loss, 0.0, _LARGEST, "finite and non-negative")
    if logit_scale is not DEFAULT_LOGIT_SCALE:
        scale = _number_in("logit_scale", logit_scale, _SMALLEST, _LARGEST, "finite and above 0")
    cap = divisor = None
    if softcap is not None:
        cap = _number_in("softcap", softcap, _SMALLEST, _LARGEST, "finite and above 0")
    checked_reduction = _word("reduction", reduction, REDUCTIONS)
    if normalizer is not None:
        divisor = _number_in("normalizer", normalizer, 0.0, _LARGEST, "finite and non-negative")
        if checked_reduction != "mean":
            raise ValueError(f"normalizer goes with reduction='mean' only, got reduction={checked_reduction!r}")
    checked_empty = _word("empty", empty, EMPTY_RULES)
    return (
        checked_index,
        smoothing,
        checked_reduction,
        divisor,
        checked_empty,
        extra,
        scale,
        cap,
    )
