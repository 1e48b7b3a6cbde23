"""Tiles of rows between the caller's memory and scratch memory: one vector a class, one lane a row."""

import functools
from typing import Any, NamedTuple

import numpy as np

from fastswl.kernels.block import block_maximum, larger
from fastswl.kernels.rows import TABLE_BYTES
from fastswl.kernels.stream import LINE_BYTES, write_lines
from fastswl.simd import (
    FLOAT32,
    VECTOR_BYTES,
    Running,
    SideBySide,
    arithmetic_of,
    choose,
    columns_in_group,
    fma,
    formula,
    interleave,
    itemsize,
    lanes,
    least,
    load,
    load_one,
    narrow,
    select,
    separate,
    splat_like,
    steps,
    store,
    store_one,
    store_streaming,
    transpose_in,
    transpose_out,
    when,
    wide_zero,
)

#: classes whose results are laid against lines together: what was stored in pieces should have reached the cache when it is loaded
CLASSES_IN_LINES = 64
#: classes up to which tiles of rows that lie side by side are loaded and stored one after the other (10: 16.6 ms, together 18.5)
SEPARATE_CLASSES = 16
#: classes up to which two tiles are held in a first-level cache of 48 KB: with what is to be written, and without results (loss and
#: gradient past the caches of 64, 160, 192, 256 classes, two tiles to one: 0.98, 0.99, 1.04, 1.08; the loss 0.87, 0.94, 0.96, 1.03)
TWO_TILES_CLASSES, TWO_TILES_CLASSES_READ = 160, 192


class Made(NamedTuple):
    """What results are made of, a lane a row: e * (scale + scale_low) - taken * q, or of logits (x - reference) - log_sum. q is a
    number of each class, for all rows the same; these lie at `mass`, or one for all where `mass_moves` is 0."""

    is_log: bool
    scale: Any
    scale_low: Any
    reference: Any
    log_sum: Any
    # None in kernels for plain calls
    taken: Any = None
    mass: int | None = None
    mass_moves: int | None = None

    def of(self, storage, x, c):
        """For formulas: of the numbers `x` of class c, where it is known how results are made."""
        if self.is_log:
            return (x - self.reference) - self.log_sum
        result = fma(x, self.scale, x * self.scale_low)
        if self.taken is None:
            return result
        return fma(
            -self.taken, splat_like(x, load_one(storage, self.mass + self.mass_moves * itemsize(storage) * c)), result
        )

    def by_kind(self, work):
        """For formulas: `work` on what is known to be one of the two. (Chosen before a loop: for each vector it was
        a branch on AVX2; 8 classes of 16 rows 214 to 147 instructions, softmax of 100 classes 7.2 to 6.7 a number.)"""
        choose(self.is_log, lambda: work(self._replace(is_log=False)), lambda: work(self._replace(is_log=True)))


class Tiles:
    """Some tiles side by side, each behind its table; what is at a class is one vector of each."""

    def __init__(self, storage, tables, n_classes):
        self.storage, self.tables, self.n_classes = storage, tables, n_classes
        self.zero = self.each(lambda table: splat_like(load(storage, table + TABLE_BYTES), 0.0))
        self.none = self.each(lambda table: wide_zero(storage))

    def each(self, function):
        """What a function gives of each table."""
        return SideBySide(*map(function, self.tables))

    def at(self, c, behind=0):
        """The numbers of a class, or what lies so many bytes behind them."""
        return self.each(lambda table: load(self.storage, table + TABLE_BYTES + VECTOR_BYTES * c + behind))

    def put(self, c, numbers, behind=0):
        """Store the numbers of a class, or so many bytes behind them."""
        for table, one in zip(self.tables, numbers, strict=True):
            store(self.storage, table + TABLE_BYTES + VECTOR_BYTES * c + behind, one)

    def change(self, function, behind=0):
        """Of each class what a function makes of its number and of what is there, or so many bytes behind that."""
        for c in steps(0, self.n_classes):
            self.put(c, function(c, self.at(c, behind)), behind)


#: how a tile lies in memory: number by number; rows side by side; classes side by side; rows of 2 or 3 classes end to end; fewer rows
#: than lanes, classes side by side
SCATTERED, ROWS_TOGETHER, CLASSES_TOGETHER, END_TO_END, FEW_ROWS = range(5)


@formula
def way_of_tile(storage, row_stride, class_stride, n_classes, count):
    """In which of these ways a tile can be moved. `class_stride` is None where many classes are known to lie side by side."""
    size = itemsize(storage)
    if class_stride is None:
        return select(count == lanes(storage), CLASSES_TOGETHER, select(count > 1, FEW_ROWS, SCATTERED))
    enough = n_classes >= columns_in_group(storage)
    end_to_end = (row_stride == class_stride * n_classes) & (n_classes > 1) & ~enough
    way = select(enough, CLASSES_TOGETHER, select(end_to_end, END_TO_END, SCATTERED))
    way = select(row_stride == size, ROWS_TOGETHER, select(class_stride == size, way, SCATTERED))
    few_rows = select((class_stride == size) & enough & (count > 1), FEW_ROWS, SCATTERED)
    return select(count == lanes(storage), way, few_rows)


