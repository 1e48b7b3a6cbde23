"""The walk over batches of short rows."""

from fastswl.compilation import block_kernel
from fastswl.kernels.batch import EVEN_WEIGHTS, WINDOW, batch_of, open_window, raise_batch
from fastswl.kernels.batch_results import prepare_results, store_results
from fastswl.kernels.plan import (
    first_row_of_step,
    load_plan,
    results_of_row,
    results_of_steps,
    steps_of_blocks,
    steps_of_outer,
)
from fastswl.kernels.rows import describe_tile, settle_step, start_block
from fastswl.simd import arithmetic_of, least, store_wide, wide_zero, word


@block_kernel
def batch_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of batches; `scratch` is this thread's.

    Results that go past the caches do so while the next batch is computed, that of the next block, too; others at once.
    """
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    batches_per_outer = steps_of_outer(plan)
    first_batch, last_batch = steps_of_blocks(plan, first, last)
    begin, end = results_of_steps(plan, first_batch, last_batch)
    memory = scratch + 2 * plan.tile_bytes
    open_window(arithmetic, memory + WINDOW, plan.n_classes)
    if target_storage is not None:
        store_wide(arithmetic, memory + EVEN_WEIGHTS, wide_zero(arithmetic) + 1.0)
    waits = plan.out != 0 and plan.line_buffer != 0
    table, table_before = scratch, scratch + plan.tile_bytes
    start_block(arithmetic, table)
    start_block(arithmetic, table_before)
    out_before = word(0)
    before = batch_of(storage, target_storage, plan, table_before, word(0), word(0), word(0), False)
    # one step more, to write what waits of the last
    for number in range(first_batch, last_batch + (1 if waits else 0)):
        outer, inner = first_row_of_step(plan, batches_per_outer, number)
        count = least(plan.tile_rows, plan.n_inner - inner) if number < last_batch else word(0)
        is_last = number == last_batch - 1
        batch = batch_of(storage, target_storage, plan, table, outer, inner, count, is_last)
        describe_tile(storage, plan, table, outer, inner, count)
        raise_batch(
            storage,
            target_storage,
            plan,
            table,
            table_before,
            memory,
            batch,
            before,
            out_before,
            begin,
            end,
            outer,
            inner,
        )
        if count > 0:
            settle_step(storage, target_storage, plan, table, scratch, outer, inner, count, number, last_batch)
            if plan.out != 0:
                prepare_results(storage, target_storage, plan, table, batch)
                out_before = results_of_row(plan, outer, inner)
                if waits:
                    before = batch
                    table, table_before = table_before, table
                else:
                    store_results(storage, target_storage, plan, table, batch, out_before)
    return 0
