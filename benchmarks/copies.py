"""The parallel plain copies that ratios are taken to.

A loop in Numba over the 4-byte words of the arrays, split evenly over the threads, as somebody
would write it first: ordinary loads and stores, no streaming, no prefetch. What it moves is what
any function must move that reads its input once and writes its result once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np


@functools.cache
def _loops(parallel: bool):
    import numba

    import fastswl

    if parallel:
        fastswl.threading_layer()  # the same threading layer for all
    span = numba.prange if parallel else range

    @numba.njit(parallel=parallel)
    def copy(source, target):
        for i in span(source.size):
            target[i] = source[i]

    @numba.njit(parallel=parallel, fastmath={"reassoc", "nsz", "contract"})
    def read(source):
        total = np.float32(0)
        for i in span(source.size):
            total += source[i]
        return total

    @numba.njit(parallel=parallel)
    def add(first, second, target):
        for i in span(first.size):
            target[i] = first[i] + second[i]

    return copy, read, add


def words(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array (in any order of its axes) as a flat array of float32."""
    flat = array.ravel(order="K")
    if not np.shares_memory(flat, array):
        raise ValueError("only contiguous arrays can be copied plainly")
    count = flat.nbytes // 4 * 4
    return flat.view(np.uint8)[:count].view(np.float32)


def copy(source: np.ndarray, target: np.ndarray, threads: int) -> Callable[[], object]:
    """Copy into memory that exists."""
    return functools.partial(_loops(threads > 1)[0], words(source), words(target))


def fresh_copy(source: np.ndarray, threads: int) -> Callable[[], object]:
    """Copy into new memory, whose pages the system has to provide."""
    loop, flat = _loops(threads > 1)[0], words(source)

    def run() -> np.ndarray:
        target = np.empty(flat.shape, flat.dtype)
        loop(flat, target)
        return target

    return run


def read(source: np.ndarray, threads: int) -> Callable[[], object]:
    """Sum up, which reads everything and writes nothing."""
    return functools.partial(_loops(threads > 1)[1], words(source))


def add(first: np.ndarray, second: np.ndarray, target: np.ndarray, threads: int) -> Callable[[], object]:
    """Read two arrays and write one."""
    loop = _loops(threads > 1)[2]
    return functools.partial(loop, words(first), words(second), words(target))
