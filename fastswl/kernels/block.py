"""Loops over a block: `n` vectors of the arithmetic type, end to end in scratch memory.

A block is a piece of one row (lanes are neighbouring classes; the last vector is filled up with -inf) or a tile of rows
(one vector a class, one lane a row). The loops are the same: what differs between lanes stands in vectors.
"""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.simd import (
    VECTOR_BYTES,
    absolute,
    by_type,
    fma,
    load,
    narrow,
    prefetch,
    select,
    splat_like,
    store,
    wide_zero,
    widen,
)
from fastswl.vectormath import accumulate, exp_above, tanh_and_slope, tanh_in_two

#: vectors whose sum is formed in the arithmetic type before it goes to the float64 sum
GROUP = 2


@routine
def block_maximum(storage, source, n):
    """The largest of each lane; NaN is dropped (the exponentials keep it)."""
    top = load(storage, source)
    top = select(top == top, top, splat_like(top, -np.inf))
    for i in range(1, n):
        x = load(storage, source + VECTOR_BYTES * i)
        top = select(x > top, x, top)
    return top


@routine
def nan_where_any(storage, source, n, top):
    """`top`, but NaN in lanes that hold a NaN: rows with +inf, where the exponentials can't tell."""
    for i in range(n):
        x = load(storage, source + VECTOR_BYTES * i)
        top = select(x == x, top, x)
    return top


@routine
def exp_and_sum(storage, source, low_parts, target, n, magic, lowest, ahead):
    """e = exp(x) in units of the reference into `target` (may be `source`); the sum of each lane, as (high, low) float64.

    Meanwhile the lines from `ahead` on, which are read next, are asked for, one a vector: what follows a row in memory comes
    while this one is computed.
    """
    high = wide_zero(storage)
    low = wide_zero(storage)
    for first in range(0, n, GROUP):
        total = magic * 0.0
        for i in range(first, min(first + GROUP, n)):
            x_low = magic * 0.0
            if low_parts != 0:
                x_low = load(storage, low_parts + VECTOR_BYTES * i)
            e = exp_above(storage, load(storage, source + VECTOR_BYTES * i), x_low, magic, lowest)
            store(storage, target + VECTOR_BYTES * i, e)
            prefetch(ahead + VECTOR_BYTES * i)
            total = total + e
        high, low = accumulate(storage, high, low, total)
    return high, low


@routine
def subtract(storage, source, n, shift):
    """x - shift, in place: for rows far from 0, where it is exact for all that counts (Sterbenz)."""
    for i in range(n):
        place = source + VECTOR_BYTES * i
        store(storage, place, load(storage, place) - shift)


@routine
def cap_and_scale(storage, source, low_parts, slopes, n, softcap, scale):
    """The change of variable z = scale * softcap * tanh(x / softcap), as z + z_low, and its derivative, in place."""
    for i in range(n):
        x = load(storage, source + VECTOR_BYTES * i)
        wide = widen(x)
        slope = splat_like(wide, scale)
        factor, factor_low, wide_low = slope, wide * 0.0, wide * 0.0
        if softcap != 0.0:
            if by_type(storage, 0, 1) == 1:
                wide, wide_low, slope = tanh_in_two(wide, softcap)
            else:
                wide, slope = tanh_and_slope(wide * (1.0 / softcap))
            cap = splat_like(wide, softcap)
            factor, factor_low = cap * scale, fma(cap, splat_like(wide, scale), -(cap * scale))
            slope = slope * scale
        z = wide * factor
        rest = fma(wide, factor, -z) + (wide * factor_low + wide_low * factor)
        high = narrow(storage, z)
        # an infinite z has no rest
        low = narrow(storage, (z - widen(high)) + rest)
        low = select(low == low, low, splat_like(low, 0.0))
        store(storage, source + VECTOR_BYTES * i, high)
        store(storage, low_parts + VECTOR_BYTES * i, low)
        store(storage, slopes + VECTOR_BYTES * i, narrow(storage, slope))


@routine
def scale_block(storage, source, target, n, factor, factor_low):
    """e * (factor + factor_low): one rounding."""
    for i in range(n):
        e = load(storage, source + VECTOR_BYTES * i)
        store(storage, target + VECTOR_BYTES * i, fma(e, factor, e * factor_low))


@routine
def shift_logarithms(storage, source, n, reference, log_sum):
    """(x - m) - log(S / e_m): neither difference cancels, but at the maximum, where the first is 0."""
    for i in range(n):
        place = source + VECTOR_BYTES * i
        store(storage, place, (load(storage, place) - reference) - log_sum)


@routine
def mass_and_distance(storage, logits, low_parts, mass, n, reference, reference_low):
    """Sums over a block of q and of q (m - x), float64: what a loss with target mass everywhere is made of.

    A class of no mass adds nothing, whatever its logit. A logit of -inf that has mass makes the loss inf, and its
    gradient is 0: its mass is struck out of the block for what follows.
    """
    total = wide_zero(storage)
    total_low = wide_zero(storage)
    distance = wide_zero(storage)
    distance_low = wide_zero(storage)
    for i in range(n):
        x = load(storage, logits + VECTOR_BYTES * i)
        q_place = mass + VECTOR_BYTES * i
        stored = load(storage, q_place)
        q = widen(stored)
        gap = reference - widen(x)
        if low_parts != 0:
            gap = gap + (reference_low - widen(load(storage, low_parts + VECTOR_BYTES * i)))
        total, total_low = add_wide(storage, total, total_low, q)
        distance, distance_low = add_wide(
            storage, distance, distance_low, select(q == 0.0, splat_like(q, 0.0), q * gap)
        )
        store(storage, q_place, select(x == -np.inf, splat_like(x, 0.0), stored))
    return settled(total, total_low), settled(distance, distance_low)


@inlined
def settled(high, low):
    """The two parts of a compensated sum in one; an infinite sum leaves NaN as its rest."""
    return select(absolute(high) < np.inf, high + low, high)


@inlined
def add_wide(storage, high, low, term):
    return accumulate(storage, high, low, term)


@routine
def subtract_mass(storage, values, mass, n, factor):
    """values - factor * q, in place."""
    for i in range(n):
        place = values + VECTOR_BYTES * i
        q = load(storage, mass + VECTOR_BYTES * i)
        store(storage, place, fma(-factor, q, load(storage, place)))


@routine
def multiply(storage, values, factors, n):
    """values * factors, in place."""
    for i in range(n):
        place = values + VECTOR_BYTES * i
        store(storage, place, load(storage, place) * load(storage, factors + VECTOR_BYTES * i))
