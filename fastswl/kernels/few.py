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

from fastswl.kernels.block import larger
from fastswl.kernels.losses import factors_of_rows, index_of_rows, keep_losses
from fastswl.kernels.plan import LOSS, SOFTMAX
from fastswl.kernels.tiles import Tiles
from fastswl.simd import choose, fma, joined, parted, select, splat_like, when
from fastswl.vectormath import (
    BIAS_32,
    exact_rest,
    exp_of_difference,
    log1p_to_2,
    split_float,
    two_sum,
)

#: the unit of exponentials, that of the largest
UNIT = 2.0**BIAS_32


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
    e = exp_of_difference(away, away_low)

    def of_both(other, largest):
        return [select(first, largest, other), select(first, other, largest)]

    return Differences(of_both(away, top - top), of_both(away_low, zero), of_both(e, zero + UNIT), e)


def differences(storage, logits, top):
    """For formulas: of any number of classes, all side by side."""
    zero = splat_like(next(iter(top)), 0.0)
    away, away_low = two_sum(joined(logits), joined([-top] * len(logits)))
    away_low = select(away_low == away_low, away_low, zero)
    e = exp_of_difference(away, away_low)
    away, away_low, e = (parted(each, len(logits)) for each in (away, away_low, e))
    # of equal ones the first is the largest
    is_top, found = [], None
    for x in logits:
        here = x == top
        is_top.append(here if found is None else here & ~found)
        found = here if found is None else found | here
    return Differences(away, away_low, e, added_up(e, is_top))


def two_or_three_classes(storage, plan, sums, tables, n_classes):
    """For formulas: from the logits in tiles side by side to the results in place of them; losses are added to the sum in the table
    `sums`. The number of classes is known while the code is written.

    (One stage of four tiles: in two stages of two tiles 5 to 10 % slower, though its chain of operations is long.)
    """
    tiles = Tiles(storage, tables, n_classes)
    zero = tiles.zero
    logits = [tiles.at(c) for c in range(n_classes)]
    top = zero - np.inf
    for x in logits:
        top = larger(x, top)
    away, away_low, e, others = (differences_of_two if n_classes == 2 else differences)(storage, logits, top)
    total = others + UNIT
    total_low = others - (total - UNIT)
    # +inf has no finite answer
    total = select(top < np.inf, total, zero + np.nan)
    inverse = 1.0 / total
    inverse_low = (exact_rest(inverse, total, zero + 1.0) - inverse * total_low) * inverse

    def log_sum():
        return log1p_to_2(others * (1.0 / UNIT))

    def softmax():
        for c, own in enumerate(e):
            tiles.put(c, fma(own, inverse, own * inverse_low))

    def log_softmax():
        # beside +inf all that is finite is as good as -inf, but no NaN is
        numbers = functools.reduce(operator.and_, (x == x for x in logits))
        taken_off = select((top == np.inf) & numbers, zero, log_sum())
        for c, (own, low) in enumerate(zip(away, away_low, strict=True)):
            tiles.put(c, own - (taken_off - low))

    def loss():
        index = index_of_rows(storage, tables)
        at_target = [index == c for c in range(n_classes)]
        gap, gap_low = zero, zero
        for here, own, low in zip(at_target, away, away_low, strict=True):
            gap, gap_low = select(here, own, gap), select(here, low, gap_low)
        log_ratio = (log_sum() - gap_low) - gap
        log_ratio = select(total == total, log_ratio, total)
        keep_losses(storage, plan, tables, sums, index, log_ratio, None)

        def gradient():
            mass, factor = factors_of_rows(storage, plan, tables)
            factor, factor_low = split_float(storage, mass * factor)
            scale = inverse * factor
            scale_low = (inverse * factor_low + inverse_low * factor) - exact_rest(inverse, factor, scale)
            # a target of -inf pulls at nothing
            rest = select(gap == -np.inf, zero, 0.0 - added_up(e, at_target))
            # an ignored row, one of nothing but -inf; a class without weight (not -0)
            nothing = (sum(logits[1:], logits[0]) == -np.inf) & (top == -np.inf)
            none = nothing | (index == -1.0) | (scale == 0.0)
            for c, (own, here) in enumerate(zip(e, at_target, strict=True)):
                numerator = select(here, rest, own)
                tiles.put(c, select(none, zero, fma(numerator, scale, numerator * scale_low)))

        when(plan.out != 0, gradient)

    way = select(plan.operation == LOSS, 0, select(plan.operation == SOFTMAX, 1, 2))
    choose(way, loss, softmax, log_softmax)


def added_up(e, left_out):
    """For formulas: the sum of all but one."""
    terms = [select(here, splat_like(next(iter(own)), 0.0), own) for own, here in zip(e, left_out, strict=True)]
    return sum(terms[1:], terms[0])
