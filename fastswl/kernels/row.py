"""Rows whose class axis is contiguous (or long): vectors run along the classes.

A row is cut into parts of at most `PART_VECTORS` vectors. Each part has its own power of two as a reference, so that it is read
from main memory once; parts merge by exact powers of two, in order. The row walk takes a whole row (or a batch of short
ones) in one thread and keeps its exponentials in the cache: in scratch memory, or where the results go if these stay in the cache.
"""

from fastswl.compilation import block_kernel, routine
from fastswl.kernels.lines import vectors_of, write_head, write_tail, write_vectors
from fastswl.kernels.merge import mark_rows, merge_parts, settle_rows, stays_as_it_is, take_largest_out
from fastswl.kernels.part import powers_are_guessed, row_part
from fastswl.kernels.plan import (
    LOG_SOFTMAX,
    LOSS,
    first_row_of_step,
    load_plan,
    logits_of_row,
    results_of_row,
    results_of_steps,
    steps_of_blocks,
    steps_of_outer,
)
from fastswl.kernels.record import PART_BYTES, PART_VECTORS, SO_FAR_BYTES, parts_of
from fastswl.kernels.results import finish_part, no_results, results_in_place
from fastswl.kernels.rows import (
    AGAIN,
    REPEATED,
    ROW_WEIGHT,
    SHIFT,
    TABLE_BYTES,
    describe_tile,
    settle_step,
    start_block,
)
from fastswl.simd import (
    VECTOR_BYTES,
    arithmetic_of,
    greatest,
    in_float64,
    lanes,
    least,
    load_double,
    result_of,
    store_double,
    store_wide,
    wide_zero,
    word,
)


