"""Pieces of rows between the caller's memory and scratch memory, lanes along the classes."""

import functools
from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import block_maximum, larger
from fastswl.simd import (
    VECTOR_BYTES,
    Running,
    any_lane,
    arithmetic_of,
    choose,
    first_lane,
    fma,
    formula,
    greatest,
    itemsize,
    lane,
    lanes,
    least,
    load,
    load_one,
    log2_of,
    same_storage,
    select,
    splat_like,
    steps,
    store,
    store_one,
    store_streaming,
    when,
)

#: scratch memory in which a vector that two pieces share is put together: itself and room on either side
LINE_ROOM = 192


@formula
def vectors_of(storage, n_classes):
    # a shift: lanes are a power of two
    return (n_classes + lanes(storage) - 1) >> log2_of(lanes(storage))


@formula
def vectors_in(storage, n_classes):
    """How many whole ones there are."""
    return n_classes >> log2_of(lanes(storage))


@formula
def pairs_of(storage, n_classes):
    return (n_classes + 2 * lanes(storage) - 1) >> log2_of(2 * lanes(storage))


@formula
def load_part(storage, target, source, class_stride, n):
    """Bring `n` classes of a row into scratch memory, in the arithmetic type, filled up with -inf to whole vectors; the
    largest of each lane (NaN dropped)."""
    arithmetic = arithmetic_of(storage)
    size, width = itemsize(arithmetic), lanes(storage)
    infinite = splat_like(load(arithmetic, target), -np.inf)
    whole = vectors_in(storage, n)

    def neighbours():
        top = Running(infinite)

        def rest():
            # the last vector overlaps the one before
            tail = load(storage, source + class_stride * (n - width))
            store(arithmetic, target + VECTOR_BYTES * whole, infinite)
            store(arithmetic, target + size * (n - width), tail)
            store(arithmetic, target + size * n, infinite)
            top.value = larger(tail, top.value)

        when(whole * width < n, rest)
        for i in steps(0, whole):
            x = load(storage, source + class_stride * width * i)
            store(arithmetic, target + VECTOR_BYTES * i, x)
            top.value = larger(x, top.value)
        return top.value

    def one_by_one():
        store(arithmetic, target + VECTOR_BYTES * whole, infinite)
        for c in steps(0, n):
            store_one(arithmetic, target + size * c, load_one(storage, source + class_stride * c))
        return block_maximum(arithmetic, target, vectors_of(storage, n))

    return choose((class_stride == itemsize(storage)) & (whole > 0), one_by_one, neighbours)


@formula
def part_maximum(storage, source, edge, n):
    """`load_part` of neighbouring numbers of the arithmetic type that stay where they are: only what is past the last whole pair of
    vectors is put at its place in the block `edge`, see `put_edge`."""
    top = block_maximum(storage, source, vectors_in(storage, n))
    past, tail = put_edge(storage, source, edge, n)
    return select(past != 0, larger(tail, top), top)


@routine
def first_class_of(storage, logits, n_classes, value):
    """The first class of a row where it lies, its classes side by side and a vector or more, whose logit is `value`."""
    width = lanes(storage)
    value = splat_like(load(storage, logits), value)
    for i in range(vectors_in(storage, n_classes)):
        here = load(storage, logits + itemsize(storage) * width * i) == value
        if any_lane(here):
            return width * i + first_lane(here)
    last = n_classes - width
    return last + first_lane(load(storage, logits + itemsize(storage) * last) == value)


