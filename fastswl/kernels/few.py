"""Rows of two or three classes, whole in registers, in float32 throughout.

So few classes leave nothing to do but what is done once a row, and in float64 that is most of the time (loss and gradient of 2
classes: 2.2 ns an element by the stages of a tile, 0.75 here). Here the logits' differences from the largest are sums of two,
so their exponentials know no power of two and the largest has exactly 1; what follows has digits enough in float32: with D the sum
of the others' exponentials, S = 1 + D exactly in two parts, and

    softmax_c = e_c / S,    loss = log(1 + D) + (m - x_t),    gradient_c = f e_c / S,    gradient_t = -f (S - e_t) / S,

where S - e_t is added up from the others.
"""

import functools
import operator
from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import block_kernel, routine
from fastswl.kernels.block import larger
from fastswl.kernels.plan import LOSS, SOFTMAX, load_plan
from fastswl.kernels.rows import (
    AGAIN,
    CLASS,
    LOSS_VALUE,
    ROW_FACTOR,
    ROW_WEIGHT,
    TABLE_BYTES,
    TARGET_MASS,
    add_losses,
    describe_classes,
    describe_rows,
    rows_are_plain,
    start_block,
    store_partial,
    store_row_values,
)
from fastswl.kernels.stream import LINE_BYTES, flush
from fastswl.kernels.tiles import load_tile, store_tile
from fastswl.simd import (
    VECTOR_BYTES,
    SideBySide,
    arithmetic_of,
    choose,
    fma,
    formula,
    greatest,
    interleave,
    itemsize,
    lanes,
    least,
    load,
    load_wide,
    log2_of,
    narrow,
    result_of,
    select,
    separate,
    splat_like,
    steps,
    store,
    store_wide,
    vectors_side_by_side,
    when,
    wide_zero,
    widen,
)
from fastswl.vectormath import (
    BIAS_32,
    exact_rest,
    exp_of_sum_above,
    exp_reference,
    log1p_for_float32,
    split_float,
    two_sum,
)

#: tiles of a step, which go side by side
FEW_TILES = 4
#: the unit of exponentials, that of the largest
UNIT = 2.0**BIAS_32


@block_kernel
def few_walk(storage, target_storage, plan_address, scratch, first, last):
    """Blocks `first` to `last` of steps of a few tiles; `scratch` is this thread's."""
    plan = load_plan(plan_address)
    arithmetic = arithmetic_of(storage)
    step_rows = plan.tile_rows
    steps_per_outer = (plan.n_inner + step_rows - 1) // step_rows
    n_steps = plan.n_outer * steps_per_outer
    buffer = scratch + plan.line_buffer if plan.line_buffer != 0 else 0
    for block in range(first, last):
        start_block(arithmetic, scratch)
        first_step = block * plan.tiles_per_block
        last_step = least(first_step + plan.tiles_per_block, n_steps)
        for step in range(first_step, last_step):
            outer = step // steps_per_outer
            inner = (step - outer * steps_per_outer) * step_rows
            end = least(inner + step_rows, plan.n_inner)
            is_first, is_last = step == first_step, step == last_step - 1
            few_step(storage, target_storage, plan, scratch, outer, inner, end, buffer, is_first, is_last)
        if plan.partials != 0:
            store_partial(arithmetic, plan, scratch, block)
    return 0


@routine
def few_step(storage, target_storage, plan, scratch, outer, inner, end, buffer, first, last):
    """The rows from `inner` to `end`, by way of `buffer` where it is not 0; the first and the last step of a block are told."""
    arithmetic, results = arithmetic_of(storage), result_of(storage)
    rows = lanes(storage)
    n_tiles = (end - inner + rows - 1) // rows
    if plan.operation == LOSS:
        table = scratch
        # (the tiles past the last row, too: what stands beside it is nothing)
        for row in range(inner, inner + plan.tile_rows, rows):
            count = least(rows, greatest(end - row, 0))
            if weighted(plan) or not rows_are_plain(arithmetic, plan, count):
                describe_rows(arithmetic, plan, table, outer, row, count)
            else:
                place = plan.targets + outer * plan.targets_outer + row * plan.targets_inner
                describe_classes(arithmetic, plan, table, place)
            table += plan.tile_bytes
    load_few(storage, plan, scratch, plan.logits + outer * plan.logits_outer + inner * plan.logits_inner, end - inner)
    finish_few(arithmetic, plan, scratch, n_tiles)
    if plan.row_values != 0:
        table = scratch
        for row in range(inner, end, rows):
            store_row_values(storage, target_storage, plan, table, outer, row, least(rows, end - row))
            table += plan.tile_bytes
    if plan.out != 0:
        out = plan.out + outer * plan.out_outer + inner * plan.out_inner
        place = select(buffer == 0, out, buffer + out % LINE_BYTES)
        store_few(results, plan, scratch, place, end - inner)
        if buffer != 0:
            flush(results, buffer, out, plan.n_classes * (end - inner), first, last)


