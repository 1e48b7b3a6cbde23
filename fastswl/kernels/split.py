"""Few rows of very many classes: the parts of a row go to all threads.

In phases, each a call of the kernel: what is known of the rows, the sums of each part, the parts of each row merged (again with the
row's maximum subtracted, where it is far from 0), and the results, for which the exponentials are computed again. The
arithmetic, and so every bit, is that of the row walk.
"""

from fastswl.compilation import block_kernel, routine
from fastswl.kernels.lines import LINE_ROOM, write_head, write_tail, write_vectors
from fastswl.kernels.merge import merge_parts, stays_as_it_is
from fastswl.kernels.part import powers_are_guessed, row_part
from fastswl.kernels.plan import LOGSUMEXP, LOSS, load_plan, logits_of_row, results_of_row
from fastswl.kernels.record import PART_BYTES, PART_VECTORS, SO_FAR_BYTES, parts_of
from fastswl.kernels.results import finish_part, no_results
from fastswl.kernels.rows import (
    AGAIN,
    ROW_WEIGHT,
    TABLE_BYTES,
    describe_rows,
    finish_rows,
    keep_row_values,
    raise_exactly,
    start_block,
    store_partial,
)
from fastswl.simd import (
    VECTOR_BYTES,
    arithmetic_of,
    lanes,
    least,
    load_double,
    result_of,
    store_double,
    word,
)

#: phases
DESCRIBE, SUM_UP, MERGE, FINISH = range(4)
#: parts of a row that one thread finishes in order (loss and gradient of one row of 67 million: 19.7 to 14.4 ms;
#: 16 and 32 are no faster)
STRETCH_PARTS = 8


@routine
def split_step(storage, target_storage, plan, scratch, unit, n_parts):
    """One step of the split walk. Units are rows in the phases DESCRIBE and MERGE, parts of rows in SUM_UP."""
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
            raise_exactly(storage, plan, table)
            finish_rows(storage, plan, table)
            if plan.operation == LOGSUMEXP or plan.operation == LOSS:
                keep_row_values(storage, target_storage, plan, table, table, outer, inner, word(1))
            if plan.partials != 0:
                store_partial(arithmetic, plan, table, row)
        return
    i = unit - row * n_parts
    part_classes = PART_VECTORS * lanes(storage)
    first_class = part_classes * i
    n = least(part_classes, plan.n_classes - first_class)
    area_bytes = VECTOR_BYTES * (PART_VECTORS + 1)
    areas = scratch + LINE_ROOM + SO_FAR_BYTES
    part = parts + PART_BYTES * i
    if not ignored and load_double(table + AGAIN) != 0.0 and not stays_as_it_is(table, word(0), part):
        row_part(
            storage,
            target_storage,
            n_parts,
            plan,
            table,
            word(0),
            part,
            areas,
            area_bytes,
            areas,
            scratch + LINE_ROOM,
            areas,
            True,
            powers_are_guessed(storage, plan),
            logits_of_row(plan, outer, inner) + first_class * plan.logits_class,
            outer,
            inner,
            first_class,
            n,
            no_results(arithmetic, target_storage),
            word(0),
        )


@routine
def finish_stretch(storage, target_storage, plan, scratch, unit, n_parts):
    """The results of a stretch of neighbouring parts; those of one part go out while the exponentials of the next are computed."""
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    n_stretches = (n_parts + STRETCH_PARTS - 1) // STRETCH_PARTS
    row = unit // n_stretches
    outer = row // plan.n_inner
    inner = row - outer * plan.n_inner
    table = plan.row_tables + TABLE_BYTES * row
    ignored = plan.operation == LOSS and load_double(table + ROW_WEIGHT) == 0.0
    part_classes = PART_VECTORS * lanes(storage)
    first_part = STRETCH_PARTS * (unit - row * n_stretches)
    last_part = least(first_part + STRETCH_PARTS, n_parts)
    line = scratch + VECTOR_BYTES if plan.streaming != 0 else word(0)
    place, logits = results_of_row(plan, outer, inner), logits_of_row(plan, outer, inner)
    guesses = powers_are_guessed(storage, plan)
    begin = place + first_part * part_classes * plan.out_class
    end = place + least(last_part * part_classes, plan.n_classes) * plan.out_class
    area_bytes = VECTOR_BYTES * (PART_VECTORS + 1)
    so_far = scratch + LINE_ROOM
    here, before = so_far + SO_FAR_BYTES, so_far + SO_FAR_BYTES + plan.tile_bytes
    done = no_results(arithmetic, target_storage)
    # one step more, to write the results of the last
    for i in range(first_part, last_part + 1):
        written = write_head(results, done)
        n_done = (done.n - written) // lanes(storage)
        part = plan.row_parts + PART_BYTES * (n_parts * row + i)
        first_class = part_classes * i
        n = least(part_classes, plan.n_classes - first_class)
        if i < last_part and not ignored:
            row_part(
                storage,
                target_storage,
                n_parts,
                plan,
                table,
                word(0),
                part,
                here,
                area_bytes,
                here,
                so_far,
                here,
                True,
                guesses,
                logits + first_class * plan.logits_class,
                outer,
                inner,
                first_class,
                n,
                done,
                written,
            )
        else:
            write_vectors(results, done, written, n_done)
        write_tail(results, done, written + n_done * lanes(storage))
        if i < last_part:
            done = finish_part(
                storage,
                target_storage,
                n_parts,
                plan,
                table,
                word(0),
                part,
                here,
                area_bytes,
                here,
                place + first_class * plan.out_class,
                outer,
                inner,
                first_class,
                n,
                line,
                begin,
                end,
            )
        here, before = before, here


@block_kernel
def split_walk(storage, target_storage, plan_address, scratch, first, last):
    """Units `first` to `last` of a phase (see `split_step`); `scratch` is this thread's."""
    plan = load_plan(plan_address)
    n_parts = parts_of(storage, plan.n_classes)
    for unit in range(first, last):
        if plan.phase == FINISH:
            finish_stretch(storage, target_storage, plan, scratch, unit, n_parts)
        else:
            split_step(storage, target_storage, plan, scratch, unit, n_parts)
    return 0
