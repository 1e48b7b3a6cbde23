"""What the target of a row makes of its sums, where arithmetic is in float32: of tiles side by side, a lane a row."""

import numpy as np

from fastswl.kernels.rows import CLASS, LOSS_VALUE, ROW_FACTOR, ROW_WEIGHT, TARGET_MASS, add_losses
from fastswl.simd import (
    Running,
    SideBySide,
    any_lane_of,
    choose,
    formula,
    load_wide,
    narrow,
    select,
    splat_like,
    store_wide,
    to_float32,
    to_float64,
    when,
    wide_zero,
    widen,
)
from fastswl.vectormath import split_float


def line_of(storage, tables, line):
    """For formulas: a line of several tables, in float64."""
    return SideBySide(*(load_wide(storage, table + line) for table in tables))


def index_of_rows(storage, tables):
    """For formulas: the class of each row's target, -1 of a row that is ignored."""
    return narrow(storage, line_of(storage, tables, CLASS))


@formula
def weighted(plan):
    """Whether rows may count for more or less than others."""
    own = (plan.weight != 0) | (plan.sample_weight != 0) | (plan.upstream != 0)
    return own | (plan.label_smoothing != 0.0)


def keep_losses(storage, plan, tables, sums, index, log_ratio, penalty):
    """For formulas: the losses of rows whose log(S / e) is `log_ratio`, added to the sum in the table `sums` and kept where they are
    wanted one by one. `penalty` is float64 and added to each, None for none."""
    none = wide_zero(storage)

    def plain():
        if penalty is None:
            return select(index == -1.0, narrow(storage, none), log_ratio)
        return narrow(storage, select(index == -1.0, none, widen(log_ratio) + penalty))

    def by_weight():
        mass, weight = line_of(storage, tables, TARGET_MASS), line_of(storage, tables, ROW_WEIGHT)
        # (a class without weight has no loss, however far it is)
        own = select((mass == 0.0) & (log_ratio == log_ratio), none, mass * widen(log_ratio))
        own = own if penalty is None else own + penalty
        return narrow(storage, select(weight == 0.0, none, own * weight))

    losses = widen(choose(weighted(plan), plain, by_weight))
    for one in losses:
        add_losses(storage, sums, one)

    def keep():
        for table, one in zip(tables, losses, strict=True):
            store_wide(storage, table + LOSS_VALUE, one)

    when(plan.row_values != 0, keep)


def factors_of_rows(storage, plan, tables):
    """For formulas: of each row what its gradient is multiplied by, times the mass of the target, in float64 and in float32; and
    without that mass, in float64."""
    none = wide_zero(storage)

    def same():
        factor = none + plan.row_factor
        # (of the number: that of a vector of the same numbers LLVM does not see through)
        return factor, narrow(storage, none) + to_float32(plan.row_factor), factor

    def own():
        factor = line_of(storage, tables, ROW_FACTOR)
        both = line_of(storage, tables, TARGET_MASS) * factor
        return both, narrow(storage, both), factor

    return choose(weighted(plan), same, own)


def factor_in_two(storage, plan, tables):
    """For formulas: the first of these in two parts of float32."""
    zero = narrow(storage, wide_zero(storage))

    def same():
        factor = to_float32(plan.row_factor)
        return zero + factor, zero + to_float32(plan.row_factor - to_float64(factor))

    def own():
        return split_float(storage, line_of(storage, tables, TARGET_MASS) * line_of(storage, tables, ROW_FACTOR))

    return choose(weighted(plan), same, own)


def without_idle_rows(index, top, nothing_beside, *numbers):
    """For formulas: numbers of each row, 0 of an ignored one and of one of nothing but -inf. That is one whose largest logit `top`
    (NaN dropped) is -inf, if `nothing_beside` says that there is no NaN.

    (Nothing is asked unless there is such a row: masks of different numbers put together are a dozen instructions each without
    AVX-512; 10 classes, loss and gradient, with what else was asked of every row: 264 to 252 instructions for 16 numbers.)
    """
    zero = splat_like(next(iter(top)), 0.0)
    kept = Running(tuple(select(index == -1.0, zero, each) for each in numbers))
    lowest = top == -np.inf

    def of_nothing():
        nothing = lowest & nothing_beside()
        kept.value = tuple(select(nothing, zero, each) for each in kept.value)

    when(any_lane_of(lowest), of_nothing)
    return kept.value