@formula
def weighted(plan):
    """Whether rows may count for more or less than others."""
    return (plan.weight != 0) | (plan.sample_weight != 0) | (plan.upstream != 0)


@formula
def load_few(storage, plan, scratch, source, n_rows):
    """`load_tile` of all tiles of a step (whole tiles of rows that lie end to end without asking for each how it lies)."""

    def one(of, tile, row, count):
        place = source + plan.logits_inner * row
        load_tile(of, tile, place, plan.logits_inner, plan.logits_class, plan.n_classes, count)

    move_few(storage, plan, scratch, n_rows, plan.logits_inner, plan.logits_class, source, one, separate)


@formula
def store_few(storage, plan, scratch, target, n_rows):
    """The reverse; `storage` is that of the results."""

    def one(of, tile, row, count):
        place = target + plan.out_inner * row
        store_tile(of, tile, scratch + AGAIN, place, plan.out_inner, plan.out_class, plan.n_classes, count)

    def all_of(of, place, tile, n_classes):
        interleave(of, tile, place, n_classes)

    move_few(storage, plan, scratch, n_rows, plan.out_inner, plan.out_class, target, one, all_of)


def move_few(storage, plan, scratch, n_rows, row_stride, class_stride, place, one, end_to_end):
    """For formulas: go over the tiles of a step by `one` or by `end_to_end`."""
    rows, size = lanes(storage), itemsize(storage)

    def tile_of(row):
        return scratch + TABLE_BYTES + plan.tile_bytes * (row >> log2_of(rows))

    def each():
        for row in steps(0, n_rows, rows):
            one(storage, tile_of(row), row, least(rows, n_rows - row))

    def whole(n_classes):
        for row in steps(0, n_rows, rows):
            end_to_end(storage, place + size * n_classes * row, tile_of(row), n_classes)

    apart = (class_stride != size) | (row_stride != size * plan.n_classes) | ((n_rows & (rows - 1)) != 0)
    way = select(apart, 0, plan.n_classes - 1)
    choose(way, each, functools.partial(whole, 2), functools.partial(whole, 3))


@formula
def finish_few(storage, plan, scratch, n_tiles):
    """From the logits in tiles, each behind its table, to the results in place of them, and the losses in the tables."""
    # (the chain of operations of one tile is too long for a processor to begin the next one's meanwhile. The last tiles may have
    # idle ones beside them)
    side_by_side = vectors_side_by_side(FEW_TILES)
    for step in steps(0, n_tiles, side_by_side):
        tables = [scratch + plan.tile_bytes * (step + k) for k in range(side_by_side)]
        of_two, of_three = (functools.partial(few_classes, storage, plan, scratch, tables, n) for n in (2, 3))
        choose(plan.n_classes == 3, of_two, of_three)


class Differences(NamedTuple):
    """Of each class its logit's difference from the largest, in two parts, and its exponential; the sum of all of these but the
    largest's."""

    away: list
    away_low: list
    e: list
    others: Any


def differences_of_two(storage, logits, top):
    """For formulas: both hang on one difference."""
    zero = splat_like(next(iter(top)), 0.0)
    gap, gap_low = two_sum(logits[0], -logits[1])
    # an infinite difference has no rest
    gap_low = select(gap_low == gap_low, gap_low, zero)
    first = gap > 0.0
    away, away_low = select(first, -gap, gap), select(first, -gap_low, gap_low)
    e = exp_of_sum_above(storage, away, away_low, *exp_reference(storage, zero))

    def of_both(other, largest):
        return [select(first, largest, other), select(first, other, largest)]

    return Differences(of_both(away, top - top), of_both(away_low, zero), of_both(e, zero + UNIT), e)


def differences(storage, logits, top):
    """For formulas: of any number of classes, all side by side."""
    zero = splat_like(next(iter(top)), 0.0)
    away, away_low = two_sum(joined(logits), joined([-top] * len(logits)))
    away_low = select(away_low == away_low, away_low, zero)
    e = exp_of_sum_above(storage, away, away_low, *exp_reference(storage, zero))
    away, away_low, e = (parted(each, len(logits)) for each in (away, away_low, e))
    # of equal ones the first is the largest
    is_top, found = [], None
    for x in logits:
        here = x == top
        is_top.append(here if found is None else here & ~found)
        found = here if found is None else found | here
    return Differences(away, away_low, e, added_up(e, is_top))


