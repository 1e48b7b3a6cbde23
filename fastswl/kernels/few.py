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

from fastswl.kernels.block import larger, smaller
from fastswl.kernels.losses import factor_in_two, index_of_rows, keep_losses, without_idle_rows
from fastswl.kernels.plan import LOSS, SOFTMAX
from fastswl.kernels.tiles import Tiles
from fastswl.simd import absolute, choose, fma, joined, parted, select, splat_like, when
from fastswl.vectormath import (
    BIAS_32,
    difference_in_two,
    exact_rest,
    exp_of_difference,
    log1p_to_2,
)

#: the unit of exponentials, that of the largest
UNIT = 2.0**BIAS_32


class Rows(NamedTuple):
    """Of each class its logit, the difference from the largest in two parts, and its exponential; the largest logit, the sum of all
    exponentials but the largest's, and the inverse of that of all."""

    logits: list
    away: list
    away_low: list
    e: list
    top: Any
    others: Any
    inverse: Any


class Inverse(NamedTuple):
    """1 / S in units of the largest's exponential, in two parts."""

    high: Any
    low: Any


def inverse_of(others):
    """For formulas: of the sum of all but the largest's."""
    one = splat_like(next(iter(others)), 1.0)
    total = others + UNIT
    total_low = others - (total - UNIT)
    inverse = 1.0 / total
    return Inverse(inverse, (exact_rest(inverse, total, one) - inverse * total_low) * inverse)


def nan_unless(answered, others):
    """For formulas: the sum of all but the largest's, NaN of rows that have no finite answer."""
    return select(answered, others, splat_like(next(iter(others)), np.nan))


def two_classes(logits):
    """For formulas: all hangs on one difference."""
    top = larger(*logits)
    zero = splat_like(next(iter(top)), 0.0)
    gap, gap_low = difference_in_two(*logits)
    first = gap > 0.0
    away, away_low = select(first, -gap, gap), select(first, -gap_low, gap_low)
    e = exp_of_difference(away, away_low)

    def of_both(other, largest):
        return [select(first, largest, other), select(first, other, largest)]

    both = of_both(away, top - top), of_both(away_low, zero), of_both(e, zero + UNIT)
    others = nan_unless(top < np.inf, e)
    return Rows(logits, *both, top, others, inverse_of(others))


def three_classes(logits):
    """For formulas: three exponentials side by side, of which the two smaller ones are added up (by masks of which is the largest
    softmax took 5 % more instructions on AVX2)."""
    top = functools.reduce(lambda top, x: larger(x, top), logits, splat_like(next(iter(logits[0])), -np.inf))
    away, away_low = difference_in_two(joined(logits), joined([top] * 3))
    away, away_low, e = (parted(each, 3) for each in (away, away_low, exp_of_difference(away, away_low)))
    # inf - inf is NaN
    differences = away[0] + away[1] + away[2]
    others = nan_unless(differences == differences, smaller(e[0], e[1]) + smaller(larger(e[0], e[1]), e[2]))
    return Rows(logits, away, away_low, e, top, others, inverse_of(others))


def log_sum_of(others):
    """For formulas: log S in units of the largest's exponential."""
    return log1p_to_2(others * (1.0 / UNIT))


def two_or_three_classes(storage, plan, sums, tables, n_classes):
    """For formulas: from the logits in tiles side by side to the results in place of them; losses are added to the sum in the table
    `sums`. The number of classes is known while the code is written.

    (One stage of four tiles: in two stages of two tiles 5 to 10 % slower, though its chain of operations is long.)
    """
    tiles = Tiles(storage, tables, n_classes)
    if n_classes == 2:
        loss = functools.partial(loss_of_two, storage, plan, sums, tiles)
        choose(plan.operation == LOSS, lambda: softmaxes(plan, tiles, two_classes(logits_of(tiles))), loss)
    else:
        rows = three_classes(logits_of(tiles))
        loss = functools.partial(loss_of_three, storage, plan, sums, tiles, rows)
        choose(plan.operation == LOSS, lambda: softmaxes(plan, tiles, rows), loss)


def logits_of(tiles):
    """For formulas: of all classes."""
    return [tiles.at(c) for c in range(tiles.n_classes)]


