"""Targets: class indices or class probabilities, told apart by shape and dtype."""

import numpy as np

from fastswl.arguments.arrays import INDEX_DTYPES, Array, as_array
from fastswl.arguments.axes import axis_last


def read_targets(targets: object, shape: tuple[int, ...], rows: tuple[int, ...], axis: int) -> tuple[Array, bool]:
    """Read the targets and tell which kind they are.

    Parameters
    ----------
    targets : array_like
        Class indices (any integer dtype, the shape of `logits` without `axis`) or class
        probabilities (any real dtype, the shape of `logits`).
    shape : tuple of int
        The shape of the logits.
    rows : tuple of int
        The same without the class axis.
    axis : int
        The class axis, in [0, len(shape)).

    Returns
    -------
    array : numpy.ndarray
        Indices as they are, or probabilities as a view with the class axis last.
    probabilities : bool
        Which kind.

    Raises
    ------
    TypeError
        For a dtype that is neither (complex, longdouble, object, ...).
    ValueError
        For any other shape, or for bool or floating numbers in the shape of indices.

    Examples
    --------
    >>> read_targets([0, 2], (2, 3), (2,), 1)
    (array([0, 2]), False)
    >>> read_targets([0, 2, 1], (2, 3), (2,), 1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: targets of shape (3,) and dtype int64 fit logits of shape (2, 3) neither as ...
    """
    array = as_array("targets", targets)
    if array.shape == rows and array.dtype in INDEX_DTYPES:
        return array, False
    if array.shape == shape:
        return axis_last(array, axis), True
    raise ValueError(
        f"targets of shape {array.shape} and dtype {array.dtype} fit logits of shape {shape} "
        f"neither as class indices (an integer dtype, shape {rows}) nor as class probabilities "
        f"(shape {shape}), with the classes on axis {axis}"
    )


def index_error(targets: Array, first_flat_position: int, n_classes: int) -> IndexError:
    """Build the error for a class index that is neither in [0, n_classes) nor ignored.

    Parameters
    ----------
    targets : numpy.ndarray
        The class indices, any integer dtype and shape.
    first_flat_position : int
        Where the first bad one is, counted in C order.
    n_classes : int
        The number of classes.

    Returns
    -------
    IndexError
        Naming the position (a number, or a tuple for more axes), the value and the number of
        classes.

    Examples
    --------
    >>> index_error(np.array([0, 7]), 1, 3)
    IndexError('targets[1] is 7, outside [0, 3) for 3 classes, and not ignore_index')
    >>> index_error(np.array([[0, -1]], dtype=np.int8), 1, 3)
    IndexError('targets[(0, 1)] is -1, outside [0, 3) for 3 classes, and not ignore_index')
    """
    position = tuple(int(i) for i in np.unravel_index(first_flat_position, targets.shape))
    if len(position) == 1:
        place = f"targets[{position[0]}]"
    else:
        place = f"targets[{position}]" if position else "targets"
    return IndexError(
        f"{place} is {int(targets[position])}, outside [0, {n_classes}) for {n_classes} classes, and not ignore_index"
    )