def few_classes(storage, plan, scratch, tables, n_classes):
    """For formulas: the same of some tiles side by side, of a number of classes that is known while the code is written.

    (One stage of four tiles: in two stages of two tiles 5 to 10 % slower, though its chain of operations is long.)
    """

    def wide(line):
        return SideBySide(*(load_wide(storage, table + line) for table in tables))

    places = [[table + TABLE_BYTES + VECTOR_BYTES * c for table in tables] for c in range(n_classes)]
    logits = [SideBySide(*(load(storage, place) for place in own)) for own in places]
    zero = splat_like(load(storage, places[0][0]), 0.0)
    top = zero - np.inf
    for x in logits:
        top = larger(x, top)
    away, away_low, e, others = (differences_of_two if n_classes == 2 else differences)(storage, logits, top)
    total = others + UNIT
    total_low = others - (total - UNIT)
    # +inf has no finite answer
    total = select(top < np.inf, total, splat_like(zero, np.nan))
    inverse = 1.0 / total
    inverse_low = (exact_rest(inverse, total, splat_like(zero, 1.0)) - inverse * total_low) * inverse

    def log_sum():
        return log1p_for_float32(others * (1.0 / UNIT))

    def store_all(c, numbers):
        for place, number in zip(places[c], numbers, strict=True):
            store(storage, place, number)

    def softmax():
        for c, own in enumerate(e):
            store_all(c, fma(own, inverse, own * inverse_low))

    def log_softmax():
        # beside +inf all that is finite is as good as -inf, but no NaN is
        numbers = functools.reduce(operator.and_, (x == x for x in logits))
        taken_off = select((top == np.inf) & numbers, zero, log_sum())
        for c, (own, low) in enumerate(zip(away, away_low, strict=True)):
            store_all(c, own - (taken_off - low))

    def loss():
        index = narrow(storage, wide(CLASS))
        at_target = [index == c for c in range(n_classes)]
        gap, gap_low = zero, zero
        for here, own, low in zip(at_target, away, away_low, strict=True):
            gap, gap_low = select(here, own, gap), select(here, low, gap_low)
        log_ratio = (log_sum() - gap_low) - gap
        log_ratio = select(total == total, log_ratio, total)

        def plain_losses():
            return select(index == -1.0, zero, log_ratio)

        def weighted_losses():
            mass, weight, none = wide(TARGET_MASS), wide(ROW_WEIGHT), wide_zero(storage)
            # (a class without weight has no loss, however far it is)
            own = select((mass == 0.0) & (log_ratio == log_ratio), none, mass * widen(log_ratio))
            return narrow(storage, select(weight == 0.0, none, own * weight))

        losses = widen(choose(weighted(plan), plain_losses, weighted_losses))
        for one in losses:
            add_losses(storage, scratch, one)

        def keep():
            for table, one in zip(tables, losses, strict=True):
                store_wide(storage, table + LOSS_VALUE, one)

        when(plan.row_values != 0, keep)

        def gradient():
            def plain_factor():
                return split_float(storage, splat_like(wide_zero(storage), plan.row_factor))

            factor, factor_low = choose(
                weighted(plan), plain_factor, lambda: split_float(storage, wide(TARGET_MASS) * wide(ROW_FACTOR))
            )
            scale = inverse * factor
            scale_low = (inverse * factor_low + inverse_low * factor) - exact_rest(inverse, factor, scale)
            # a target of -inf pulls at nothing
            rest = select(gap == -np.inf, zero, 0.0 - added_up(e, at_target))
            # an ignored row, one of nothing but -inf; a class without weight (not -0)
            nothing = (sum(logits[1:], logits[0]) == -np.inf) & (top == -np.inf)
            none = nothing | (index == -1.0) | (scale == 0.0)
            for c, (own, here) in enumerate(zip(e, at_target, strict=True)):
                numerator = select(here, rest, own)
                store_all(c, select(none, zero, fma(numerator, scale, numerator * scale_low)))

        when(plan.out != 0, gradient)

    way = select(plan.operation == LOSS, 0, select(plan.operation == SOFTMAX, 1, 2))
    choose(way, loss, softmax, log_softmax)


def joined(groups):
    """For formulas: several groups of vectors side by side as one."""
    return SideBySide(*(one for group in groups for one in group))


def parted(whole, n_groups):
    """The reverse."""
    each = list(whole)
    size = len(each) // n_groups
    return [SideBySide(*each[size * i : size * (i + 1)]) for i in range(n_groups)]


def added_up(e, left_out):
    """For formulas: the sum of all but one."""
    terms = [select(here, splat_like(next(iter(own)), 0.0), own) for own, here in zip(e, left_out, strict=True)]
    return sum(terms[1:], terms[0])
