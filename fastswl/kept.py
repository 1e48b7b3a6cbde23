"""What calls are known by that are kept ready for the next ones of the same shapes, and how they refuse."""

import sys
from typing import Any, Final

import numpy as np

#: what a kept call returns in place of a loss: take the way of all checks (no loss is the lowest float)
REFUSED: Final = -sys.float_info.max


def key_of_weights(dtype: np.dtype[Any], shape: tuple[int, ...], of_rows: bool) -> tuple[Any, ...]:
    """Return what the key of a kept call ends in that takes weights, of classes or of rows.

    Examples
    --------
    >>> key_of_weights(np.dtype(float), (10,), True)
    (dtype('float64'), (10,), 'rows')
    """
    return (dtype, shape, "rows") if of_rows else (dtype, shape)
