"""How to go over the rows: their axes put in order, the kernel chosen, the work cut into blocks.

`choose_walk` decides what is computed in which order: it looks at one row, its dtype and the layout of its classes, never at the
machine, the threads or the other rows, so a row's bits don't depend on those. How many rows are taken together, and whether tiles go
alone (`tiles_go_alone`) or results past the caches, hangs on more, and changes no bit.
"""

import functools
import itertools
from typing import Any, NamedTuple

from fastswl.kernels.batch import WINDOW, window_bytes
from fastswl.kernels.lines import LINE_ROOM
from fastswl.kernels.plan import (
    CHANGING,
    COMPARED_CLASSES,
    FIXED_LAYOUT,
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    LOSS,
    Plan,
)
from fastswl.kernels.record import PART_BYTES, PART_VECTORS, SO_FAR_BYTES
from fastswl.kernels.rows import TABLE_BYTES
from fastswl.kernels.short import LONG_STEP_CLASSES, LONG_STEP_TILES, STEP_TILES
from fastswl.kernels.stream import LINE_BYTES
from fastswl.kernels.tiles import CLASSES_IN_LINES, TWO_TILES_CLASSES_READ
from fastswl.simd import STORAGES, VECTOR_BYTES

#: classes up to which a row of contiguous classes goes into a tile of rows, where arithmetic is in float32 and in float64 (loss and
#: gradient, softmax, loss by rows, of what they take by tiles, two threads and past the caches: 384 classes 0.93, 0.89, 1.22; 448
#: 0.85, 0.82, 1.09; in cache 1.15, 1.07, 1.20 and 1.03, 0.95, 1.08; float64, 350 classes 1.0 to 1.03, 1.0, 1.1)
PANEL_CLASSES, PANEL_CLASSES_64 = 447, 350
#: classes up to which a row of float32 arithmetic is short, whatever its layout, and up to which it fits into registers
SHORT_CLASSES, FEW_CLASSES = 48, 3
#: classes from which on, and up to which, rows of contiguous classes go in batches, where arithmetic is in float32 and the options
#: allow it (loss and gradient, softmax, loss, of what they take by tiles and one by one, two threads and past the caches: 128 classes
#: 1.01, 1.01, 1.03; 160 0.97, 0.95, 1.02; 256 0.87, 0.85, 0.91; 512 0.83, 0.86, 0.75; 1,000 0.80, 0.89, 0.81; 2,000 0.98, 0.98, 1.0;
#: 3,000 1.0, 1.08, 1.02)
LEAST_BATCH_CLASSES, MOST_BATCH_CLASSES = 160, 2048
#: exponentials of a batch whose results go past the caches, and of others (2,000 classes, loss and gradient: the other number 7 %
#: slower past the caches, and 8 % in cache)
BATCH_ELEMENTS, CACHED_BATCH_ELEMENTS = 16384, 32768
#: classes of the tiles that go through the stages together, where arithmetic is in float32 and in float64 (twice as many: float64, 32
#: to 64 classes, 4 to 9 % off; float32, 64 classes past the caches, 10 % more: results of a tile that goes alone wait for the next)
STEP_CLASSES, STEP_CLASSES_64 = 64, 128
#: bytes of the tiles of rows that lie side by side, below a second-level cache of 1 MB. The more rows, the longer the pieces of each
#: class (loss and gradient of 300 classes: 1 tile 0.45 ns, 4 tiles 0.38, 8 tiles 0.30); below so many classes the tables of 8 tiles
#: are too much for the first-level cache (the loss of 10 classes: 4 tiles 0.34, 8 tiles 0.49)
STRIDED_STEP_BYTES, WIDE_STEP_CLASSES = 786432, 64
#: classes up to which a tile of rows whose classes lie apart stays in the second-level cache
STRIDED_CLASSES = 2048
#: classes from which on a row is cut into parts that all threads share, and computed twice (loss and gradient of 2 rows of 300,000
#: cut 0.37 ns, whole 0.16; of one row 0.44 and 0.27, though one thread works alone)
SPLIT_CLASSES = 1 << 20
#: and bytes of a thread's scratch memory that a row may take (float64 and options reach them first)
ROW_SCRATCH_BYTES = 8 << 20
#: exponentials of a step of the row walk whose results go past the caches: those of two steps, and what is read and written, are to be
#: held in the first-level cache, but what is done once a step counts more up to so many classes (loss and gradient, two threads: 512
#: classes 0.119 to 0.109 ns with twice as many, 1,000 0.113 to 0.111; 2,000 0.095 to 0.104); of other rows, where four times as many
#: are 5 to 8 % faster
ROW_STEP_ELEMENTS, LONG_ROW_STEP_ELEMENTS, LARGE_ROW_STEP_ELEMENTS = 8192, 4096, 16384
ROW_STEP_CLASSES = 1024
#: elements in a block (a thread's step, and what one partial sum of losses covers): a few dozen blocks of small work, of large work
#: so many elements that the first and last batch of a block, which nothing overlaps, count little (1,000 classes: 0.32 to 0.26 ns)
BLOCK_ELEMENTS, LARGE_BLOCK_ELEMENTS, BLOCKS = 16384, 131072, 64
#: float32 numbers that a row counts as beside its own
ROW_ELEMENTS = 16
#: bytes of results from which on they are written past the caches
STREAMING_BYTES = 14 << 20


