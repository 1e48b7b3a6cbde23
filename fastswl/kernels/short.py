"""Rows of up to 48 classes (logsumexp: 32), float32 arithmetic, no options but weights, smoothing and z_loss: tiles side by side.

Walks of their own beside that of panels, which has all options: kernels are shorter to compile, and a tile's table need not hold
what goes from stage to stage.
"""

import functools

from fastswl.compilation import block_kernel, routine
from fastswl.kernels.block import FAR_AHEAD, once_ahead
from fastswl.kernels.few import two_or_three_classes
from fastswl.kernels.losses import weighted
from fastswl.kernels.plan import LOSS, first_row_of_step, load_plan, steps_of_outer, targets_of_row
from fastswl.kernels.rows import (
    AGAIN,
    TABLE_BYTES,
    describe_classes,
    describe_rows,
    rows_are_plain,
    start_losses,
    store_partial,
    store_row_values,
)
from fastswl.kernels.several import Next, several_classes
from fastswl.kernels.stream import LINE_BYTES, flush
from fastswl.kernels.tiles import (
    SEPARATE_CLASSES,
    load_tile,
    load_together,
    store_tile,
    store_together,
    stream_together,
)
from fastswl.simd import (
    VECTOR_BYTES,
    arithmetic_of,
    choose,
    formula,
    greatest,
    interleave,
    itemsize,
    lanes,
    least,
    log2_of,
    prefetch_once,
    quotient,
    result_of,
    select,
    separate,
    steps,
    vectors_side_by_side,
)

#: tiles of a step, and of one of rows in registers, and of up to so many classes that lie side by side, where what is done once a step
#: counts (softmax of 2 classes: 4 tiles 0.33 ns an element, 8 tiles 0.28; of 10 classes 0.352 and 0.337; of 48 classes 0.23 and 0.27)
STEP_TILES, LONG_STEP_TILES, LONG_STEP_CLASSES = 4, 8, 16
#: of these go side by side
TILES_SIDE_BY_SIDE = 4


@block_kernel
def few_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of rows of two or three classes; `scratch` is this thread's."""
    walk_over_steps(storage, target_storage, plan_address, scratch, first, last, True)
    return 0


@block_kernel
def short_walk(storage, target_storage, plan_address, scratch, first, last):
    """The same of rows of more, or of two or three with smoothing or a z_loss."""
    walk_over_steps(storage, target_storage, plan_address, scratch, first, last, None)
    return 0


@routine
def walk_over_steps(storage, target_storage, plan_address, scratch, first, last, in_registers):
    """Blocks of steps of a few tiles; `in_registers` is None for rows that don't fit."""
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    step_rows = plan.tile_rows
    steps_per_outer = steps_of_outer(plan)
    n_steps = plan.n_outer * steps_per_outer
    buffer = scratch + plan.line_buffer if plan.line_buffer != 0 else 0
    for block in range(first, last):
        if plan.operation == LOSS:
            start_losses(arithmetic, scratch)
        first_step = block * plan.tiles_per_block
        last_step = least(first_step + plan.tiles_per_block, n_steps)
        for step in range(first_step, last_step):
            outer, inner = first_row_of_step(plan, steps_per_outer, step)
            end = least(inner + step_rows, plan.n_inner)
            ends = step == first_step, step == last_step - 1
            take_step(storage, target_storage, plan, scratch, outer, inner, end, buffer, ends, in_registers)
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)


@routine
def take_step(storage, target_storage, plan, scratch, outer, inner, end, buffer, ends, in_registers):
    """The rows from `inner` to `end`, by way of `buffer` where it is not 0; `ends`: whether the step is the first of its block, and
    the last."""
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    rows = lanes(storage)
    if plan.operation == LOSS:
        describe_step(arithmetic, plan, scratch, outer, inner, end)
    source = plan.logits + outer * plan.logits_outer + inner * plan.logits_inner
    whole = end - inner == plan.tile_rows
    if whole and plan.n_classes > SEPARATE_CLASSES and plan.logits_inner == itemsize(storage):
        load_together(storage, plan, scratch, STEP_TILES, source)
    else:
        load_step(storage, plan, scratch, source, end - inner, in_registers)
    finish_step(storage, target_storage, plan, scratch, source, end - inner, in_registers)
    if plan.row_values != 0:
        table = scratch
        for row in range(inner, end, rows):
            store_row_values(storage, target_storage, plan, table, outer, row, least(rows, end - row))
            table += plan.tile_bytes
    if plan.out == 0:
        return
    first, last = ends
    out = plan.out + outer * plan.out_outer + inner * plan.out_inner
    side_by_side = whole and plan.out_inner == itemsize(results) and plan.gathered == 0
    # (known when this is compiled, which makes images of 21 classes 6 % faster: that of rows whose logits lie side by side)
    tiles = STEP_TILES if in_registers is None else LONG_STEP_TILES
    if side_by_side and buffer != 0 and plan.tile_rows == tiles * rows:
        # a row of steps begins or ends here
        first, last = first or inner == 0, last or end + plan.tile_rows > plan.n_inner
        stream_together(results, plan, scratch, tiles, out, buffer, first, last)
    elif side_by_side and plan.n_classes > SEPARATE_CLASSES:
        store_together(results, plan, scratch, STEP_TILES, out)
    else:
        # (written once for both: twice, softmax of 10 classes took 20 % more)
        gathers = buffer != 0 and plan.gathered != 0
        place = buffer + out % LINE_BYTES if gathers else out
        store_step(results, plan, scratch, place, end - inner, in_registers)
        if gathers:
            flush(results, buffer, out, plan.n_classes * (end - inner), first, last)


