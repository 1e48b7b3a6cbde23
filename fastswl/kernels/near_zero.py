"""logsumexp near 0, where the largest logit and the log of the sum cancel.

An exponential that is wrong by one unit makes log S wrong by a unit of 1, however small the result: rows that end near 0 are summed
up again from exponentials with enough digits, as S - 1, and log1p of that keeps them.
"""

import numpy as np

from fastswl.compilation import routine
from fastswl.simd import (
    FLOAT64,
    arithmetic_of,
    in_float64,
    itemsize,
    lane,
    lanes,
    load,
    load_one,
    splat_like,
    store_one,
    wide_zero,
    widen,
)
from fastswl.vectormath import exact_total_of_lanes, exp, exp_exactly, log, log_of_quotient, two_sum

#: results below which the error of an exponential, half a unit of 1 or less, is more than two units of the result
NEAR_ZERO = 0.25
#: the same where no class is left out of the sum, whose own exponential has more digits
NEAR_ZERO_OF_ALL = 1.0
#: and those of float32 below which even that of a float64 exponential is
NEARER_ZERO = 2.0**-28


@routine
def log_of_sum(storage, plan, place, room, exactly):
    """log of the sum of exp(x) of the row at `place`, from 0.3 to 3; there is room for a vector at `room`."""
    arithmetic = arithmetic_of(storage)
    width, stride = lanes(storage), plan.logits_class
    high, low = wide_zero(storage), wide_zero(storage)
    for first in range(0, plan.n_classes, width):
        if stride == itemsize(storage) and first + width <= plan.n_classes:
            x = load(storage, place + stride * first)
        else:
            for i in range(width):
                value = -np.inf
                if first + i < plan.n_classes:
                    value = np.float64(load_one(storage, place + stride * (first + i)))
                store_one(arithmetic, room + itemsize(arithmetic) * i, value)
            x = load(arithmetic, room)
        if exactly:
            e, e_low = exp_exactly(widen(x))
            low = low + e_low
        else:
            e = exp(FLOAT64, widen(x))
        high, rest = two_sum(high, e)
        low = low + rest
    total, total_low = exact_total_of_lanes(storage, high, low)
    if total < 0.75 or total > 1.3:
        return lane(log(splat_like(high, total)), 0) + total_low / total
    # S - 1 is exact
    above = splat_like(high, (total - 1.0) + total_low)
    return lane(log_of_quotient(FLOAT64, above / (2.0 + above)), 0)


@routine
def logsumexp_near_zero(storage, plan, place, room):
    """The logsumexp of a row that is near 0 (float32: a row of 1,000 log-probabilities takes 0.5 ns a class and not 0.15; with exact
    exponentials throughout 1.1)."""
    value = 0.0
    if not in_float64(storage):
        value = log_of_sum(storage, plan, place, room, False)
    if abs(value) < NEARER_ZERO:
        value = log_of_sum(storage, plan, place, room, True)
    return value
