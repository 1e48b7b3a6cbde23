"""Rows whose class axis is contiguous (or long): vectors run along the classes.

A row is cut into parts of at most `PART_VECTORS` vectors. Each part has its own power of two as a reference, so that it is read
from main memory once; parts merge by exact powers of two, in order. The row walk takes a whole row (or a batch of short
ones) in one thread and keeps its exponentials in the cache; the split walk gives the parts of a row to all threads and computes
the exponentials again in its second pass. The arithmetic, and so every bit, is the same.
"""

from fastswl.compilation import block_kernel, inlined, routine
from fastswl.kernels.lines import LINE_ROOM, vectors_of, write_head, write_row, write_tail, write_vectors
from fastswl.kernels.part import (
    DESCRIBE,
    FINISH,
    MERGE,
    PART_BYTES,
    PART_VECTORS,
    SUM_UP,
    WHOLE_ROWS,
    finish_part,
    merge_parts,
    no_results,
    row_part,
)
from fastswl.kernels.plan import LOGSUMEXP, LOSS, load_plan
from fastswl.kernels.rows import (
    AGAIN,
    ROW_WEIGHT,
    SHIFT,
    TABLE_BYTES,
    describe_rows,
    finish_rows,
    start_block,
    store_partial,
    store_row_values,
)
from fastswl.simd import VECTOR_BYTES, arithmetic_of, lanes, load_double, result_of, store_double, word


@inlined
def parts_of(storage, n_classes):
    """How many parts a row has, and the classes of all but the last."""
    part_classes = PART_VECTORS * lanes(storage)
    return (n_classes + part_classes - 1) // part_classes, part_classes


@routine
def row_tile(
    storage,
    target_storage,
    plan,
    here,
    before,
    outer,
    inner,
    count,
    outer_before,
    inner_before,
    count_before,
    begin,
    end,
):
    """A batch of rows from logits to sums, while the results of the batch before it are written.

    `here` and `before` are the memory of the two batches; the block's results are to lie from `begin` to `end`.
    """
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    n_classes = plan.n_classes
    n_parts, part_classes = parts_of(storage, n_classes)
    parts = TABLE_BYTES
    areas = parts + (n_parts * plan.tile_rows * PART_BYTES + 63) // 64 * 64
    # of all parts of all rows; one more vector, since the last of a part is filled up past its end
    part_bytes = VECTOR_BYTES * (min(PART_VECTORS, vectors_of(storage, n_classes)) + 1)
    area_bytes = part_bytes * n_parts * plan.tile_rows
    line = min(here, before) + plan.line_buffer + VECTOR_BYTES if plan.line_buffer != 0 else word(0)
    describe_rows(storage, plan, here, outer, inner, count)
    for row in range(max(count, count_before)):
        wanted = row < count
        if wanted:
            store_double(here + SHIFT + 8 * row, 0.0)
            wanted = plan.operation != LOSS or load_double(here + ROW_WEIGHT + 8 * row) != 0.0
        finished = row >= count_before
        again = True
        while again:
            for i in range(n_parts):
                number = n_parts * row + i
                first_class = part_classes * i
                n = min(part_classes, n_classes - first_class)
                done = no_results(arithmetic)
                if not finished:
                    done = finish_part(
                        storage,
                        plan,
                        before,
                        row,
                        before + parts + PART_BYTES * number,
                        before + areas + part_bytes * number,
                        area_bytes,
                        outer_before,
                        inner_before + row,
                        first_class,
                        n,
                        line,
                        begin,
                        end,
                    )
                written = write_head(results, done)
                n_done = (done.n - written) // lanes(storage)
                if wanted:
                    row_part(
                        storage,
                        target_storage,
                        plan,
                        here,
                        row,
                        here + parts + PART_BYTES * number,
                        here + areas + part_bytes * number,
                        area_bytes,
                        outer,
                        inner + row,
                        first_class,
                        n,
                        done,
                        written,
                    )
                else:
                    write_vectors(results, done, written, n_done)
                write_tail(results, done, written + n_done * lanes(storage))
            finished = True
            again = wanted and merge_parts(
                arithmetic, plan, here, row, here + parts + PART_BYTES * n_parts * row, n_parts
            )


