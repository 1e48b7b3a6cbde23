"""Walks over tiles of rows with all their classes in scratch memory.

They serve rows of some hundred classes, and short ones with options that the walk for these has not (tiles are transposed on
their way in and out), and class axes that are not the innermost (the strided walk: neighbouring rows lie side by side and are loaded
as they are).
"""

from fastswl.compilation import block_kernel
from fastswl.kernels.panel import finish_tile, prepare_tile, sum_up_tile, weighed_on_the_way
from fastswl.kernels.plan import (
    LOGSUMEXP,
    LOSS,
    first_row_of_step,
    load_plan,
    logits_of_row,
    results_of_row,
    steps_of_outer,
)
from fastswl.kernels.rows import finish_rows, keep_row_values, raise_exactly, start_block, store_partial
from fastswl.kernels.tiles import (
    SEPARATE_CLASSES,
    TWO_TILES_CLASSES,
    TWO_TILES_CLASSES_READ,
    load_together,
    store_together,
    stream_together,
)
from fastswl.simd import arithmetic_of, itemsize, lanes, least, result_of, word


@block_kernel
def tile_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of tiles that go through the stages one by one, of rows a stride apart with many classes side by side;
    `scratch` is this thread's.

    A kernel of its own: what is the same for all such tiles is known when it is compiled (64 classes: 4 to 5 % off). Where there is
    room for two tiles, the next is prepared while the sums of this one, a long chain of operations, become factors, or before that
    where no results follow; and what is put into its logits, number by number, has reached the cache before they are loaded, vector
    by vector (64 classes: 3 % off loss and gradient, 8 softmax, 9 log_softmax, 10 the loss).
    """
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    rows, outer, together = lanes(storage), word(0), None
    buffer = scratch + plan.line_buffer if plan.line_buffer != 0 else word(0)
    has_two = plan.n_classes <= (TWO_TILES_CLASSES if plan.out != 0 else TWO_TILES_CLASSES_READ)
    is_weighed = target_storage is not None and weighed_on_the_way(arithmetic, plan)
    for block in range(first, last):
        first_row = block * plan.tiles_per_block * rows
        last_row = least(first_row + plan.tiles_per_block * rows, plan.n_inner)
        table, next_table = scratch, scratch + plan.tile_bytes if has_two else scratch
        start_block(arithmetic, table)
        start_block(arithmetic, next_table)
        # results go out while the next tile is computed (256 classes: 0.20 to 0.16 ns)
        waiting = word(0)
        count = least(rows, last_row - first_row)
        prepare_tile(storage, target_storage, plan, table, outer, first_row, count, together, is_weighed)
        for row in range(first_row, last_row, rows):
            next_row = row + rows
            next_count = least(rows, last_row - next_row)
            is_first, is_last = row == first_row, next_count <= 0
            raise_exactly(arithmetic, plan, table)
            sum_up_tile(
                storage, target_storage, plan, table, outer, row, count, buffer, waiting, row == first_row + rows, together
            )  # fmt: skip
            if has_two and not is_last and plan.out == 0:
                prepare_tile(
                    storage, target_storage, plan, next_table, outer, next_row, next_count, together, is_weighed
                )
            finish_rows(storage, plan, table)
            if plan.operation == LOSS or plan.operation == LOGSUMEXP:
                keep_row_values(storage, target_storage, plan, table, scratch, outer, row, count)
            if has_two and not is_last and plan.out != 0:
                prepare_tile(
                    storage, target_storage, plan, next_table, outer, next_row, next_count, together, is_weighed
                )
            if plan.out != 0:
                waits = buffer != 0 and not is_last
                finish_tile(
                    storage, target_storage, plan, table, buffer, outer, row, count, is_first, is_last, together, waits
                )
                waiting = results_of_row(plan, outer, row) if waits else word(0)
            if not has_two and not is_last:
                prepare_tile(
                    storage, target_storage, plan, next_table, outer, next_row, next_count, together, is_weighed
                )
            table, next_table, count = next_table, table, next_count
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0


@block_kernel
def panel_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of steps of a few tiles; `scratch` is this thread's.

    The tiles of a step go through each stage together: the stages of one tile are chains of operations that wait for each
    other, those of several fill the gaps (C = 10: 1.63 to 1.2 ns an element for loss and gradient).
    """
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    rows = lanes(storage)
    step_rows = plan.tile_rows
    steps_per_outer = steps_of_outer(plan)
    n_steps = plan.n_outer * steps_per_outer
    tile_bytes = plan.tile_bytes
    buffer = scratch + plan.line_buffer if plan.line_buffer != 0 else 0
    # (results of rows that lie side by side: those of steps that are whole only)
    tile_buffer = buffer if plan.gathered != 0 else 0
    # results that go out while the next tile is computed (256 classes: 0.20 to 0.16 ns)
    may_wait = tile_buffer != 0 and step_rows == rows
    waiting, waiting_is_first = word(0), False
    is_weighed = target_storage is not None and weighed_on_the_way(arithmetic, plan)
    for block in range(first, last):
        for table in range(scratch, scratch + tile_bytes * (step_rows // rows), tile_bytes):
            start_block(arithmetic, table)
        first_step = block * plan.tiles_per_block
        last_step = least(first_step + plan.tiles_per_block, n_steps)
        for step in range(first_step, last_step):
            outer, inner = first_row_of_step(plan, steps_per_outer, step)
            end = least(inner + step_rows, plan.n_inner)
            whole = end - inner == step_rows
            together = whole and plan.n_classes > SEPARATE_CLASSES and plan.logits_inner == itemsize(storage)
            if together:
                load_together(storage, plan, scratch, step_rows // rows, logits_of_row(plan, outer, inner))
            table = scratch
            for row in range(inner, end, rows):
                count = least(rows, end - row)
                prepare_tile(storage, target_storage, plan, table, outer, row, count, together, is_weighed)
                table += tile_bytes
            table = scratch
            for row in range(inner, end, rows):
                count = least(rows, end - row)
                sum_up_tile(
                    storage, target_storage, plan, table, outer, row, count, tile_buffer, waiting, waiting_is_first, together
                )  # fmt: skip
                raise_exactly(arithmetic, plan, table)
                table += tile_bytes
            table = scratch
            for _ in range(inner, end, rows):
                finish_rows(storage, plan, table)
                table += tile_bytes
            if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                table = scratch
                for row in range(inner, end, rows):
                    keep_row_values(storage, target_storage, plan, table, scratch, outer, row, least(rows, end - row))
                    table += tile_bytes
            if plan.out != 0:
                out_together = whole and plan.out_inner == itemsize(result_of(storage)) and plan.gathered == 0
                if buffer == 0:
                    out_together = out_together and plan.n_classes > SEPARATE_CLASSES
                table = scratch
                for row in range(inner, end, rows):
                    count = least(rows, end - row)
                    is_first = step == first_step and row == inner
                    is_last = step == last_step - 1 and row + count == end
                    waits = may_wait and not is_last
                    finish_tile(
                        storage,
                        target_storage,
                        plan,
                        table,
                        tile_buffer,
                        outer,
                        row,
                        count,
                        is_first,
                        is_last,
                        out_together,
                        waits,
                    )
                    waiting = results_of_row(plan, outer, row) if waits else word(0)
                    waiting_is_first = is_first
                    table += tile_bytes
                if out_together:
                    out = results_of_row(plan, outer, inner)
                    if buffer == 0:
                        store_together(result_of(storage), plan, scratch, step_rows // rows, out)
                    else:
                        is_first = step == first_step or inner == 0
                        is_last = step == last_step - 1 or end + step_rows > plan.n_inner
                        stream_together(
                            result_of(storage), plan, scratch, step_rows // rows, out, buffer, is_first, is_last
                        )
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