class Walk(NamedTuple):
    """Which kernel walks over the rows, and in what steps."""

    name: str  # "few", "short", "tile", "panel", "strided", "batch", "row", "long" or "split"
    tile_rows: int  # rows in a step
    tile_bytes: int  # of each tile of a step of several, of each batch of rows
    scratch_bytes: int  # a thread's, without the line buffer
    buffer_bytes: int  # of the line buffer, 0 where it is part of the scratch memory


def choose_walk(
    storage: str,
    n_classes: int,
    class_stride: int,
    row_stride: int,
    areas: int,
    plainest: str = "few",
    in_batches: bool = False,
    streaming: bool = False,
) -> Walk:
    """Choose the walk for rows of `n_classes`, whose classes and neighbours lie `class_stride` and `row_stride` bytes apart.

    `areas` is the number of tables of the size of the exponentials that the options need; `plainest` the walk for the fewest
    options that has them (see `plainest_walk`); `in_batches` says whether the walk over batches has them. Whether results go past the
    caches, `streaming`, says how many rows of many classes are taken together; no bit hangs on that.
    """
    layout = STORAGES[storage]
    lanes = layout.lanes
    contiguous = class_stride == layout.itemsize or n_classes == 1
    side_by_side = row_stride == layout.itemsize and not contiguous
    in_float32 = layout.arithmetic.bitwidth == 32
    if in_batches and contiguous and in_float32 and LEAST_BATCH_CLASSES <= n_classes <= MOST_BATCH_CLASSES:
        elements = BATCH_ELEMENTS if streaming else CACHED_BATCH_ELEMENTS
        tile_rows = min(lanes, elements // n_classes)
        tile_bytes = TABLE_BYTES + areas * tile_rows * VECTOR_BYTES * (-(-n_classes // lanes) + 1)
        return Walk("batch", tile_rows, tile_bytes, 2 * tile_bytes + WINDOW + window_bytes(n_classes), LINE_ROOM)
    if plainest != "panel" and 1 < n_classes <= SHORT_CLASSES and in_float32:
        tile_bytes = TABLE_BYTES + areas * VECTOR_BYTES * n_classes
        name = "few" if plainest == "few" and n_classes <= FEW_CLASSES else "short"
        is_long = name == "few" or (contiguous and n_classes <= LONG_STEP_CLASSES)
        tiles = LONG_STEP_TILES if is_long else STEP_TILES
        # of all rows of a step, or of the lines of each class and one more
        buffer_bytes = (tiles * lanes * 8 + 2 * LINE_BYTES) * n_classes + LINE_ROOM
        return Walk(name, tiles * lanes, tile_bytes, tiles * tile_bytes, buffer_bytes)
    most, step_classes = PANEL_CLASSES, STEP_CLASSES
    if not in_float32:
        most, step_classes = PANEL_CLASSES_64, STEP_CLASSES_64
    in_panel = not side_by_side and n_classes <= most
    # (a single row has no neighbours that tell; cut from others it has their bits)
    if in_panel or (not contiguous and n_classes <= STRIDED_CLASSES):
        tile_bytes = TABLE_BYTES + areas * VECTOR_BYTES * n_classes
        if in_panel:
            tiles = min(4, step_classes // n_classes)
        else:
            tiles = min(4 if n_classes < WIDE_STEP_CLASSES else 8, STRIDED_STEP_BYTES // tile_bytes)
        tiles = max(tiles, 1)
        # of one tile, or of the lines of some classes and one of each
        lines_bytes = (tiles * lanes * 8 + LINE_BYTES) * CLASSES_IN_LINES
        buffer_bytes = lanes * n_classes * 8 + LINE_ROOM + lines_bytes
        name = "panel" if in_panel else "strided"
        return Walk(name, tiles * lanes, tile_bytes, tiles * tile_bytes, buffer_bytes)
    elements = LARGE_ROW_STEP_ELEMENTS
    if streaming:
        elements = ROW_STEP_ELEMENTS if n_classes <= ROW_STEP_CLASSES else LONG_ROW_STEP_ELEMENTS
    tile_rows = min(lanes, max(1, elements // n_classes))
    vectors = -(-n_classes // lanes)
    n_parts = -(-vectors // PART_VECTORS)
    area = VECTOR_BYTES * (min(PART_VECTORS, vectors) + 1) * n_parts * tile_rows
    # of a batch; there are two, of which one is written while the other is computed
    tile_bytes = (TABLE_BYTES + SO_FAR_BYTES + n_parts * tile_rows * PART_BYTES + 64 + areas * area + 63) // 64 * 64
    if n_classes > SPLIT_CLASSES or 2 * tile_bytes > ROW_SCRATCH_BYTES:
        # of a part; there are two, as of a batch
        part_bytes = areas * VECTOR_BYTES * (PART_VECTORS + 1)
        return Walk("split", 1, part_bytes, LINE_ROOM + SO_FAR_BYTES + 2 * part_bytes, 0)
    return Walk("row" if n_parts == 1 else "long", tile_rows, tile_bytes, 2 * tile_bytes, LINE_ROOM)


def result_itemsize(storage: str) -> int:
    """Bytes of a result: those of the input where it holds fractions, else of float64."""
    return 8 if storage.startswith(("int", "uint", "bool")) else STORAGES[storage].itemsize


class Route(NamedTuple):
    """All that shapes, strides and options decide of a call; arrays are named as in `Plan`."""

    walk: Walk
    fields: dict[str, Any]  # of the plan, but for addresses
    fixed: bytes  # the same packed
    pieces: tuple[
        tuple[int, ...], ...
    ]  # for each part of the rows that two strides describe: what to add to each array's address
    n_blocks: int
    n_rows: int  # of a piece
    work: int  # of a piece, in float32 numbers


class Options(NamedTuple):
    """The part of a plan that is neither an address nor a shape."""

    operation: int
    kind: int
    index_code: int = 0
    ignore_index: int = 0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0


def tiles_go_alone(storage: str, walk: Walk, fields: dict[str, Any]) -> bool:
    """Whether what the kernel of tiles that go alone takes for granted is so; no bit hangs on it."""
    itemsize = STORAGES[storage].itemsize
    return (
        walk.name == "panel"
        and walk.tile_rows == STORAGES[storage].lanes
        and fields["n_outer"] == 1
        and fields["n_classes"] > COMPARED_CLASSES
        and fields["logits_class"] == itemsize
        and fields.get("out_class", result_itemsize(storage)) == result_itemsize(storage)
    )


def goes_in_batches(storage: str, options: Options, plainest: str) -> bool:
    """Whether the walk over batches has what is asked for: all that calls without options want, weights, smoothing of
    class indices, and a z_loss."""
    if options.operation == LOSS:
        return plainest != "panel"
    # (log_softmax is made of logits, which are those of the caller)
    return options.operation != LOG_SOFTMAX or storage == "float32"


def plainest_walk(options: Options, names: tuple[str, ...], n_classes: int) -> str:
    """Of the walks for short rows, "few", "short" and "panel", the first that has what is asked for."""
    if options.operation == LOGSUMEXP:
        # (from there on none is left out of the sum, which is shorter)
        return "short" if n_classes <= COMPARED_CLASSES else "panel"
    if "softmax" in names or "mask" in names:
        return "panel"
    if options.operation != LOSS:
        return "few"
    changed = options.logit_scale != 1.0 or options.softcap != 0.0
    if options.kind != INDEX_TARGETS or changed:
        return "panel"
    return "few" if options.z_loss == options.label_smoothing == 0.0 else "short"


def ordered_rows(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> tuple[list[int], list[list[int]]]:
    """Merge the axes of the rows where every array allows it: lengths, and for each array the strides.

    Axes of length 1 go, the others are put in order of the first array's strides, so that neighbours in memory are
    neighbours.
    """
    axes = [i for i, length in enumerate(shape) if length != 1]
    axes.sort(key=lambda i: -abs(strides[0][i]))
    lengths: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis in axes:
        length = shape[axis]
        if lengths and all(own[-1] == array[axis] * length for own, array in zip(merged, strides, strict=True)):
            lengths[-1] *= length
            for own, array in zip(merged, strides, strict=True):
                own[-1] = array[axis]
        else:
            lengths.append(length)
            for own, array in zip(merged, strides, strict=True):
                own.append(array[axis])
    while len(lengths) < 2:
        lengths.insert(0, 1)
        for own in merged:
            own.insert(0, 0)
    return lengths, merged


@functools.lru_cache(maxsize=1024)
def find_route(
    storage: str,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    strides: tuple[tuple[int, ...], ...],
    class_strides: tuple[int, ...],
    areas: int,
    options: Options,
) -> Route:
    """Find the route of a call: `shape` with the class axis last; `strides` of the rows of each array in `names`.

    Kept for the next call of the same shapes: finding it takes ten times as long as a small kernel.
    """
    lengths, merged = ordered_rows(shape[:-1], strides)
    fields: dict[str, Any] = {
        **options._asdict(),
        "n_classes": shape[-1],
        "n_outer": lengths[-2],
        "n_inner": lengths[-1],
    }
    for name, own, class_stride in zip(names, merged, class_strides, strict=True):
        fields[f"{name}_outer"], fields[f"{name}_inner"] = own[-2:]
        if f"{name}_class" in Plan._fields:
            fields[f"{name}_class"] = class_stride
    plainest = plainest_walk(options, names, shape[-1])
    n_rows = lengths[-2] * lengths[-1]
    n_elements = n_rows * shape[-1]
    streaming = n_elements * STORAGES[storage].itemsize > STREAMING_BYTES
    strides_of_logits = fields["logits_class"], fields["logits_inner"]
    in_batches = goes_in_batches(storage, options, plainest)
    walk = choose_walk(
        storage, shape[-1], *strides_of_logits, areas, plainest, in_batches, streaming and "out" in names
    )
    if tiles_go_alone(storage, walk, fields):
        scratch_bytes = walk.scratch_bytes * (2 if shape[-1] <= TWO_TILES_CLASSES_READ else 1)
        walk = walk._replace(name="tile", scratch_bytes=scratch_bytes)
    steps = lengths[-2] * -(-lengths[-1] // walk.tile_rows)
    block_elements = max(BLOCK_ELEMENTS, min(LARGE_BLOCK_ELEMENTS, n_elements // BLOCKS))
    steps_per_block = max(1, block_elements // (walk.tile_rows * shape[-1]))
    itemsize = result_itemsize(storage)
    neighbours = fields.get("out_class") == itemsize
    gathered = neighbours and lengths[-2] == 1 and fields.get("out_inner") == itemsize * shape[-1]
    if walk.name in ("batch", "row", "long"):
        buffered = streaming and neighbours
    elif gathered:
        # the first tile of a block has to reach the end of a line
        tile_bytes = min(walk.tile_rows, STORAGES[storage].lanes) * shape[-1] * itemsize
        buffered = streaming and walk.buffer_bytes > 0 and tile_bytes >= LINE_BYTES
    else:
        # whole lines of each class
        whole_lines = walk.tile_rows * itemsize % LINE_BYTES == 0
        buffered = (
            streaming
            and walk.name in ("strided", "few", "short")
            and fields.get("out_inner") == itemsize
            and whole_lines
        )
    scratch = (walk.scratch_bytes + 63) // 64 * 64
    walk = walk._replace(scratch_bytes=scratch + walk.buffer_bytes * buffered)
    fields.update(
        line_buffer=scratch * buffered,
        gathered=int(gathered),
        tile_rows=walk.tile_rows,
        tile_bytes=walk.tile_bytes,
        tiles_per_block=steps_per_block,
        streaming=int(streaming),
    )
    pieces = tuple(
        tuple(sum(i * stride for i, stride in zip(position, own, strict=False)) for own in merged)
        for position in itertools.product(*(range(length) for length in lengths[:-2]))
    )
    fixed = pack_fixed(fields)
    work = n_rows * (shape[-1] + ROW_ELEMENTS) * (STORAGES[storage].arithmetic.bitwidth // 32)
    return Route(walk, fields, fixed, pieces, -(-steps // steps_per_block), n_rows, work)


def pack_fixed(fields: dict[str, Any]) -> bytes:
    """Pack the words of a plan that are no addresses."""
    return FIXED_LAYOUT.pack(*(fields.get(name, 0) for name in Plan._fields[CHANGING:]))
