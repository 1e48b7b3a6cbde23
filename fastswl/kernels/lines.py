"""Pieces of rows between the caller's memory and scratch memory, lanes along the classes."""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import block_maximum
from fastswl.simd import (
    VECTOR_BYTES,
    arithmetic_of,
    fma,
    itemsize,
    lane,
    lanes,
    load,
    load_one,
    prefetch_second_level,
    select,
    splat_like,
    store,
    store_one,
    store_streaming,
)


@inlined
def vectors_of(storage, n_classes):
    return (n_classes + lanes(storage) - 1) // lanes(storage)


@routine
def load_part(storage, target, source, class_stride, n):
    """Bring `n` classes of a row into scratch memory, in the arithmetic type, filled up with -inf to whole vectors; the
    largest of each lane (NaN dropped)."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    width = lanes(storage)
    top = splat_like(load(arithmetic, target), -np.inf)
    whole = n // width
    if class_stride == itemsize(storage) and whole > 0:
        if whole * width < n:
            # the last vector overlaps the one before
            tail = load(storage, source + class_stride * (n - width))
            store(arithmetic, target + VECTOR_BYTES * whole, top)
            store(arithmetic, target + size * (n - width), tail)
            store(arithmetic, target + size * n, top)
            top = select(tail > top, tail, top)
        for i in range(whole):
            x = load(storage, source + class_stride * width * i)
            store(arithmetic, target + VECTOR_BYTES * i, x)
            top = select(x > top, x, top)
        return top
    store(arithmetic, target + VECTOR_BYTES * whole, top)
    for c in range(n):
        store_one(arithmetic, target + size * c, load_one(storage, source + class_stride * c))
    return block_maximum(arithmetic, target, vectors_of(storage, n))


@routine
def store_part(storage, source, target, class_stride, n):
    """The reverse of `load_part`."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    width = lanes(storage)
    if class_stride == itemsize(storage) and n >= width:
        for i in range(n // width):
            store(storage, target + class_stride * width * i, load(arithmetic, source + VECTOR_BYTES * i))
        store(storage, target + class_stride * (n - width), load(arithmetic, source + size * (n - width)))
    else:
        for c in range(n):
            store_one(storage, target + class_stride * c, load_one(arithmetic, source + size * c))


@routine
def scale_out(storage, source, target, n, factor, factor_low, streaming, ahead):
    """e * (factor + factor_low) of a contiguous row into the results, past the caches if wanted."""
    arithmetic = arithmetic_of(storage)
    size, stored = itemsize(arithmetic), itemsize(storage)
    width = lanes(storage)
    first = 0
    if streaming != 0:
        # up to the first whole line of the results by single numbers
        line_bytes = width * stored
        first = min(((line_bytes - target % line_bytes) % line_bytes) // stored, n)
        for c in range(first):
            e = load_one(arithmetic, source + size * c)
            store_one(storage, target + stored * c, lane_product(arithmetic, e, factor, factor_low))
        whole = (n - first) // width
        for i in range(whole):
            e = load(arithmetic, source + size * first + VECTOR_BYTES * i)
            prefetch_second_level(ahead + line_bytes * i)
            store_streaming(storage, target + stored * first + line_bytes * i, fma(e, factor, e * factor_low))
        first += whole * width
        for c in range(first, n):
            e = load_one(arithmetic, source + size * c)
            store_one(storage, target + stored * c, lane_product(arithmetic, e, factor, factor_low))
    else:
        for i in range(n // width):
            e = load(arithmetic, source + VECTOR_BYTES * i)
            prefetch_second_level(ahead + stored * width * i)
            store(storage, target + stored * width * i, fma(e, factor, e * factor_low))
        e = load(arithmetic, source + size * (n - width))
        store(storage, target + stored * (n - width), fma(e, factor, e * factor_low))


@inlined
def lane_product(storage, e, factor, factor_low):
    vector = splat_like(factor, e)
    return lane(fma(vector, factor, vector * factor_low), 0)