@formula
def put_edge(storage, source, edge, n):
    """Put what is past the last whole pair of vectors of `n` neighbouring numbers, filled up with -inf, at its place in the block
    `edge`, in the arithmetic type: how many numbers that is, and the last vector of all (which overlaps the one before). At least
    one vector."""
    arithmetic = arithmetic_of(storage)
    size, width = itemsize(arithmetic), lanes(storage)
    whole = vectors_in(storage, n)
    past = n & (2 * width - 1)
    tail = load(storage, source + itemsize(storage) * (n - width))

    def fill_up():
        filler = splat_like(tail, -np.inf)

        def first_of_pair():
            first = load(storage, source + itemsize(storage) * width * (whole - 1))
            store(arithmetic, edge + VECTOR_BYTES * (whole - 1), first)

        when(past > width, first_of_pair)
        store(arithmetic, edge + VECTOR_BYTES * whole, filler)
        store(arithmetic, edge + VECTOR_BYTES * (pairs_of(storage, n) * 2 - 1), filler)
        store(arithmetic, edge + size * (n - width), tail)
        store(arithmetic, edge + size * n, filler)

    when(past != 0, fill_up)
    return past, tail


@formula
def copy_numbers(storage, source, target, first, n):
    """Copy the numbers from `first` to `n` of a block that begins at `source` to one that begins at `target`."""
    size, width = itemsize(storage), lanes(storage)
    whole = vectors_in(storage, n - first)
    for i in steps(0, whole):
        offset = size * (first + width * i)
        store(storage, target + offset, load(storage, source + offset))
    for c in steps(first + width * whole, n):
        store_one(storage, target + size * c, load_one(storage, source + size * c))


@formula
def store_part(storage, source, target, class_stride, n):
    """The reverse of `load_part`."""
    arithmetic = arithmetic_of(storage)
    size, width = itemsize(arithmetic), lanes(storage)

    def neighbours():
        for i in steps(0, vectors_in(storage, n)):
            store(storage, target + class_stride * width * i, load(arithmetic, source + VECTOR_BYTES * i))
        store(storage, target + class_stride * (n - width), load(arithmetic, source + size * (n - width)))

    def one_by_one():
        for c in steps(0, n):
            store_one(storage, target + class_stride * c, load_one(arithmetic, source + size * c))

    choose((class_stride == itemsize(storage)) & (n >= width), one_by_one, neighbours)


