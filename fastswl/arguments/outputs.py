"""Arrays to write to (`out`, `grad_out`), and whether they share memory with what is read."""

from typing import Any, Final

import numpy as np

from fastswl.arguments.arrays import Array

# Candidates that the exact overlap search may try; beyond, two arrays count as overlapping.
_OVERLAP_WORK: Final = 10_000


def check_output(name: str, out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Check an array that a result is to be written to.

    Parameters
    ----------
    name : str
        The argument's name, for error messages.
    out : numpy.ndarray
        The caller's array (or a subclass, such as a memory map).
    shape : tuple of int
        The shape it must have.
    dtype : numpy.dtype
        The dtype it must have, in native byte order.

    Returns
    -------
    numpy.ndarray
        `out` itself, or a plain view of it when it is of a subclass.

    Raises
    ------
    TypeError
        When it is no array, or of another dtype.
    ValueError
        When it has another shape, is read-only, unaligned or byte-swapped, or when two of its
        elements share memory.

    Examples
    --------
    >>> check_output("out", np.zeros(3), (2,), np.dtype(float))
    Traceback (most recent call last):
    ValueError: out has shape (3,), the result has shape (2,)
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    if out.dtype != dtype:
        if out.dtype.newbyteorder("=") == dtype:
            raise ValueError(f"{name} must be in native byte order, got dtype {out.dtype.str!r}")
        raise TypeError(f"{name} has dtype {out.dtype}, the result has dtype {dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape}, the result has shape {shape}")
    flags = out.flags
    if not flags.carray:
        if not flags.writeable:
            raise ValueError(f"{name} is read-only")
        if not flags.aligned:
            raise ValueError(f"{name} is not aligned for dtype {dtype}")
        if _overlaps_itself(out):
            raise ValueError(f"{name} has elements that share memory (shape {out.shape}, strides {out.strides})")
    return out if type(out) is np.ndarray else out.view(np.ndarray)


def _overlaps_itself(array: Array) -> bool:
    """Tell whether two elements may share memory.

    False only when each stride steps over all that the smaller ones reach.
    """
    extent = array.itemsize
    steps = zip(array.strides, array.shape, strict=True)
    for stride, length in sorted((abs(stride), n) for stride, n in steps if n != 1):
        if length == 0:
            return False
        if stride < extent:
            return True
        extent += stride * (length - 1)
    return False


def overlaps(first: Array, second: Array) -> bool:
    """Tell whether two arrays share memory: exactly where that is quickly found out, else True.

    Examples
    --------
    >>> x = np.zeros(6)
    >>> overlaps(x[::2], x[1::2]), overlaps(x[:4], x[3:])
    (False, True)
    """
    if not np.may_share_memory(first, second):
        return False
    try:
        return bool(np.shares_memory(first, second, max_work=_OVERLAP_WORK))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def same_elements(first: Array, second: Array) -> bool:
    """Tell whether two arrays are the same memory, walked in the same way in the same dtype.

    Examples
    --------
    >>> x = np.zeros((2, 2))
    >>> same_elements(x, x[:]), same_elements(x, x.T)
    (True, False)
    """
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
        and all(a == b or n == 1 for a, b, n in zip(first.strides, second.strides, first.shape, strict=True))
    )


def in_place_or_apart(out_name: str, out: Array, name: str, array: Array) -> Array:
    """Return the array to read: `out` when both are the same elements, else `array`, lying apart.

    Raises
    ------
    ValueError
        When they share memory in any other way.

    Examples
    --------
    >>> x = np.zeros(5)
    >>> in_place_or_apart("out", x[1:], "x", x[:-1])
    Traceback (most recent call last):
    ValueError: out overlaps x without being the same array
    """
    if out is array or not overlaps(out, array):
        return array
    if same_elements(out, array):
        return out
    raise ValueError(f"{out_name} overlaps {name} without being the same array")


def require_apart(out_name: str, out: Array, name: str, array: Array) -> None:
    """Raise ValueError when an array to write to shares memory with another one.

    Examples
    --------
    >>> x = np.zeros(5)
    >>> require_apart("out", x, "grad_out", x)
    Traceback (most recent call last):
    ValueError: out overlaps grad_out
    """
    if overlaps(out, array):
        raise ValueError(f"{out_name} overlaps {name}")


def apart_or_copy(outputs: list[tuple[str, Array]], array: Array) -> Array:
    """Return a small array, copied when it shares memory with one to be written."""
    if any(overlaps(out, array) for _, out in outputs):
        return array.copy()
    return array
