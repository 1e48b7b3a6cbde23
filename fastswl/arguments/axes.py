"""Which axes hold the classes, and how they become one last axis without a copy."""

import math
from itertools import pairwise

import numpy as np

from fastswl.arguments.arrays import Array
from fastswl.arguments.scalars import integer


def class_axis(axis: object, ndim: int) -> int:
    """Return a single axis as a number in [0, ndim).

    Raises
    ------
    TypeError
        When it is no integer (a tuple, None, bool, float).
    numpy.exceptions.AxisError
        (a ValueError and an IndexError) when the array has no such axis.

    Examples
    --------
    >>> class_axis(-2, 3)
    1
    >>> class_axis(3, 3)
    Traceback (most recent call last):
    numpy.exceptions.AxisError: axis: axis 3 is out of bounds for array of dimension 3
    """
    position = integer("axis", axis)
    if not -ndim <= position < ndim:
        raise np.exceptions.AxisError(position, ndim, "axis")
    return position % ndim


def class_axes(axis: object, ndim: int) -> tuple[int, ...]:
    """Return the axes named by an int, a tuple or None (all), sorted, each in [0, ndim).

    An array without axes has axis 0 and -1 as for NumPy's reductions; the answer for it is ``()``:
    one class.

    Raises
    ------
    TypeError
        For any other type.
    ValueError
        For an axis named twice.
    numpy.exceptions.AxisError
        (a ValueError and an IndexError) when the array has no such axis.

    Examples
    --------
    >>> class_axes((2, -3), 3)
    (0, 2)
    >>> class_axes(None, 2)
    (0, 1)
    """
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, tuple):
        axes = tuple(sorted(class_axis(one, ndim) for one in axis))
        if len(set(axes)) != len(axes):
            raise ValueError(f"axis names an axis twice: {axis!r}")
        return axes
    if ndim == 0:
        class_axis(axis, 1)
        return ()
    return (class_axis(axis, ndim),)


def axis_last(array: Array, axis: int) -> Array:
    """Return a view with one axis moved to the end, the others in order.

    Examples
    --------
    >>> axis_last(np.zeros((2, 3, 4)), 0).shape
    (3, 4, 2)
    """
    last = array.ndim - 1
    if axis == last:
        return array
    return array.transpose((*range(axis), *range(axis + 1, last + 1), axis))


def by_descending_stride(array: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Order axes from the outermost in memory to the innermost, so that as many as possible merge.

    Examples
    --------
    >>> by_descending_stride(np.zeros((2, 3), order="F"), (0, 1))
    (1, 0)
    """
    return tuple(sorted(axes, key=lambda axis: -abs(array.strides[axis])))


def merge_last_axes(array: Array, count: int) -> Array | None:
    """Merge the last `count` axes into one, as a view; None where the strides do not allow that.

    With a count of 0 an axis of length 1 is added.

    Examples
    --------
    >>> merge_last_axes(np.zeros((2, 3, 4)), 2).shape
    (2, 12)
    >>> merge_last_axes(np.zeros((2, 3, 4))[:, :, ::2], 2).shape
    (2, 6)
    >>> merge_last_axes(np.zeros((2, 3, 4))[:, :, :3], 2) is None
    True
    """
    if count == 1:
        return array
    if count == 0:
        return array[..., np.newaxis]
    first = array.ndim - count
    steps = zip(array.shape[first:], array.strides[first:], strict=True)
    long_axes = [(length, stride) for length, stride in steps if length != 1]
    if any(outer != length * inner for (_, outer), (length, inner) in pairwise(long_axes)):
        return None
    merged = array.reshape((*array.shape[:first], math.prod(array.shape[first:])))
    return merged if np.may_share_memory(merged, array) else None
