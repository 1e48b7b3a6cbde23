"""Tiles of rows between the caller's memory and scratch memory: one vector a class, one lane a row."""

from fastswl.compilation import routine
from fastswl.kernels.rows import TABLE_BYTES
from fastswl.kernels.stream import LINE_BYTES
from fastswl.simd import (
    FLOAT32,
    VECTOR_BYTES,
    arithmetic_of,
    columns_in_group,
    interleave,
    itemsize,
    lanes,
    load,
    load_one,
    narrow,
    separate,
    store,
    store_one,
    store_streaming,
    transpose_in,
    transpose_out,
    wide_zero,
)

#: classes whose results are laid against lines together: what was stored in pieces should have reached the cache when it is loaded
CLASSES_IN_LINES = 64


@routine
def load_tile(storage, tile, source, row_stride, class_stride, n_classes, count):
    """Bring `count` rows of all classes into the tile, in the arithmetic type; lanes without a row are 0."""
    arithmetic = arithmetic_of(storage)
    group = columns_in_group(storage)
    full = count == lanes(storage)
    if full and row_stride == itemsize(storage):
        for c in range(n_classes):
            store(arithmetic, tile + VECTOR_BYTES * c, load(storage, source + class_stride * c))
    elif full and class_stride == itemsize(storage) and n_classes >= group:
        for first in range(0, n_classes, group):
            # the last group overlaps the one before
            c = min(first, n_classes - group)
            transpose_in(storage, source + class_stride * c, row_stride, tile + VECTOR_BYTES * c)
    elif full and class_stride == itemsize(storage) and row_stride == class_stride * n_classes and n_classes > 1:
        if n_classes == 2:
            separate(storage, source, tile, 2)
        else:
            separate(storage, source, tile, 3)
    else:
        size = itemsize(arithmetic)
        for c in range(n_classes):
            store(arithmetic, tile + VECTOR_BYTES * c, narrow(arithmetic, wide_zero(arithmetic)))
            for row in range(count):
                value = load_one(storage, source + class_stride * c + row_stride * row)
                store_one(arithmetic, tile + VECTOR_BYTES * c + size * row, value)


@routine
def store_tile(storage, tile, target, row_stride, class_stride, n_classes, count):
    """The reverse of `load_tile`."""
    arithmetic = arithmetic_of(storage)
    group = columns_in_group(storage)
    full = count == lanes(storage)
    if full and row_stride == itemsize(storage):
        for c in range(n_classes):
            store(storage, target + class_stride * c, load(arithmetic, tile + VECTOR_BYTES * c))
    elif full and class_stride == itemsize(storage) and n_classes >= group:
        for first in range(0, n_classes, group):
            c = min(first, n_classes - group)
            transpose_out(storage, tile + VECTOR_BYTES * c, target + class_stride * c, row_stride)
    elif full and class_stride == itemsize(storage) and row_stride == class_stride * n_classes and n_classes > 1:
        if n_classes == 2:
            interleave(storage, tile, target, 2)
        else:
            interleave(storage, tile, target, 3)
    else:
        size = itemsize(arithmetic)
        for c in range(n_classes):
            for row in range(count):
                value = load_one(arithmetic, tile + VECTOR_BYTES * c + size * row)
                store_one(storage, target + class_stride * c + row_stride * row, value)


@routine
def load_together(storage, plan, table, tiles, source):
    """`load_tile` of whole tiles of rows that lie side by side, all that is near of one class before the next: classes that lie a
    power of two apart share a few sets of a cache, which would lose the neighbours of a line before they are used (8 x 21 x
    256 x 256: 7.6 to 6.6 ms)."""
    arithmetic = arithmetic_of(storage)
    for c in range(plan.n_classes):
        place = source + plan.logits_class * c
        for k in range(tiles):
            tile = table + plan.tile_bytes * k + TABLE_BYTES
            store(arithmetic, tile + VECTOR_BYTES * c, load(storage, place + itemsize(storage) * lanes(storage) * k))


@routine
def store_together(storage, plan, table, tiles, target):
    """The reverse of `load_together`; `storage` is that of the results."""
    arithmetic = arithmetic_of(storage)
    for c in range(plan.n_classes):
        place = target + plan.out_class * c
        for k in range(tiles):
            e = load(arithmetic, table + plan.tile_bytes * k + TABLE_BYTES + VECTOR_BYTES * c)
            store(storage, place + itemsize(storage) * lanes(storage) * k, e)


@routine
def stream_together(storage, plan, table, tiles, target, waiting, first, last):
    """`store_together` past the caches, in whole lines.

    The classes of an array of NumPy rarely begin at a line. The results of some classes at a time are laid against lines as
    their targets are; what is left of a line of each class is kept at `waiting`, in scratch memory, for the next step. The
    `first` of a row of steps and the `last` store their ends through the caches, too.
    """
    arithmetic = arithmetic_of(storage)
    vector = itemsize(storage) * lanes(storage)
    room = tiles * vector + LINE_BYTES
    n_lines = tiles * vector // LINE_BYTES
    ends = max(LINE_BYTES // vector, 1)
    lines = waiting + LINE_BYTES * plan.n_classes
    for first_class in range(0, plan.n_classes, CLASSES_IN_LINES):
        end = min(first_class + CLASSES_IN_LINES, plan.n_classes)
        own = lines
        for c in range(first_class, end):
            place = target + plan.out_class * c
            store(FLOAT32, own, load(FLOAT32, waiting + LINE_BYTES * c))
            for k in range(tiles):
                e = load(arithmetic, table + plan.tile_bytes * k + TABLE_BYTES + VECTOR_BYTES * c)
                store(storage, own + place % LINE_BYTES + vector * k, e)
                if (first and k < ends) or (last and k >= tiles - ends):
                    store(storage, place + vector * k, e)
            own += room
        own = lines
        for c in range(first_class, end):
            place = target + plan.out_class * c
            begin = place - place % LINE_BYTES
            if not first or begin == place:
                store_streaming(FLOAT32, begin, load(FLOAT32, own))
            for i in range(1, n_lines):
                store_streaming(FLOAT32, begin + LINE_BYTES * i, load(FLOAT32, own + LINE_BYTES * i))
            store(FLOAT32, waiting + LINE_BYTES * c, load(FLOAT32, own + LINE_BYTES * n_lines))
            own += room