class Results(NamedTuple):
    """Results of a part of a row on their way out, made of what lies in scratch memory: (x - factor) - factor_low, or, if `scaled`,
    e * (factor + factor_low); if `general`, (e * (factor + factor_low) - taken * q) * slope. q and the slope lie at `mass` and
    `slopes`, one for each class, or a vector for all where `mass_moves` or `slopes_move` is 0.

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
    # None in kernels for plain calls
    general: bool | None
    taken: Any
    mass: int | None
    mass_moves: int | None
    slopes: int | None
    slopes_move: int | None

    line: int
    begin: int
    end: int


@formula
def write_head(storage, results):
    """Up to the first whole vector, all of what lies in its place: how many were written."""
    # (of nothing both are 0)
    in_place = (results.source == results.target) & (results.n > 0)

    def all_at_once():
        if same_storage(storage, arithmetic_of(storage)):
            finish_in_place(storage, results, (-results.target & (VECTOR_BYTES - 1)) >> log2_of(itemsize(storage)))
        return results.n

    return choose(in_place, lambda: write_first(storage, results), all_at_once)


@formula
def write_first(storage, results):
    """Up to the first whole vector: how many were written."""
    arithmetic = arithmetic_of(storage)
    target, n, line = results.target, results.n, results.line
    stored = itemsize(storage)
    unit = lanes(storage) * stored
    before = target & (unit - 1)
    first = least((unit - before) >> log2_of(stored), n)
    begin = target - before

    def others_come_before():
        write_numbers(storage, results, 0, first)

    def in_order():
        store(storage, line + before, result_at(arithmetic, results, 0))

        def not_full():
            # nothing follows
            last = select(target + stored * n == results.end, (results.end - begin) >> log2_of(stored), 0)
            for i in steps(0, last):
                store_one(storage, begin + stored * i, load_one(storage, line + stored * i))

        choose(before + stored * n >= unit, not_full, lambda: store_streaming(storage, begin, load(storage, line)))

    def some():
        choose(begin < results.begin, in_order, others_come_before)
        return first

    return choose((line == 0) | (before == 0), some, lambda: 0)


@routine
def write_vectors(storage, results, first, n):
    """`n` vectors from the number `first` on."""
    write_vectors_here(storage, results, first, n)


@routine
def write_bite(storage, results, written, first, n):
    """`write_vectors`, of `n` from the vector `first` after those numbers on; nothing where that is negative."""
    if n > 0:
        write_vectors(storage, results, written + first * lanes(storage), n)


@formula
def write_vectors_here(storage, results, first, n):
    arithmetic = arithmetic_of(storage)
    unit = lanes(storage) * itemsize(storage)
    target = results.target + itemsize(storage) * first
    for i in steps(0, n):
        e = result_at(arithmetic, results, first + lanes(storage) * i)
        place = target + unit * i
        choose(
            results.line != 0,
            functools.partial(store, storage, place, e),
            functools.partial(store_streaming, storage, place, e),
        )


@formula
def write_tail(storage, results, first):
    """What is left from the number `first` on, less than a vector."""
    n, line = results.n, results.line
    arithmetic = arithmetic_of(storage)
    stored, width = itemsize(storage), lanes(storage)
    end = results.target + stored * n
    # the last vector of the part, of which some may have been written
    overlapping = (line == 0) & (n >= width)
    waiting = (line != 0) & (end < results.end)

    def vector():
        place = select(overlapping, end - stored * width, line + stored * (n - first) - stored * width)
        store(storage, place, result_at(arithmetic, results, n - width))

    def some():
        choose(overlapping | waiting, lambda: write_numbers(storage, results, first, n), vector)

    when(first < n, some)


@formula
def write_numbers(storage, results, first, end):
    """Some numbers, one by one."""
    arithmetic = arithmetic_of(storage)
    size = itemsize(arithmetic)
    for c in steps(first, end):

        def number(place):
            return splat_like(results.factor, load_one(arithmetic, place))

        def q(c=c):
            return number(results.mass + results.mass_moves * size * c)

        def slope(c=c):
            return number(results.slopes + results.slopes_move * size * c)

        e = number(results.source + size * c)
        store_one(storage, results.target + itemsize(storage) * c, lane(finished(results, e, q, slope), 0))


@formula
def result_at(storage, results, c):
    """The vector of results from class `c` of the part on."""
    offset = itemsize(storage) * c
    e = load(storage, results.source + offset)
    return finished(
        results,
        e,
        lambda: load(storage, results.mass + results.mass_moves * offset),
        lambda: load(storage, results.slopes + results.slopes_move * offset),
    )


def finished(results, e, q, slope):
    """For formulas: a result from what it is made of; `q` and `slope` are functions, which are asked if they are wanted."""

    def scaled():
        alpha_e = fma(e, results.factor, e * results.factor_low)
        if results.general is None:
            return alpha_e
        return choose(results.general, lambda: alpha_e, lambda: fma(-results.taken, q(), alpha_e) * slope())

    # of log_softmax (x - m) - log(S / e_m): neither difference cancels, but at the maximum, where the first is 0
    return choose(results.scaled, lambda: (e - results.factor) - results.factor_low, scaled)


@formula
def finish_in_place(storage, results, first):
    """The results in place of what they are made of, one vector or more: whole ones begin at the number `first`."""
    size, width, n = itemsize(storage), lanes(storage), results.n

    def all_of_them(scaled):
        own = results._replace(scaled=scaled)
        # the first and the last vector overlap others, which will have been changed
        last = greatest(n - width, 0)
        head, tail = result_at(storage, own, 0), result_at(storage, own, last)
        for i in steps(0, vectors_in(storage, n - first)):
            c = first + width * i
            store(storage, own.source + size * c, result_at(storage, own, c))
        store(storage, own.source, head)
        store(storage, own.source + size * last, tail)

    # (chosen before the loop: LLVM left it inside)
    choose(results.scaled, lambda: all_of_them(False), lambda: all_of_them(True))
