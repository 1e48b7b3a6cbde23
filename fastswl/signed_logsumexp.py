"""log|sum(b * exp(x))| and its sign: logsumexp with factors, in float64 on blocks of bounded size.

With z = x + log|b| and k the entry of the largest z, every term relative to that of k is t = (b /
|b_k|) * exp(x - x_k), so |t| <= 1 and t_k = +-1 exactly; the result is x_k + log|b_k| + log|t_k +
rest|, whose last part is a log1p. Where the quotient or the exponential would leave the range of
float64, t = +-exp(z - z_k).
"""

import math
from typing import Final

import numpy as np

from fastswl.arguments import Array
from fastswl.blocks import BLOCK_BYTES, Index, cut

# x - x_k and b / b_k within these give a product of full precision
_LOWEST_DIFFERENCE: Final = -600.0
_SMALLEST_QUOTIENT: Final = 1e-40
_LARGEST_QUOTIENT: Final = 1e40


def signed_logsumexp(x: Array, b: Array, axes: tuple[int, ...], out: Array, sign: Array | None) -> None:
    """Write log|sum(b * exp(x))| over some axes to `out`, and the sign of the sum to `sign`.

    Parameters
    ----------
    x, b : numpy.ndarray
        Real arrays of one shape (views with strides of 0 serve), in any supported dtype; each block
        is converted to float64, in which everything is accumulated. Entries where `b` is 0 drop
        out, whatever `x` is there.
    axes : tuple of int
        The axes of the sum, in [0, x.ndim), each once.
    out : numpy.ndarray
        The shape without `axes`, floating.
    sign : numpy.ndarray or None
        The same shape, floating: receives 1, -1, 0 (the sum is 0, or empty) or NaN. When None, a
        negative sum gives NaN in `out`.

    Notes
    -----
    A sum of zero, and an empty one, is ``-inf``. A NaN in `x` (where `b` is not 0) or `b` gives
    NaN; so do infinite terms of both signs, and ``b = inf`` at ``x = -inf``. Infinite terms of one
    sign give ``+inf`` with that sign.

    Examples
    --------
    >>> out, sign = np.empty(()), np.empty(())
    >>> signed_logsumexp(np.array([1.0, 2.0]), np.array([1.0, -1.0]), (0,), out, sign)
    >>> f"{out:.12f}", float(sign)
    ('1.541324854613', -1.0)
    """
    order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
    x, b = x.transpose(order), b.transpose(order)
    n_rows_axes = x.ndim - len(axes)
    class_shape = x.shape[n_rows_axes:]
    n_classes = math.prod(class_shape)
    limit = BLOCK_BYTES // 8
    pieces = list(cut(class_shape, limit)) if n_classes else []
    with np.errstate(all="ignore"):
        for rows in cut(x.shape[:n_rows_axes], max(1, limit // max(n_classes, 1))):
            value, total_sign = _rows(x[*rows, ...], b[*rows, ...], n_rows_axes, pieces)
            if sign is None:
                value[total_sign < 0.0] = np.nan
            else:
                sign[rows] = total_sign.reshape(np.shape(sign[rows]))
            out[rows] = value.reshape(np.shape(out[rows]))


def _rows(x: Array, b: Array, n_rows_axes: int, pieces: list[Index]) -> tuple[Array, Array]:
    """Return values and signs, float64 of shape (number of rows,), for one block of rows."""
    n_rows = math.prod(x.shape[:n_rows_axes])
    everything = (slice(None),) * n_rows_axes

    def read(array: Array, piece: Index) -> Array:
        return array[everything + piece].astype(np.float64).reshape(n_rows, -1)

    row = np.arange(n_rows)
    best_z = np.full(n_rows, -np.inf)
    best_x, best_b = np.zeros(n_rows), np.ones(n_rows)
    best_piece, best_column = np.full(n_rows, -1), np.zeros(n_rows, dtype=np.intp)
    infinite_positive, infinite_negative, undefined = np.zeros((3, n_rows), dtype=bool)
    for number, piece in enumerate(pieces):
        values, factors = read(x, piece), read(b, piece)
        z = _log_size(values, factors)
        infinite_positive |= ((z == np.inf) & (factors > 0.0)).any(axis=1)
        infinite_negative |= ((z == np.inf) & (factors < 0.0)).any(axis=1)
        column = z.argmax(axis=1)  # the first NaN where there is one
        top = z[row, column]
        undefined |= np.isnan(top)
        better = top > best_z
        best_z = np.where(better, top, best_z)
        best_x = np.where(better, values[row, column], best_x)
        best_b = np.where(better, factors[row, column], best_b)
        best_piece[better] = number
        best_column = np.where(better, column, best_column)

    regular = np.isfinite(best_z)
    shift_x = np.where(regular, best_x, 0.0)
    shift_b = np.where(regular, np.abs(best_b), 1.0)
    shift_z = np.where(regular, best_z, 0.0)
    rest = np.zeros(n_rows)
    for number, piece in enumerate(pieces):
        values, factors = read(x, piece), read(b, piece)
        difference = values - shift_x[:, np.newaxis]
        quotient = factors / shift_b[:, np.newaxis]
        terms = quotient * np.exp(difference)
        size = np.abs(quotient)
        in_range = (difference > _LOWEST_DIFFERENCE) & (size > _SMALLEST_QUOTIENT) & (size < _LARGEST_QUOTIENT)
        in_range |= factors == 0.0
        if not in_range.all():
            far = np.sign(factors) * np.exp(_log_size(values, factors) - shift_z[:, np.newaxis])
            terms = np.where(in_range, terms, far)
        terms[factors == 0.0] = 0.0
        owner = np.flatnonzero(best_piece == number)
        terms[owner, best_column[owner]] = 0.0
        rest += terms.sum(axis=1)

    best_sign = np.sign(best_b)
    ratio = best_sign * rest  # the total is best_sign * (1 + ratio)
    flipped = ratio < -1.0
    value = shift_x + np.log(shift_b) + np.log1p(np.where(flipped, -2.0 - ratio, ratio))
    sign = np.where(flipped, -best_sign, best_sign)
    sign[ratio == -1.0] = 0.0

    nothing = best_z == -np.inf
    value[nothing], sign[nothing] = -np.inf, 0.0
    infinite = best_z == np.inf
    value[infinite] = np.inf
    sign[infinite] = np.where(infinite_negative, -1.0, 1.0)[infinite]
    undefined |= infinite_positive & infinite_negative
    value[undefined] = sign[undefined] = np.nan
    return value, sign


def _log_size(x: Array, b: Array) -> Array:
    """Return x + log|b| in float64, -inf where b is 0."""
    size = np.log(np.abs(b))
    size += x
    size[b == 0.0] = -np.inf
    return size