def by_way(way, class_stride, *ways):
    """For formulas: `choose` by what `way_of_tile` says, without the ways in which no tile goes whose `class_stride` is None."""
    if class_stride is not None:
        return choose(way, *ways)
    few_rows = functools.partial(choose, way == FEW_ROWS, ways[SCATTERED], ways[FEW_ROWS])
    return choose(way == CLASSES_TOGETHER, few_rows, ways[CLASSES_TOGETHER])


def stride_of_classes(storage, class_stride):
    """For formulas: the stride that `None` stands for."""
    return itemsize(storage) if class_stride is None else class_stride


@formula
def move_vector(to, target, of, source):
    """Load a vector that is stored one way, and store it another."""
    store(to, target, load(of, source))


def groups(storage, n_classes, large):
    """The first class of each group that is transposed at once, and how many it has: large ones, and small ones for what is left."""
    small = columns_in_group(storage)
    if large:
        for first in steps(0, n_classes - (2 * small - 1), 2 * small):
            yield first, 2 * small
    rest = n_classes - (n_classes & (2 * small - 1)) if large else 0
    for first in steps(rest, n_classes, small):
        # the last group overlaps the one before
        yield least(first, n_classes - small), small


@formula
def load_tile(storage, tile, source, row_stride, class_stride, n_classes, count):
    """Bring `count` rows of all classes into the tile, in the arithmetic type; lanes without a row are 0,
    or as the first row's. The largest of each lane (NaN dropped). (Of `class_stride` see `way_of_tile`.)"""
    arithmetic = arithmetic_of(storage)
    way = way_of_tile(storage, row_stride, class_stride, n_classes, count)
    step = stride_of_classes(storage, class_stride)

    def maximum():
        return block_maximum(arithmetic, tile, n_classes)

    def put_groups(large, count):
        none = splat_like(load(arithmetic, tile), -np.inf)
        # two chains: each comparison waits for the one before
        tops = Running(none), Running(none)
        for c, group in groups(storage, n_classes, large):
            for i, x in enumerate(transpose_in(storage, group, source + step * c, row_stride, count)):
                store(arithmetic, tile + VECTOR_BYTES * (c + i), x)
                tops[i % 2].value = larger(x, tops[i % 2].value)
        return larger(tops[0].value, tops[1].value)

    def scattered():
        for c in steps(0, n_classes):
            place = tile + VECTOR_BYTES * c
            store(arithmetic, place, narrow(arithmetic, wide_zero(arithmetic)))
            for row in steps(0, count):
                number = load_one(storage, source + step * c + row_stride * row)
                store_one(arithmetic, place + itemsize(arithmetic) * row, number)
        return maximum()

    def rows_together():
        for c in steps(0, n_classes):
            move_vector(arithmetic, tile + VECTOR_BYTES * c, storage, source + step * c)
        return maximum()

    def classes_together():
        return put_groups(True, None)

    def few_rows():
        return put_groups(False, count)

    def end_to_end():
        choose(n_classes == 3, lambda: separate(storage, source, tile, 2), lambda: separate(storage, source, tile, 3))
        return maximum()

    return by_way(way, class_stride, scattered, rows_together, classes_together, end_to_end, few_rows)


@formula
def made_on_the_way(storage, row_stride, class_stride, n_classes, count):
    """Whether `store_tile` makes results of what is in the tile; else they have to be there."""
    way = way_of_tile(storage, row_stride, class_stride, n_classes, count)
    return (way == CLASSES_TOGETHER) | (way == FEW_ROWS)


@formula
def store_tile(storage, tile, room, target, row_stride, class_stride, n_classes, count, made):
    """The reverse of `load_tile`; there is room for some numbers at `room`. Where `made` is not None and `made_on_the_way` says
    so, results are made of what is in the tile."""
    arithmetic = arithmetic_of(storage)
    way = way_of_tile(storage, row_stride, class_stride, n_classes, count)
    step = stride_of_classes(storage, class_stride)

    def columns(made, c, group):
        vectors = [load(arithmetic, tile + VECTOR_BYTES * (c + i)) for i in range(group)]
        return tuple(vectors if made is None else (made.of(arithmetic, x, c + i) for i, x in enumerate(vectors)))

    def transposed(large, count, room):
        def work(made):
            for c, group in groups(storage, n_classes, large):
                transpose_out(storage, columns(made, c, group), target + step * c, row_stride, count, room)

        if made is None:
            work(None)
        else:
            made.by_kind(work)

    def scattered():
        for c in steps(0, n_classes):
            place = tile + VECTOR_BYTES * c
            for row in steps(0, count):
                number = load_one(arithmetic, place + itemsize(arithmetic) * row)
                store_one(storage, target + step * c + row_stride * row, number)

    def rows_together():
        for c in steps(0, n_classes):
            move_vector(storage, target + step * c, arithmetic, tile + VECTOR_BYTES * c)

    def classes_together():
        transposed(True, None, 0)

    def few_rows():
        transposed(False, count, room)

    def end_to_end():
        choose(
            n_classes == 3, lambda: interleave(storage, tile, target, 2), lambda: interleave(storage, tile, target, 3)
        )

    by_way(way, class_stride, scattered, rows_together, classes_together, end_to_end, few_rows)


