"""The walk over batches of short rows."""

from fastswl.compilation import block_kernel
from fastswl.kernels.batch import EVEN_WEIGHTS, WINDOW, batch_of, open_window, raise_batch
from fastswl.kernels.batch_results import prepare_results, store_results
from fastswl.kernels.plan import LOGSUMEXP, LOSS, first_row_of_step, load_plan, results_of_row, steps_of_outer
from fastswl.kernels.rows import describe_tile, finish_rows, keep_row_values, raise_exactly, start_block, store_partial
from fastswl.simd import arithmetic_of, least, store_wide, wide_zero, word


@block_kernel
def batch_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of batches; `scratch` is this thread's.

    Results that go past the caches do so while the next batch is computed, others at once.
    """
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    batches_per_outer = steps_of_outer(plan)
    n_batches = plan.n_outer * batches_per_outer
    memory = scratch + 2 * plan.tile_bytes
    open_window(arithmetic, memory + WINDOW, plan.n_classes)
    if target_storage is not None:
        store_wide(arithmetic, memory + EVEN_WEIGHTS, wide_zero(arithmetic) + 1.0)
    waits = plan.out != 0 and plan.line_buffer != 0
    for block in range(first, last):
        first_batch = block * plan.tiles_per_block
        last_batch = least(first_batch + plan.tiles_per_block, n_batches)
        begin, end = word(0), word(0)
        if plan.gathered != 0:
            begin = plan.out + first_batch * plan.tile_rows * plan.out_inner
            end = plan.out + least(last_batch * plan.tile_rows, plan.n_inner) * plan.out_inner
        table, table_before = scratch, scratch + plan.tile_bytes
        start_block(arithmetic, table)
        start_block(arithmetic, table_before)
        outer, inner, out_before = word(0), word(0), word(0)
        before = batch_of(storage, target_storage, plan, table_before, outer, inner, word(0), False)
        for number in range(first_batch, last_batch):
            outer, inner = first_row_of_step(plan, batches_per_outer, number)
            count = least(plan.tile_rows, plan.n_inner - inner)
            batch = batch_of(storage, target_storage, plan, table, outer, inner, count, number == last_batch - 1)
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
            raise_exactly(arithmetic, plan, table)
            finish_rows(arithmetic, plan, table)
            if plan.operation == LOSS or plan.operation == LOGSUMEXP:
                keep_row_values(storage, target_storage, plan, table, scratch, outer, inner, count)
            if plan.out != 0:
                prepare_results(storage, target_storage, plan, table, batch)
                out_before = results_of_row(plan, outer, inner)
                if waits:
                    before = batch
                    table, table_before = table_before, table
                else:
                    store_results(storage, target_storage, plan, table, batch, out_before)
        if waits:
            nothing = batch_of(storage, target_storage, plan, table, outer, inner, word(0), False)
            raise_batch(
                storage,
                target_storage,
                plan,
                table,
                table_before,
                memory,
                nothing,
                before,
                out_before,
                begin,
                end,
                outer,
                inner,
            )
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
