"""The softmax family over several axes: one view where strides allow, else copied blocks.

A temporary never holds more than `BLOCK_BYTES`, however large the array is.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from fastswl.arguments import Array, by_descending_stride, merge_last_axes

#: size of the largest temporary
BLOCK_BYTES: Final = 2 * 1024 * 1024

#: run_softmax_family of the dispatch: operation, x with the class axis last, out, thread count
Runner = Callable[[str, Array, Array, int], None]
Index = tuple[Any, ...]


def cut(shape: tuple[int, ...], limit: int) -> Iterator[Index]:
    """Cut an array of a shape into blocks of at most `limit` (>= 1) elements, in C order.

    Yields
    ------
    tuple of slice
        One slice for each axis.

    Examples
    --------
    >>> [(rows.start, rows.stop) for rows, columns in cut((5, 10), 20)]
    [(0, 2), (2, 4), (4, 5)]
    """
    if not shape:
        yield ()
        return
    inner_shape = shape[1:]
    inner = math.prod(inner_shape)
    if inner > limit:
        for i in range(shape[0]):
            for rest in cut(inner_shape, limit):
                yield (slice(i, i + 1), *rest)
        return
    step = limit // max(inner, 1)
    whole = (slice(None),) * len(inner_shape)
    for start in range(0, shape[0], step):
        yield (slice(start, min(start + step, shape[0])), *whole)


def run_over_axes(run: Runner, operation: str, x: Array, axes: tuple[int, ...], out: Array, n_threads: int) -> None:
    """Evaluate a function of the softmax family with several axes (or none) as the class axis.

    Parameters
    ----------
    run : callable
        The dispatch, for one class axis that is the last.
    operation : str
        "softmax", "log_softmax" or "logsumexp".
    x : numpy.ndarray
        Any supported dtype and strides, not empty.
    axes : tuple of int
        The class axes, in [0, x.ndim), each once.
    out : numpy.ndarray
        The shape of `x`, or for "logsumexp" of `x` without `axes`. It may be `x` itself.
    n_threads : int
        Thread count.
    """
    if len(axes) > 1:
        axes = by_descending_stride(x, axes)
    order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
    count = len(axes)
    reduces = operation == "logsumexp"
    x = x.transpose(order)
    merged = merge_last_axes(x, count)
    if reduces:
        merged_out: Array | None = out
    else:
        out = out.transpose(order)
        merged_out = merge_last_axes(out, count)
    if merged is not None and merged_out is not None:
        run(operation, merged, merged_out, n_threads)
        return
    n_rows_axes = x.ndim - count
    class_bytes = math.prod(x.shape[n_rows_axes:]) * x.itemsize
    if class_bytes > BLOCK_BYTES:
        _run_long_rows(run, operation, x, n_rows_axes, out, n_threads)
        return
    for index in cut(x.shape[:n_rows_axes], BLOCK_BYTES // class_bytes):
        part = x[index]
        block = np.array(part, order="C").reshape((*part.shape[:n_rows_axes], -1))
        if reduces:
            run(operation, block, out[*index, ...], n_threads)
        elif out.dtype == block.dtype:
            run(operation, block, block, n_threads)
            out[index] = block.reshape(part.shape)
        else:
            result = np.empty(block.shape, out.dtype)
            run(operation, block, result, n_threads)
            out[index] = result.reshape(part.shape)


def _run_long_rows(run: Runner, operation: str, x: Array, n_rows_axes: int, out: Array, n_threads: int) -> None:
    """Evaluate rows longer than a block, each in pieces, with float64 between the pieces.

    With m the maximum of a row, l the logsumexp of x - m (itself from the logsumexps of the
    pieces): logsumexp is m + l, log_softmax (x - m) - l. A maximum that is not finite is replaced by
    0, which leaves the special values to the arithmetic.
    """
    class_shape = x.shape[n_rows_axes:]
    pieces = list(cut(class_shape, BLOCK_BYTES // 8))
    for index in np.ndindex(x.shape[:n_rows_axes]):
        row = x[*index, ...]
        if operation == "softmax":
            _softmax_of_long_row(run, row, pieces, out[*index, ...], n_threads)
            continue
        maximum = np.float64(-np.inf)
        for piece in pieces:
            maximum = np.maximum(maximum, np.float64(row[piece].max()))
        if not np.isfinite(maximum):
            maximum = np.float64(0.0)
        partial = np.empty((1, len(pieces)))
        for i, piece in enumerate(pieces):
            shifted = np.subtract(row[piece], maximum, dtype=np.float64)
            run("logsumexp", shifted.reshape(1, -1), partial[:, i], n_threads)
        total = np.empty(1)
        run("logsumexp", partial, total, n_threads)
        if operation == "logsumexp":
            out[index] = maximum + total[0]
            continue
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for piece in pieces:
                values = np.subtract(row[piece], maximum, dtype=np.float64)
                values -= total[0]
                out[*index, ...][piece] = values


def _softmax_of_long_row(run: Runner, row: Array, pieces: list[Index], out: Array, n_threads: int) -> None:
    """Evaluate the softmax of one row in pieces: that of each piece, times the piece's share of the sum.

    (The exponential of log_softmax would have the error of its exponent, 50 ulp and more.) A piece
    of top t and sum s of exp(x - t) has the share s exp(t - m) / S, and 1 / s is its softmax at t.
    """

    def softmax_of(piece: Index) -> tuple[Array, float]:
        values = row[piece].astype(np.float64).reshape(1, -1)
        top = float(values.max())
        run("softmax", values, values, n_threads)
        return values, top

    tops, sums = np.empty(len(pieces)), np.empty(len(pieces))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for i, piece in enumerate(pieces):
            values, tops[i] = softmax_of(piece)
            sums[i] = 1.0 / values.max()
        maximum = tops.max()
        below = tops - maximum
        # the rounding error of the difference (Knuth's two_sum)
        moved = below - tops
        rest = (tops - (below - moved)) - (maximum + moved)
        shares = sums * np.exp(below) * (1.0 + rest)
        # a piece of nothing but -inf is NaN by itself; a row of such pieces has to be (0 / 0)
        shares[tops == -np.inf] = 0.0
        shares /= shares.sum()
        for piece, share in zip(pieces, shares, strict=True):
            values, _ = softmax_of(piece)
            if share == 0.0:
                values.fill(0.0)
            values *= share
            out[piece] = values.reshape(row[piece].shape)