@routine
def split_step(storage, target_storage, plan, scratch, unit, n_parts):
    """One step of the split walk. Units are rows in the phases DESCRIBE and MERGE, parts of rows in SUM_UP and FINISH."""
    arithmetic = arithmetic_of(storage)
    row = unit if plan.phase == DESCRIBE or plan.phase == MERGE else unit // n_parts
    outer = row // plan.n_inner
    inner = row - outer * plan.n_inner
    table = plan.row_tables + TABLE_BYTES * row
    parts = plan.row_parts + PART_BYTES * n_parts * row
    if plan.phase == DESCRIBE:
        start_block(arithmetic, table)
        describe_rows(storage, plan, table, outer, inner, word(1))
        store_double(table + AGAIN, 1.0)
        return
    ignored = plan.operation == LOSS and load_double(table + ROW_WEIGHT) == 0.0
    if plan.phase == MERGE:
        if load_double(table + AGAIN) == 0.0:
            return
        again = not ignored and merge_parts(arithmetic, plan, table, word(0), parts, n_parts)
        store_double(table + AGAIN, 1.0 if again else 0.0)
        if not again:
            finish_rows(storage, plan, table)
            if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                store_row_values(storage, plan, table, table, outer, inner, word(1))
            if plan.partials != 0:
                store_partial(arithmetic, plan, table, row)
        return
    i = unit - row * n_parts
    part_classes = PART_VECTORS * lanes(storage)
    first_class = part_classes * i
    n = min(part_classes, plan.n_classes - first_class)
    area_bytes = VECTOR_BYTES * (PART_VECTORS + 1)
    areas = scratch + LINE_ROOM
    part = parts + PART_BYTES * i
    if plan.phase == SUM_UP and (ignored or load_double(table + AGAIN) == 0.0):
        return
    if not ignored:
        row_part(
            storage,
            target_storage,
            plan,
            table,
            word(0),
            part,
            areas,
            area_bytes,
            outer,
            inner,
            first_class,
            n,
            no_results(arithmetic),
            word(0),
        )
    if plan.phase == FINISH:
        line = scratch + VECTOR_BYTES if plan.streaming != 0 else word(0)
        results = finish_part(
            storage, plan, table, word(0), part, areas, area_bytes, outer, inner, first_class, n, line, word(0), word(0)
        )
        write_row(result_of(storage), results)


@block_kernel
def row_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of tiles of rows; `scratch` is this thread's."""
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    if plan.phase != WHOLE_ROWS:
        n_parts, _ = parts_of(storage, plan.n_classes)
        for unit in range(first, last):
            split_step(storage, target_storage, plan, scratch, unit, n_parts)
        return 0
    tiles_per_outer = (plan.n_inner + plan.tile_rows - 1) // plan.tile_rows
    n_tiles = plan.n_outer * tiles_per_outer
    for block in range(first, last):
        first_tile = block * plan.tiles_per_block
        last_tile = min(first_tile + plan.tiles_per_block, n_tiles)
        begin, end = word(0), word(0)
        if plan.gathered != 0:
            begin = plan.out + first_tile * plan.tile_rows * plan.out_inner
            end = plan.out + min(last_tile * plan.tile_rows, plan.n_inner) * plan.out_inner
        here, before = scratch, scratch + plan.tile_bytes
        start_block(arithmetic, here)
        start_block(arithmetic, before)
        outer_before, inner_before, count_before = word(0), word(0), word(0)
        # one step more, to write the results of the last
        for tile in range(first_tile, last_tile + min(plan.out, 1)):
            outer = tile // tiles_per_outer
            inner = (tile - outer * tiles_per_outer) * plan.tile_rows
            count = min(plan.tile_rows, plan.n_inner - inner) if tile < last_tile else word(0)
            row_tile(
                storage,
                target_storage,
                plan,
                here,
                before,
                outer,
                inner,
                count,
                outer_before,
                inner_before,
                count_before,
                begin,
                end,
            )
            if count > 0:
                finish_rows(storage, plan, here)
                if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                    store_row_values(storage, plan, here, scratch, outer, inner, count)
            if plan.out != 0:
                here, before = before, here
                outer_before, inner_before, count_before = outer, inner, count
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0