@routine
def describe_step(storage, plan, scratch, outer, inner, end):
    """Fill in what is known of a step's rows before their logits are read; whether they are plain is asked once for all tiles."""
    rows = lanes(storage)
    plain = not weighted(plan) and rows_are_plain(storage, plan, rows)
    table = scratch
    for row in range(inner, end, rows):
        count = least(rows, end - row)
        if plain and count == rows:
            place = targets_of_row(plan, outer, row)
            describe_classes(storage, plan, table, place)
        else:
            describe_rows(storage, plan, table, outer, row, count)
        table += plan.tile_bytes


@formula
def load_step(storage, plan, scratch, source, n_rows, in_registers):
    """`load_tile` of all tiles of a step."""

    def one(of, tile, row, count):
        place = source + plan.logits_inner * row
        load_tile(of, tile, place, plan.logits_inner, plan.logits_class, plan.n_classes, count)

    def end_to_end(of, place, tile, n_classes):
        separate(of, place, tile, n_classes)
        # (what a processor looks ahead is not enough for the rows of a step at once: 3 classes past the caches, 0.5 to 0.36 ns)
        for line in range(n_classes * itemsize(of) * lanes(of) // LINE_BYTES):
            prefetch_once(place + FAR_AHEAD + LINE_BYTES * line)

    strides = plan.logits_inner, plan.logits_class
    move_tiles(storage, plan, scratch, n_rows, strides, source, one, None if in_registers is None else end_to_end)


@formula
def store_step(storage, plan, scratch, target, n_rows, in_registers):
    """The reverse; `storage` is that of the results."""

    def one(of, tile, row, count):
        place = target + plan.out_inner * row
        store_tile(of, tile, scratch + AGAIN, place, plan.out_inner, plan.out_class, plan.n_classes, count, None)

    def end_to_end(of, place, tile, n_classes):
        interleave(of, tile, place, n_classes)

    strides = plan.out_inner, plan.out_class
    move_tiles(storage, plan, scratch, n_rows, strides, target, one, None if in_registers is None else end_to_end)


def move_tiles(storage, plan, scratch, n_rows, strides, place, one, end_to_end):
    """For formulas: go over the tiles of a step by `one`; or, if it is not None, by `end_to_end` where whole tiles of two or three
    classes lie end to end, without asking for each how it lies."""
    rows, size = lanes(storage), itemsize(storage)

    def tile_of(row):
        return scratch + TABLE_BYTES + plan.tile_bytes * (row >> log2_of(rows))

    def each():
        for row in steps(0, n_rows, rows):
            one(storage, tile_of(row), row, least(rows, n_rows - row))

    if end_to_end is None:
        each()
        return

    def whole(n_classes):
        for row in steps(0, n_rows, rows):
            end_to_end(storage, place + size * n_classes * row, tile_of(row), n_classes)

    row_stride, class_stride = strides
    apart = (class_stride != size) | (row_stride != size * plan.n_classes) | ((n_rows & (rows - 1)) != 0)
    way = select(apart, 0, plan.n_classes - 1)
    choose(way, each, functools.partial(whole, 2), functools.partial(whole, 3))


@formula
def finish_step(storage, target_storage, plan, scratch, source, n_rows, in_registers):
    """From the logits in tiles, each behind its table, to the results in place of them, and the losses in the tables; the logits of
    the first lie at `source`."""
    arithmetic, rows = arithmetic_of(storage), lanes(storage)
    following = what_follows(storage, plan, source)

    def go_over(work):
        n_tiles = (n_rows + (rows - 1)) >> log2_of(rows)
        # (the chain of operations of one tile is too long for a processor to begin the next one's meanwhile; idle tiles beside the
        # last would take as long as others: 200 of 2,000 ns of a call with one row of 30 classes)
        most = vectors_side_by_side(TILES_SIDE_BY_SIDE)
        together = n_tiles - (n_tiles & (most - 1))
        for first, end, count in ((0, together, most), (together, n_tiles, 1))[: 1 if most == 1 else 2]:
            for number in steps(first, end, count):
                work(number, [scratch + plan.tile_bytes * (number + k) for k in range(count)])

    def registers(n_classes):
        go_over(lambda number, tables: two_or_three_classes(arithmetic, plan, scratch, tables, n_classes))

    def several(number, tables):
        several_classes(arithmetic, target_storage is None, plan, scratch, tables, following.of(number, len(tables)))

    if in_registers is not None:
        choose(plan.n_classes == 3, functools.partial(registers, 2), functools.partial(registers, 3))
    else:
        go_over(several)


def what_follows(storage, plan, source):
    """For formulas: the lines of the next step, or as many behind them as the first-level cache has room for. (Two threads, past the
    caches, of what it took to have them come through the second level: loss and gradient of 3 and 10 classes 0.95 and 0.88, of
    images of 21 classes 0.83.)"""
    step_bytes, ahead = plan.logits_inner * plan.tile_rows, once_ahead(plan)
    next_step = source + step_bytes

    def in_rows():
        # (what is here already is not asked for again)
        return next_step + greatest(ahead - step_bytes, 0), VECTOR_BYTES, VECTOR_BYTES * plan.n_classes

    def in_columns():
        return next_step + quotient(ahead, plan.n_classes), plan.logits_class, itemsize(storage) * lanes(storage)

    return Next(*choose(plan.logits_inner == itemsize(storage), in_rows, in_columns))
