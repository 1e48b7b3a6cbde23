"""Pieces of rows between the caller's memory and scratch memory, lanes along the classes."""

from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import block_maximum, larger
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
    splat_like,
    store,
    store_one,
    store_streaming,
    word,
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
            top = larger(tail, top)
        for i in range(whole):
            x = load(storage, source + class_stride * width * i)
            store(arithmetic, target + VECTOR_BYTES * i, x)
            top = larger(x, top)
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
    top = block_maximum(storage, source, n // width)
    if n % (2 * width) != 0:
        infinite = splat_like(top, -np.inf)
        tail = load(storage, source + size * (n - width))
        top = larger(tail, top)
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


class Results(NamedTuple):
    """Results of a part of a row on their way out: what lies in scratch memory, or, if `scaled`, e * (factor + factor_low) of it; if
    `general`, (e * (factor + factor_low) - taken * q) * slope. q and the slope lie at `mass` and `slopes`, one for each class,
    or a vector for all where `mass_moves` or `slopes_move` is 0.

    Where `line` is not 0 they go past the caches, in whole vectors at multiples of their size: a line written in pieces costs
    several whole ones. A vector that begins in one part and ends in the next is put together at `line`, in scratch memory with a
    vector of room on either side. One thread writes from `begin` to `end` in order; only the vectors that reach beyond are
    written number by number.
    """

    source: int
    target: int  # neighbours in memory
    n: int
    scaled: bool
    factor: Any
    factor_low: Any
    general: bool
    taken: Any
    mass: int
    mass_moves: int
    slopes: int
    slopes_move: int
    line: int
    begin: int
    end: int
    ahead: int  # what is read after they are written


@inlined
def as_it_is(results):
    """The same, of what has its value already."""
    return Results(
        results.source, results.target, results.n, False, results.factor, results.factor_low, False, results.taken,
        results.mass, results.mass_moves, results.slopes, results.slopes_move, results.line, results.begin, results.end,
        results.ahead,
    )  # fmt: skip


@routine
def write_row(storage, results):
    """All three steps of writing."""
    written = write_head(storage, results)
    n_vectors = (results.n - written) // lanes(storage)
    write_vectors(storage, results, written, n_vectors)
    write_tail(storage, results, written + n_vectors * lanes(storage))


@routine
def write_head(storage, results):
    """Up to the first whole vector: how many were written."""
    arithmetic = arithmetic_of(storage)
    target, n, line = results.target, results.n, results.line
    stored = itemsize(storage)
    unit = lanes(storage) * stored
    before = target % unit
    if line == 0 or before == 0:
        return word(0)
    first = min((unit - before) // stored, n)
    if target - before < results.begin:
        write_numbers(storage, results, word(0), first)
        return first
    store(storage, line + before, result_at(arithmetic, results, word(0)))
    if before + stored * n >= unit:
        store_streaming(storage, target - before, load(storage, line))
    elif target + stored * n == results.end:
        # the vector is not full, and nothing follows
        for place in range(target - before, results.end, stored):
            store_one(storage, place, load_one(storage, line + (place - (target - before))))
    return first


@routine
def write_vectors(storage, results, first, n):
    """`n` vectors from the number `first` on; meanwhile the lines that are read after that are asked for."""
    arithmetic = arithmetic_of(storage)
    unit = lanes(storage) * itemsize(storage)
    target = results.target + itemsize(storage) * first
    ahead = results.ahead + itemsize(storage) * first
    for i in range(n):
        e = result_at(arithmetic, results, first + lanes(storage) * i)
        prefetch_second_level(ahead + unit * i)
        if results.line != 0:
            store_streaming(storage, target + unit * i, e)
        else:
            store(storage, target + unit * i, e)


@routine
def write_tail(storage, results, first):
    """What is left from the number `first` on, less than a vector."""
    n, line = results.n, results.line
    if first >= n:
        return
    arithmetic = arithmetic_of(storage)
    stored, width = itemsize(storage), lanes(storage)
    end = results.target + stored * n
    # the last vector of the part, of which some may have been written
    if line == 0 and n >= width:
        store(storage, end - stored * width, result_at(arithmetic, results, n - width))
    elif line != 0 and end < results.end:
        store(storage, line + stored * (n - first) - stored * width, result_at(arithmetic, results, n - width))
    else:
        write_numbers(storage, results, first, n)


@routine
def write_numbers(storage, results, first, end):
    """Some numbers, one by one."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    for c in range(first, end):
        e = splat_like(results.factor, load_one(arithmetic, results.source + size * c))
        q = splat_like(e, load_one(arithmetic, results.mass + results.mass_moves * size * c)) if results.general else e
        slope = (
            splat_like(e, load_one(arithmetic, results.slopes + results.slopes_move * size * c))
            if results.general
            else e
        )
        store_one(storage, results.target + itemsize(storage) * c, lane(finished(results, e, q, slope), 0))


@inlined
def result_at(storage, results, c):
    """The vector of results from class `c` of the part on."""
    offset = itemsize(storage) * c
    e = load(storage, results.source + offset)
    q, slope = e, e
    if results.general:
        q = load(storage, results.mass + results.mass_moves * offset)
        slope = load(storage, results.slopes + results.slopes_move * offset)
    return finished(results, e, q, slope)


@inlined
def finished(results, e, q, slope):
    if results.scaled:
        e = fma(e, results.factor, e * results.factor_low)
        if results.general:
            e = fma(-results.taken, q, e) * slope
    return e


@routine
def finish_in_place(storage, results):
    """The results in place of what they are made of, in scratch memory."""
    size, width, n = itemsize(storage), lanes(storage), results.n
    # the last vector overlaps the one before, which will have been changed
    last = max(n - width, 0)
    tail = result_at(storage, results, last)
    for i in range(n // width):
        store(storage, results.source + VECTOR_BYTES * i, result_at(storage, results, width * i))
    store(storage, results.source + size * last, tail)
