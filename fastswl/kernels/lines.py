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

#: scratch memory in which a vector that two pieces share is put together: itself and room on either side
LINE_ROOM = 192


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
def part_maximum(storage, source, edge, n):
    """`load_part` of neighbouring numbers of the arithmetic type that stay where they are: only what is past the last whole pair of
    vectors is put, filled up with -inf, at its place in the block `edge`. At least one vector."""
    size, width = itemsize(storage), lanes(storage)
    top = splat_like(load(storage, source), -np.inf)
    for i in range(n // width):
        x = load(storage, source + VECTOR_BYTES * i)
        top = select(x > top, x, top)
    if n % (2 * width) != 0:
        infinite = splat_like(top, -np.inf)
        tail = load(storage, source + size * (n - width))
        top = select(tail > top, tail, top)
        if n % (2 * width) > width:
            place = 2 * VECTOR_BYTES * (n // (2 * width))
            store(storage, edge + place, load(storage, source + place))
        # the last vector overlaps the one before
        store(storage, edge + VECTOR_BYTES * (n // width), infinite)
        store(storage, edge + size * (n - width), tail)
        store(storage, edge + size * n, infinite)
    return top


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
def write_row(storage, source, target, n, scaled, factor, factor_low, line, begin, end, ahead):
    """`n` neighbouring results from `target` on: e * (factor + factor_low) of what lies in scratch memory, or e as it is.

    Where `line` is not 0 they go past the caches, in whole vectors at multiples of their size: a line written in pieces costs
    several whole ones. A vector that begins in one piece (a row or a part of one) and ends in the next is put together at `line`, in
    scratch memory with a vector of room on either side. One thread writes from `begin` to `end` in order; only the vectors
    that reach beyond are written number by number.
    """
    arithmetic = arithmetic_of(storage)
    size, stored = itemsize(arithmetic), itemsize(storage)
    width = lanes(storage)
    unit = width * stored
    first = 0
    if line != 0:
        before = target % unit
        if before != 0:
            first = min((unit - before) // stored, n)
            if target - before < begin:
                write_numbers(storage, source, target, 0 * n, first, scaled, factor, factor_low)
            else:
                store(storage, line + before, result(load(arithmetic, source), scaled, factor, factor_low))
                if before + stored * n < unit:
                    # the vector is not full yet
                    if target + stored * n == end:
                        for place in range(target - before, end, stored):
                            store_one(storage, place, load_one(storage, line + (place - (target - before))))
                    return
                store_streaming(storage, target - before, load(storage, line))
        whole = (n - first) // width
        for i in range(whole):
            e = load(arithmetic, source + size * first + VECTOR_BYTES * i)
            prefetch_second_level(ahead + unit * i)
            store_streaming(storage, target + stored * first + unit * i, result(e, scaled, factor, factor_low))
        first += whole * width
        if first < n and target + stored * n < end:
            e = load(arithmetic, source + size * (n - width))
            store(storage, line + stored * (n - first) - unit, result(e, scaled, factor, factor_low))
            return
    elif n >= width:
        for i in range(n // width):
            e = load(arithmetic, source + VECTOR_BYTES * i)
            prefetch_second_level(ahead + unit * i)
            store(storage, target + unit * i, result(e, scaled, factor, factor_low))
        e = load(arithmetic, source + size * (n - width))
        store(storage, target + stored * (n - width), result(e, scaled, factor, factor_low))
        return
    write_numbers(storage, source, target, first, n, scaled, factor, factor_low)


@routine
def write_numbers(storage, source, target, first, end, scaled, factor, factor_low):
    """`write_row` of some numbers, one by one."""
    arithmetic = arithmetic_of(storage)
    for c in range(first, end):
        e = splat_like(factor, load_one(arithmetic, source + itemsize(arithmetic) * c))
        store_one(storage, target + itemsize(storage) * c, lane(result(e, scaled, factor, factor_low), 0))


@inlined
def result(e, scaled, factor, factor_low):
    if scaled:
        return fma(e, factor, e * factor_low)
    return e