def softmaxes(plan, tiles, rows):
    """For formulas: softmax and log_softmax."""
    inverse, others = rows.inverse, rows.others

    def softmax():
        for c, own in enumerate(rows.e):
            tiles.put(c, fma(own, inverse.high, own * inverse.low))

    def log_softmax():
        # beside +inf all that is finite is as good as -inf, but no NaN is
        numbers = functools.reduce(operator.and_, (x == x for x in rows.logits))
        taken_off = select((rows.top == np.inf) & numbers, tiles.zero, log_sum_of(others))
        for c, (own, low) in enumerate(zip(rows.away, rows.away_low, strict=True)):
            tiles.put(c, own - (taken_off - low))

    choose(plan.operation == SOFTMAX, log_softmax, softmax)


def loss_of_two(storage, plan, sums, tiles):
    """For formulas: of two classes all hangs on the distance a of the other one's logit from the target's,

        loss = log(1 + exp(-|a|)) + max(a, 0),    gradient_other = f exp(min(a, 0)) / (1 + exp(-|a|)) = -gradient_t.

    (AVX2, by the formulas of three classes: loss and gradient 44 to 35 instructions a row, loss 35 to 28.)
    """
    zero = tiles.zero
    index = index_of_rows(storage, tiles.tables)
    # (loaded after the index: before it AVX2 takes a tenth more instructions, to store what registers don't hold)
    logits = logits_of(tiles)
    is_second = index == 1.0
    target, other = select(is_second, *reversed(logits)), select(is_second, *logits)
    away, away_low = difference_in_two(other, target)
    behind = away > 0.0
    e = exp_of_difference(-absolute(away), select(behind, -away_low, away_low))
    top = larger(target, other)
    others = nan_unless(top < np.inf, e)
    log_ratio = log_sum_of(others) + select(behind, away, zero)
    keep_losses(storage, plan, tiles.tables, sums, index, log_ratio, None)

    def gradient():
        scale, scale_low = scale_of(storage, plan, tiles.tables, index, logits, top, inverse_of(others))
        e_other = select(behind, zero + UNIT, e)
        # (a class without weight has no -0)
        at_other = select(scale == 0.0, zero, fma(e_other, scale, e_other * scale_low))
        # a target of -inf pulls at nothing
        at_target = select(away == np.inf, at_other - at_other, 0.0 - at_other)
        tiles.put(0, select(is_second, at_other, at_target))
        tiles.put(1, select(is_second, at_target, at_other))

    when(plan.out != 0, gradient)


def loss_of_three(storage, plan, sums, tiles, rows):
    """For formulas: by the differences from the largest logit."""
    zero = tiles.zero
    index = index_of_rows(storage, tiles.tables)
    at_target = [index == c for c in range(tiles.n_classes)]
    gap, gap_low = zero, zero
    for here, own, low in zip(at_target, rows.away, rows.away_low, strict=True):
        gap, gap_low = select(here, own, gap), select(here, low, gap_low)
    keep_losses(storage, plan, tiles.tables, sums, index, (log_sum_of(rows.others) - gap_low) - gap, None)

    def gradient():
        scale, scale_low = scale_of(storage, plan, tiles.tables, index, rows.logits, rows.top, rows.inverse)
        # a target of -inf pulls at nothing
        rest = select(gap == -np.inf, zero, 0.0 - added_up(rows.e, at_target))
        # (a class without weight has no -0)
        none = scale == 0.0
        for c, (own, here) in enumerate(zip(rows.e, at_target, strict=True)):
            numerator = select(here, rest, own)
            tiles.put(c, select(none, zero, fma(numerator, scale, numerator * scale_low)))

    when(plan.out != 0, gradient)


def scale_of(storage, plan, tables, index, logits, top, inverse):
    """For formulas: what the gradient is made of exponentials with, f / S in two parts; the first is 0 of rows that have none."""
    factor, factor_low = factor_in_two(storage, plan, tables)
    scale = inverse.high * factor
    rest = inverse.high * factor_low + inverse.low * factor
    scale_low = rest - exact_rest(inverse.high, factor, scale)
    (scale,) = without_idle_rows(index, top, lambda: sum(logits[1:], logits[0]) == -np.inf, scale)
    return scale, scale_low


def added_up(e, left_out):
    """For formulas: the sum of all but one."""
    terms = [select(here, splat_like(next(iter(own)), 0.0), own) for own, here in zip(e, left_out, strict=True)]
    return sum(terms[1:], terms[0])