@formula
def load_together(storage, plan, table, tiles, source):
    """`load_tile` of whole tiles of rows that lie side by side, all that is near of one class before the next: classes that lie a
    power of two apart share a few sets of a cache, which would lose the neighbours of a line before they are used (8 x 21 x
    256 x 256: 7.6 to 6.6 ms)."""
    arithmetic = arithmetic_of(storage)
    vector = itemsize(storage) * lanes(storage)
    for c in steps(0, plan.n_classes):
        place = source + plan.logits_class * c
        for k in steps(0, tiles):
            tile = table + plan.tile_bytes * k + TABLE_BYTES
            move_vector(arithmetic, tile + VECTOR_BYTES * c, storage, place + vector * k)


@formula
def store_together(storage, plan, table, tiles, target):
    """The reverse of `load_together`; `storage` is that of the results."""
    arithmetic = arithmetic_of(storage)
    vector = itemsize(storage) * lanes(storage)
    for c in steps(0, plan.n_classes):
        place = target + plan.out_class * c
        for k in steps(0, tiles):
            tile = table + plan.tile_bytes * k + TABLE_BYTES
            move_vector(storage, place + vector * k, arithmetic, tile + VECTOR_BYTES * c)


def in_fours(n):
    """For formulas: the numbers of a loop of `n` rounds, of which four are written one after the other."""
    whole = (n >> 2) << 2
    for first in steps(0, whole, 4):
        for i in range(4):
            yield first + i
    yield from steps(whole, n)


@formula
def stream_together(storage, plan, table, tiles, target, waiting, first, last):
    """`store_together` past the caches, in whole lines.

    The classes of an array of NumPy rarely begin at a line. The results of some classes at a time are laid against lines as
    their targets are; what is left of a line of each class is kept at `waiting`, in scratch memory, for the next step. The
    `first` of a row of steps and the `last` store their ends through the caches, too.
    """
    arithmetic = arithmetic_of(storage)
    vector = itemsize(storage) * lanes(storage)
    room = tiles * vector + LINE_BYTES
    n_lines = tiles * vector >> 6
    ends = max(LINE_BYTES // vector, 1)
    lines = waiting + LINE_BYTES * plan.n_classes

    def result(c, k):
        return load(arithmetic, table + plan.tile_bytes * k + TABLE_BYTES + VECTOR_BYTES * c)

    def store_ends(first_class, end):
        for c in steps(first_class, end):
            for k in steps(0, tiles):
                at_an_end = (first & (k < ends)) | (last & (k >= tiles - ends))
                place = target + plan.out_class * c + vector * k
                when(at_an_end, lambda c=c, k=k, place=place: store(storage, place, result(c, k)))

    for first_class in steps(0, plan.n_classes, CLASSES_IN_LINES):
        end = least(first_class + CLASSES_IN_LINES, plan.n_classes)
        for c in steps(first_class, end):
            own = lines + room * (c - first_class)
            place = target + plan.out_class * c
            store(FLOAT32, own, load(FLOAT32, waiting + LINE_BYTES * c))
            # (with what only the ends need in this loop all images of 21 classes took 7 % more; without vectors in fours 10 %)
            for k in in_fours(tiles):
                store(storage, own + (place & (LINE_BYTES - 1)) + vector * k, result(c, k))
        when(first | last, functools.partial(store_ends, first_class, end))
        for c in steps(first_class, end):
            own = lines + room * (c - first_class)
            place = target + plan.out_class * c
            begin = place - (place & (LINE_BYTES - 1))

            def all_lines(own=own, begin=begin):
                for i in in_fours(n_lines):
                    store_streaming(FLOAT32, begin + LINE_BYTES * i, load(FLOAT32, own + LINE_BYTES * i))

            # (what the first step has only in part is stored already)
            without_first = functools.partial(write_lines, begin + LINE_BYTES, own + LINE_BYTES, n_lines - 1)
            choose(first & (begin != place), all_lines, without_first)
            store(FLOAT32, waiting + LINE_BYTES * c, load(FLOAT32, own + LINE_BYTES * n_lines))