@routine
def row_tile(
    storage,
    target_storage,
    n_parts,
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

    `here` and `before` are the memory of the two batches; the block's results are to lie from `begin` to `end`. `n_parts` is None
    where rows have one part.
    """
    arithmetic = arithmetic_of(storage)
    results = result_of(storage)
    n_classes = plan.n_classes
    part_classes = PART_VECTORS * lanes(storage)
    parts = TABLE_BYTES + SO_FAR_BYTES
    row_parts = word(1) if n_parts is None else n_parts
    areas = parts + (row_parts * plan.tile_rows * PART_BYTES + 63) // 64 * 64
    # of all parts of all rows; one more vector, since the last of a part is filled up past its end
    part_bytes = VECTOR_BYTES * (least(PART_VECTORS, vectors_of(storage, n_classes)) + 1)
    area_bytes = part_bytes * row_parts * plan.tile_rows
    line = least(here, before) + plan.line_buffer + VECTOR_BYTES if plan.line_buffer != 0 else word(0)
    describe_tile(storage, plan, here, outer, inner, count)
    store_wide(arithmetic, here + SHIFT, wide_zero(arithmetic))
    store_wide(arithmetic, here + REPEATED, wide_zero(arithmetic))
    guesses, in_place = powers_are_guessed(storage, plan), results_in_place(storage, target_storage, plan)
    logits, out = logits_of_row(plan, outer, inner), results_of_row(plan, outer, inner)
    out_before = results_of_row(plan, outer_before, inner_before)
    finished, again = False, True
    while again:
        again = False
        for row in range(greatest(count, count_before)):
            wanted = row < count and (plan.operation != LOSS or load_double(here + ROW_WEIGHT + 8 * row) != 0.0)
            if finished and load_double(here + AGAIN + 8 * row) == 0.0:
                continue
            for i in range(row_parts):
                number = row_parts * row + i
                first_class = part_classes * i
                n = n_classes if n_parts is None else least(part_classes, n_classes - first_class)
                record = 8 * row if n_parts is None else parts + PART_BYTES * number
                if n_parts is not None and stays_as_it_is(here, row, here + record):
                    continue
                # (exponentials that nobody wants lie in one place)
                behind = areas + part_bytes * number if plan.out != 0 else areas
                area, area_before = here + behind, before + behind
                target, source, fills = area, area_before, True
                if target_storage is None:
                    # exponentials follow close behind those whose results are written: they take their place
                    target = source = least(here, before) + behind
                    area = area_before = greatest(here, before) + areas
                results_before = out_before + row * plan.out_inner + first_class * plan.out_class
                if in_place and n >= lanes(storage):
                    target = out + row * plan.out_inner + first_class * plan.out_class
                    source, fills = results_before, False
                of_part = row * plan.logits_inner + first_class * plan.logits_class
                done = no_results(arithmetic, target_storage)
                if not finished and row < count_before:
                    done = finish_part(
                        storage,
                        target_storage,
                        n_parts,
                        plan,
                        before,
                        row,
                        before + record,
                        area_before,
                        area_bytes,
                        source,
                        results_before,
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
                write_tail(results, done, written + n_done * lanes(storage))
                if wanted:
                    row_part(
                        storage,
                        target_storage,
                        n_parts,
                        plan,
                        here,
                        row,
                        here + record,
                        area,
                        area_bytes,
                        here + areas,
                        here + TABLE_BYTES,
                        target,
                        fills,
                        guesses,
                        logits + of_part,
                        outer,
                        inner + row,
                        first_class,
                        n,
                        done,
                        written,
                    )
                else:
                    write_vectors(results, done, written, n_done)
            if n_parts is not None:
                far = wanted and merge_parts(
                    arithmetic, plan, here, row, here + parts + PART_BYTES * n_parts * row, n_parts
                )
                store_double(here + AGAIN + 8 * row, 1.0 if far else 0.0)
                again = again or far
        if n_parts is None:
            if settle_rows(arithmetic, plan, here):
                again = mark_rows(arithmetic, plan, here, count)
                # (of a log_softmax, guesses serve where logits can be read as they lie)
                takes_out = plan.operation == LOG_SOFTMAX and guesses and n_classes >= lanes(storage)
                if again and takes_out and not in_float64(arithmetic):
                    again = take_largest_out(storage, plan, here, logits, plan.logits_inner, count)
        finished = True


@block_kernel
def row_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of tiles of rows of one part; `scratch` is this thread's.

    A kernel of its own: what hangs on the part is known when it is compiled (loss and gradient of 512 and 1,000 classes in cache: 7 to
    10 % off, and 5 to 10 more with parts computed in place).
    """
    walk_rows(storage, target_storage, None, load_plan(plan_address), scratch, first, last)
    return 0


@block_kernel
def long_walk(storage, target_storage, plan_address, scratch, first, last):
    """The same of rows of several parts."""
    plan = load_plan(plan_address)
    n_parts = parts_of(storage, plan.n_classes)
    walk_rows(storage, target_storage, n_parts, plan, scratch, first, last)
    return 0


@routine
def walk_rows(storage, target_storage, n_parts, plan, scratch, first, last):
    """Blocks of tiles of rows of `n_parts`, None for one: results of a block's last tile are written while the next block's first is
    computed."""
    arithmetic = arithmetic_of(storage)
    tiles_per_outer = steps_of_outer(plan)
    first_tile, last_tile = steps_of_blocks(plan, first, last)
    begin, end = results_of_steps(plan, first_tile, last_tile)
    here, before = scratch, scratch + plan.tile_bytes
    start_block(arithmetic, here)
    start_block(arithmetic, before)
    outer_before, inner_before, count_before = word(0), word(0), word(0)
    # one step more, to write the results of the last
    for tile in range(first_tile, last_tile + least(plan.out, 1)):
        outer, inner = first_row_of_step(plan, tiles_per_outer, tile)
        count = least(plan.tile_rows, plan.n_inner - inner) if tile < last_tile else word(0)
        row_tile(
            storage,
            target_storage,
            n_parts,
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
            settle_step(storage, target_storage, plan, here, scratch, outer, inner, count, tile, last_tile)
        if plan.out != 0:
            here, before = before, here
            outer_before, inner_before, count_before = outer, inner, count
