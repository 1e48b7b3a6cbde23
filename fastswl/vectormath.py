"""exp and log on vectors, for float32 and float64 from one body.

exp(x) = 2**n P(r), n = rint(x log2 e), r = x - n ln 2 (Cody & Waite, Software Manual for the Elementary Functions, 1980,
ch. 6). With a fused multiply-add the first step of the reduction, by the arithmetic type's nearest ln 2, is exact, and r
carries one rounding. P is minimax (Remez, in 60 digits): 2**-28.3 in float32, 2**-57.9 in float64. The kernels' float32 takes
n in eighths, whose powers of two stand in a table, so that r is small and P of degree 4, 2**-32.
log(1 + q) = 2 atanh(q / (2 + q)), minimax in the square, 2**-59 (Muller, Elementary Functions, 3rd ed., ch. 4).
"""

import math

import numpy as np

from fastswl.simd import (
    FLOAT32,
    FLOAT64,
    absolute,
    any_lane_of,
    as_bits,
    as_floats,
    as_numbers,
    by_type,
    choose,
    fma,
    formula,
    greatest,
    has_fma,
    in_float64,
    lane,
    lanes,
    least,
    look_up_in,
    narrow,
    polynomial,
    select,
    splat_like,
    swap_halves,
    to_float32,
    widen,
)

LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453
#: ln 2 as a sum: nearest of the type, and the rest
_LN2_FMA_32 = (float(np.float32(LN2)), -1.904654299957768e-09)
_LN2_FMA_64 = (LN2, 2.3190468138462996e-17)
#: without fma: a head whose products with n are exact, and two more parts
_LN2_SPLIT_32 = (0.693359375, -0.00021219253540039062, -1.904654299957768e-09)
_LN2_SPLIT_64 = (0.6931471803691238, 1.9082149292705877e-10, 1.1612227229362533e-26)
_ROUND_32, _ROUND_64 = 1.5 * 2.0**23, 1.5 * 2.0**52
_EXP_32 = (
    0.001381454105884606023,
    0.0083687451045360171126,
    0.041668390769632279959,
    0.16666520399105309613,
    0.49999993432170233671,
    1.0,
    1.0,
)
#: eighths of a power of two: 2**(i/8) times the constant for which all eight are nearest to a float32, 0.05 of 2**-24 at most (of 8e7
#: that were tried; without it 0.54)
_STEPS = 8
_EIGHTHS = (1.0877149, 1.1861615, 1.2935183, 1.4105917, 1.5382612, 1.6774857, 1.8293111, 1.9948779)
_OF_ALL = 1.0877149085915509
#: (exp(r) - 1) / r for |r| up to ln 2 / 16, minimax with the last two given: 0.003 of 2**-24 of exp(r)
_EXP_EIGHTH = (0.041660431772470474, 0.1666802614927292, 0.5, 1.0)
_EXP_64 = (
    2.500001391414683097e-8,
    2.7630306207844823861e-7,
    2.7557586818262482438e-6,
    0.000024801492949756015656,
    0.00019841269505759298372,
    0.0013888888943759843742,
    0.0083333333334949830565,
    0.041666666666529728708,
    0.16666666666666411501,
    0.50000000000000106687,
    1.0,
    1.0,
)
#: of float64 vectors whose result ends in float32: 2**-34.2
_EXP_FOR_32 = (
    0.00019790331248708719773,
    0.0013944657238460173368,
    0.0083334970882554980915,
    0.04166629498936705011,
    0.1666666586891309569,
    0.50000000676650386085,
    1.0,
    1.0,
)
#: Taylor coefficients of (expm1(r) - r - r**2/2) / r**3, to 2**-63
_EXPM1_64 = tuple(1.0 / math.factorial(k) for k in range(15, 2, -1))
#: the same up to |r| = ln 2 / 32, to 2**-76 of exp(r)
_EXPM1_SIXTEENTH = _EXPM1_64[-8:]
_ATANH_64 = (
    0.17019460911143200568,
    0.083396435736045228733,
    0.12106186109556780479,
    0.13300961653348809185,
    0.15386560772877945922,
    0.18181743888216587561,
    0.22222223970666375292,
    0.28571428547840947111,
    0.40000000000157323203,
    0.66666666666666303672,
)

#: the same for what ends in float32: 2**-33.1
_ATANH_FOR_32 = (
    0.24303756062088800467,
    0.21427007285305691805,
    0.28616934253964696684,
    0.39998876385157490121,
    0.6666667563103541336,
)

#: (log(1 + f) - f) / f**2 from -1/4 to 1/2: 2**-30.4 of the logarithm
_LOG1P_32 = (
    0.037319389987501735862,
    -0.09126823699627408382,
    0.11755417142502224162,
    -0.12750036325185514113,
    0.14272043068870964536,
    -0.16652291402673909513,
    0.19999623682663763689,
    -0.25000290239726744721,
    0.3333334219441878872,
    -0.49999998441481717429,
)

#: (tanh(u) / u - 1) / u**2 in u**2 up to SMALL_TANH, to 2**-31.4 of tanh(u) - u
SMALL_TANH = 0.5
#: by how much a float32 logit is changed at most where that is not carried in two parts (what is lost is half an ulp of its
#: exponential, rarely more), and the same in units of the softcap, so that it is within SMALL_TANH of it
LITTLE_CAPPED, LITTLE_TANH = 0.5, 0.0378
_TANH_32 = (
    -0.00665362723117730171,
    0.021301738893663528647,
    -0.053899979674812546171,
    0.13332970812640708771,
    -0.3333332705173557742,
)

#: e of the row's maximum is 2**BIAS, so that a subnormal p comes out of one multiplication of normal numbers
BIAS_32, BIAS_64 = 41.0, 64.0
_eighth_of = look_up_in([int(np.float32(power).view(np.int32)) - (i << 20) for i, power in enumerate(_EIGHTHS)])
#: exponent bias and the place of the exponent in the bits
_EXPONENT_32, _EXPONENT_64 = 127.0, 1023.0


@formula
def nearest_power(storage, x):
    """rint(x log2 e) of a vector of |x| < 2**21, as floats of its type."""
    rounding = by_type(storage, _ROUND_32, _ROUND_64)
    return fma(x, LOG2_E, rounding) - rounding


@formula
def reduce_argument(storage, x, n):
    """x - n ln 2."""
    if has_fma():
        high, low = by_type(storage, _LN2_FMA_32, _LN2_FMA_64)
        return fma(n, -low, fma(n, -high, x))
    high, middle, low = by_type(storage, _LN2_SPLIT_32, _LN2_SPLIT_64)
    return ((x - n * high) - n * middle) - n * low


@formula
def exp_polynomial(storage, r):
    if has_fma():
        return polynomial(r, by_type(storage, _EXP_32, _EXP_64))
    # 1 + (r + r**2 tail): of Horner's last steps, in two roundings each, only the last counts in full
    return 1.0 + (r + r * r * polynomial(r, by_type(storage, _EXP_32[:-2], _EXP_64[:-2])))


def by_table(storage):
    """For formulas: whether exp takes eighths of a power of two from a table."""
    return has_fma() and not in_float64(storage)


@formula
def exp_reference(storage, power):
    """What `exp_above` wants to know of the power N of two that a block is relative to: the rounding constant that has N and
    the biases folded in, and the x below which e is exactly 0."""
    if by_table(storage):
        # (above is no subnormal number. The exponent bias is the table's: what -inf makes of it would be subnormal without, and slow)
        return _ROUND_32 + (BIAS_32 - power) * _STEPS, (power - (_EXPONENT_32 + BIAS_32 - 1.0)) * LN2
    return reference_by_polynomial(storage, power)


@formula
def reference_by_polynomial(storage, power):
    """`exp_reference` without a table."""
    shift = by_type(storage, _EXPONENT_32 + BIAS_32, _EXPONENT_64 + BIAS_64)
    return by_type(storage, _ROUND_32, _ROUND_64) + (shift - power), (power - shift) * LN2


@formula
def exp_unit(storage):
    """What 1 is in units of `exp_above`, as a float64."""
    return 2.0 ** by_type(storage, BIAS_32, BIAS_64) * (_OF_ALL if by_table(storage) else 1.0)


@formula
def exp_above(storage, x, magic, lowest):
    """exp(x) 2**-N in units of `exp_unit`: n - N + biases stands in the low bits of the rounded sum, which become the exponent.

    x - m is never formed, so it is never rounded. -inf and all below `lowest` give an exact 0, NaN gives NaN.
    """
    if by_table(storage):
        return nothing_below(x, lowest, exp_within(storage, x, magic))
    return exp_within(storage, bounded_below(x, lowest), magic)


@formula
def exp_within(storage, x, magic):
    """`exp_above` of x that are `lowest` or more. By table 2**(n/8) (1 + r P(r)), whose error is that of the last sum and little
    more: 0.62 ulp at most, where 2**n P(r) is 0.88 off (and in cache, with 2 more multiplications in a chain 3 longer, 3 to 11 %
    slower)."""
    if by_table(storage):
        return exp_by_table(*reduce_to_eighth(x, magic))
    r, power_of_two = reduce_within(storage, x, magic)
    return exp_polynomial(storage, r) * power_of_two


@formula
def exp_by_table(r, scale):
    return fma(scale * r, polynomial(r, _EXP_EIGHTH), scale)


@formula
def nothing_below(x, lowest, e):
    """e, but 0 where x is below `lowest`."""
    return select(x < lowest, splat_like(x, 0.0), e)


@formula
def exp_of_sum_above(storage, x, x_low, magic, lowest):
    """`exp_above` of x + x_low, the second being small beside the first."""
    if by_table(storage):
        r, scale = reduce_to_eighth(x, magic)
        return nothing_below(x, lowest, exp_by_table(r + x_low, scale))
    return sum_by_polynomial(storage, x, x_low, magic, lowest)


@formula
def sum_by_polynomial(storage, x, x_low, magic, lowest):
    """`exp_of_sum_above` without a table."""
    # beside a logit of -1e38 it is huge, and the polynomial of it infinite
    x_low = select(x < lowest, splat_like(x, 0.0), x_low)
    r, power_of_two = reduce_above(storage, x, magic, lowest)
    return exp_polynomial(storage, r + x_low) * power_of_two


@formula
def exp_of_difference(x, x_low):
    """exp(x + x_low) of float32 vectors up to 0, in units of 2**BIAS_32, which e of 0 is exactly."""
    return sum_by_polynomial(FLOAT32, x, x_low, *reference_by_polynomial(FLOAT32, splat_like(x, 0.0)))


@formula
def exp_above_for_float32(x, magic, lowest):
    """`exp_above` of float64 vectors, to 2**-34."""
    r, power_of_two = reduce_above(FLOAT64, x, magic, lowest)
    return exp_for_float32(r) * power_of_two


@formula
def reduce_above(storage, x, magic, lowest):
    """The reduced argument, and the power of two that belongs to it."""
    return reduce_within(storage, bounded_below(x, lowest), magic)


@formula
def bounded_below(x, lowest):
    """The larger of each lane; NaN stays."""
    return select(x < lowest, lowest, x)


@formula
def reduce_within(storage, x, magic):
    """`reduce_above` of x that are `lowest` or more."""
    shifted = fma(x, LOG2_E, magic)
    return reduce_argument(storage, x, shifted - magic), as_floats(as_bits(shifted) << by_type(storage, 23, 52))


@formula
def reduce_to_eighth(x, magic):
    """x - n ln 2 / 8 of float32 vectors, and 2**(n/8) in the units that are folded into `magic`.

    The last three bits of n choose from a table, in whose entries they have been taken off the bits where they stand once the
    others are the exponent (Tang, ACM Trans. Math. Softw. 15, 1989).
    """
    shifted = fma(x, _STEPS * LOG2_E, magic)
    high, low = _LN2_FMA_32
    n = shifted - magic
    r = fma(n, -low / _STEPS, fma(n, -high / _STEPS, x))
    bits = as_bits(shifted)
    return r, as_floats(_eighth_of(bits) + (bits << 20))


@formula
def exp2_whole(storage, n):
    """2**n for whole n (as floats) of the type, 0 below the normal range; n at most the largest exponent."""
    exponent = by_type(storage, _EXPONENT_32, _EXPONENT_64)
    n = select(n < -exponent, splat_like(n, -exponent), n)
    bits = as_bits(n + (by_type(storage, _ROUND_32, _ROUND_64) + exponent)) << by_type(storage, 23, 52)
    return as_floats(bits)


@formula
def exp(storage, x):
    """exp(x), at most 1 ulp off, subnormal results and specials included."""
    exponent = by_type(storage, _EXPONENT_32, _EXPONENT_64)
    limit = exponent * 1.2
    bounded = select(x > limit, splat_like(x, limit), x)
    bounded = select(bounded < -limit, splat_like(x, -limit), bounded)
    n = nearest_power(storage, bounded)
    p = exp_polynomial(storage, reduce_argument(storage, bounded, n))
    half = nearest_whole(storage, n * 0.5)
    return (p * exp2_whole(storage, half)) * exp2_whole(storage, n - half)


@formula
def nearest_whole(storage, x):
    rounding = by_type(storage, _ROUND_32, _ROUND_64)
    return (x + rounding) - rounding


@formula
def upper_half(a):
    """The first 26 bits of a float64 vector. (By a mask: Veltkamp's product would overflow.)"""
    return as_floats(as_bits(a) & -0x8000000)


@formula
def rest_of_product(a, b, c):
    """a*b + c of float64 vectors where c takes off nearly all of the product, to the last bits of that.

    Without a fused multiply-add by Dekker's exact product: what two roundings leave is as large as what is looked for.
    """
    if has_fma():
        return fma(a, b, c)
    product = a * b
    a_high, b_high = upper_half(a), upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    rest = ((a_high * b_high - product) + (a_high * b_low + a_low * b_high)) + a_low * b_low
    return (product + c) + rest


@formula
def reduce_in_two(x, n):
    """x - n ln 2 of float64 vectors as a sum of two.

    Without a fused multiply-add from three parts of ln 2: the product of n with the nearest float64 would be rounded, an error
    of up to |x| / 2 ulp in the exponential (8.5 ulp of a log_softmax).
    """
    if has_fma():
        near = fma(n, -_LN2_FMA_64[0], x)
        r = fma(n, -_LN2_FMA_64[1], near)
        return r, fma(n, -_LN2_FMA_64[1], near - r)
    near = x - n * _LN2_SPLIT_64[0]
    step = n * _LN2_SPLIT_64[1]
    r = near - step
    return r, ((near - r) - step) - n * _LN2_SPLIT_64[2]


@formula
def exp_in_two(x, x_low, magic, lowest):
    """As `exp_of_sum_above` of float64 vectors, as a sum of two: within 2**-56."""
    x_low = select(x < lowest, splat_like(x, 0.0), x_low)
    x = bounded_below(x, lowest)
    shifted = fma(x, LOG2_E, magic)
    r, r_low = reduce_in_two(x, shifted - magic)
    r_low = r_low + x_low
    # exp(r + r_low) = 1 + r + r**2 tail + r_low exp(r): the sum of the first two is exact with its rest
    first = 1.0 + r
    square = r * r * polynomial(r, _EXP_64[:-2])
    rest = (r - (first - 1.0)) + fma(r_low, first + square, square)
    high = first + rest
    power_of_two = as_floats(as_bits(shifted) << 52)
    return high * power_of_two, (rest - (high - first)) * power_of_two


@formula
def exp_exactly(x):
    """exp of float64 vectors up to 1 (0 below -700) as a sum of two, within 2**-66.

    The 16th part of the argument, and four times (1 + m)**2 - 1 = 2 m + m**2.
    """
    inside = x > -700.0
    x = select(inside, x, splat_like(x, 0.0))
    n = nearest_whole(FLOAT64, x * LOG2_E)
    r, r_low = reduce_in_two(x, n)
    r, r_low = r * 0.0625, r_low * 0.0625
    square = r * r
    half, tail = 0.5 * square, square * r * polynomial(r, _EXPM1_SIXTEENTH)
    m, m_low = two_sum(r, half)
    m, m_low = two_sum(m, m_low + (0.5 * rest_of_product(r, r, -square) + fma(r_low, r, tail + r_low)))
    for _ in range(4):
        square = m * m
        square_low = fma(m + m, m_low, rest_of_product(m, m, -square))
        m, rest = two_sum(m + m, square)
        m_low = rest + (m_low + m_low + square_low)
    e, e_low = two_sum(splat_like(x, 1.0), m)
    power_of_two = exp2_whole(FLOAT64, n)
    zero = splat_like(x, 0.0)
    return select(inside, e * power_of_two, zero), select(inside, (e_low + m_low) * power_of_two, zero)


@formula
def log_of_quotient(storage, s):
    """2 atanh(s) of float64 vectors, for results of the arithmetic type of `storage`: log(a / b) for s = (a - b) / (a + b), a / b
    from 0.7 to 2."""
    z = s * s
    return fma(s * z, polynomial(z, by_type(storage, _ATANH_FOR_32, _ATANH_64)), s + s)


@formula
def log1p_in_float64(storage, a):
    """log(1 + a) of float64 vectors from 0 to 2**1000, for results of the arithmetic type of `storage`."""
    total = 1.0 + a
    k, fraction = split_exponent(total)
    near = a <= 1.0
    difference, sum_of_both = select(near, a, fraction - 1.0), select(near, total + 1.0, fraction + 1.0)
    core = log_of_quotient(storage, difference / sum_of_both)
    return select(near, core, fma(k, LN2, core))


@formula
def split_exponent(a):
    """(k, a 2**-k) of positive normal float64, with a 2**-k in [sqrt(1/2), sqrt(2)); inf and NaN stay in the second."""
    bits = as_bits(a)
    # 0x95F61998... : the distance from sqrt(1/2) to 1 in the bits, so that k steps at sqrt(2)
    moved = bits + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    k = as_numbers((moved >> 52) & 0x7FF) - 1023.0
    return k, a * as_floats(as_bits(1023.0 - k + 6755399441055744.0) << 52)


@formula
def log(a):
    """log(a) of positive normal float64 vectors (0 gives -inf; NaN and inf stay)."""
    # the exponent of the largest numbers would have no inverse
    huge = a > 2.0**1000
    k, fraction = split_exponent(select(huge, a * 2.0**-54, a))
    k = select(huge, k + 54.0, k)
    difference, sum_of_both = fraction - 1.0, fraction + 1.0
    s = difference / sum_of_both
    z = s * s
    # what is rounded away of the quotient and of k ln 2, and by their sum (2.0 ulp without, 0.6 with)
    behind = fraction - (sum_of_both - 1.0)
    remainder = (rest_of_product(-s, sum_of_both, difference) - s * behind) / sum_of_both
    ln2 = splat_like(k, LN2)
    multiple = k * ln2
    multiple_low = fma(k, _LN2_FMA_64[1], rest_of_product(k, ln2, -multiple))
    high, rest = two_sum(multiple, s + s)
    result = high + (rest + fma(s * z, polynomial(z, _ATANH_64), remainder + remainder + multiple_low))
    result = select(a == 0.0, splat_like(k, -np.inf), result)
    return select(a < np.inf, result, a)


@formula
def exact_rest(a, b, c):
    """c - a*b of float32 vectors, where c is nearly that: what rounding has left."""
    if has_fma():
        return fma(-a, b, c)
    # (in float64 the product is exact)
    return narrow(FLOAT32, widen(c) - widen(a) * widen(b))


def log1p_to_2(a):
    """For formulas: log(1 + a) of float32 vectors from 0 to 2, at most 1 ulp off."""
    large = a >= 0.5
    # 1 + a = 2 (1 + f): a - 1 is exact
    f = select(large, (a - 1.0) * 0.5, a)
    whole, rest = _LN2_FMA_32
    near = fma(f * f, polynomial(f, _LOG1P_32), f)
    return select(large, (near + rest) + whole, near)


def log1p_of_sum(a, a_low):
    """For formulas: log(1 + a + a_low) of float32 vectors from 0 to 2**22, the second being what the first is rounded by."""
    # 1 + a = 2**k (1 + f), f from -1/4 to 1/2: a - (2**k - 1) is exact
    exponent = as_bits((1.0 + a) * (4.0 / 3.0)) >> 23
    power, inverse = as_floats(exponent << 23), as_floats((254 << 23) - (exponent << 23))
    k = as_floats(exponent + 0x4B000000) - (2.0**23 + _EXPONENT_32)
    f = (a - (power - 1.0)) * inverse
    whole, rest = _LN2_FMA_32
    near = f + fma(f * f, polynomial(f, _LOG1P_32), a_low * inverse)
    return fma(k, whole, fma(k, rest, near))


@formula
def exp_for_float32(r):
    """exp(r) of float64 vectors up to ln 2 / 2 in size, to 2**-34."""
    return polynomial(r, _EXP_FOR_32)


@formula
def two_sum(a, b):
    """a + b and its rounding error (Knuth, TAOCP vol. 2, 4.2.2)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def difference_in_two(a, b):
    """For formulas: a - b and its rounding error, which is 0 of an infinite difference."""
    difference, rest = two_sum(a, -b)
    return difference, select(rest == rest, rest, splat_like(next(iter(rest)), 0.0))


@formula
def accumulate(storage, high, low, term):
    """Add a vector to a sum held in float64: plainly for float32 terms, compensated for float64."""
    if not in_float64(storage):
        return high + widen(term), low
    high, error = two_sum(high, term)
    return high, low + error


@formula
def sum_step(high, low, distance):
    """One step of the reduction over lanes, in tree order, compensated."""
    high, error = two_sum(high, swap_halves(high, distance))
    return high, (low + swap_halves(low, distance)) + error


@formula
def sum_lanes(storage, high, low):
    """The sum over the lanes of a float64 pair of vectors, in every lane."""
    for distance in distances(storage):
        high, low = sum_step(high, low, distance)
    return high, low


def distances(storage):
    """Of the steps of a reduction over lanes, in tree order: half of the lanes, a quarter, ..., 1."""
    return [lanes(storage) >> step for step in range(1, lanes(storage).bit_length())]


@formula
def max_lanes(storage, a):
    """The maximum over the lanes, in every lane (NaN dropped)."""
    for distance in distances(storage):
        b = swap_halves(a, distance)
        a = select(a > b, a, b)
    return a


@formula
def plain_total_of_lanes(storage, a):
    """The sum over the lanes without compensation, for what is not finite."""
    total = 0.0
    for i in range(lanes(storage)):
        total = total + lane(a, i)
    return total


@formula
def exact_total_of_lanes(storage, high, low):
    """The sum over the lanes of a float64 pair of vectors, as a pair of numbers."""
    high, low = sum_lanes(storage, high, low)
    return lane(high, 0), lane(low, 0)


@formula
def total_of_lanes(storage, high, low):
    """The same for sums that are rounded to the arithmetic type in the end: plain where that is float32."""
    if not in_float64(storage):
        return lane(plain_sum(storage, high), 0), 0.0
    return exact_total_of_lanes(storage, high, low)


@formula
def plain_sum(storage, a):
    """The sum over the lanes, in every lane, in tree order."""
    for distance in distances(storage):
        a = a + swap_halves(a, distance)
    return a


@formula
def split_float(storage, a):
    """A float64 vector as a sum of two vectors of the arithmetic type of `storage`."""
    high = narrow(storage, a)
    return high, narrow(storage, a - widen(high))


@formula
def times_in_two(storage, a, a_low, b, b_low):
    """(a + a_low) (b + b_low) as a sum of two."""
    product = a * b
    rest = a * b_low + a_low * b
    if has_fma():
        return product, fma(a, b, -product) + rest
    # (of float32 all of this is exact)
    wide = widen(product)
    return product, narrow(storage, rest_of_product(widen(a), widen(b), -wide)) + rest


@formula
def softcapped(storage, x, softcap, scale, little, near):
    """softcap * tanh(x / softcap) as a sum of two, and its derivative; it will be multiplied by `scale`. In float32 it is `little`
    where x is `near` 0, see `softcapped_a_little`."""
    if in_float64(storage):
        tanh, tanh_low, slope = tanh_in_two(x, softcap)
        z, z_low = times_in_two(storage, tanh, tanh_low, splat_like(x, softcap), splat_like(x, 0.0))
        return z, z_low, slope
    u = x * (1.0 / softcap)
    small = absolute(u) <= select(float32_serves(softcap, scale), SMALL_TANH, -1.0)
    z, z_low, slope = softcapped_near_zero(x, u, softcap)

    def with_far():
        tanh, wide_slope = tanh_and_slope(widen(x) * (1.0 / softcap))
        far, far_low = split_float(storage, tanh * softcap)
        # lane by lane, so that no number hangs on its neighbours
        return select(small, z, far), select(small, z_low, far_low), select(small, slope, narrow(storage, wide_slope))

    others = choose(any_lane_of(~small), lambda: (z, z_low, slope), with_far)
    return tuple(select(near, *both) for both in zip(little, others, strict=True))


@formula
def float32_serves(softcap, scale):
    """Whether the change of variable is worked out in float32: all in float64 without fma, where nothing is carried along, where
    squares might leave float32's range, and where an error of 2**-29 of a logit were one of several ulp of its exponential."""
    return has_fma() & (softcap > 2.0**-40) & (softcap * greatest(scale, 1.0) <= 128.0)


@formula
def softcapped_a_little(x, softcap, scale):
    """`softcapped` of float32 where the change w = x**3 P(x**2) is small, and in which lanes it is: w is within 5 * 2**-24 of itself.
    (`softcapped_near_zero` has twice as many steps.)"""
    inverse = 1.0 / (softcap * softcap)
    coefficients, power = [], inverse
    for coefficient in reversed(_TANH_32):
        coefficients.insert(0, coefficient * power)
        power = power * inverse
    square = x * x
    w = x * (square * polynomial(square, coefficients))
    z = x + w
    tanh = z * (1.0 / softcap)
    limit = least(LITTLE_CAPPED / greatest(scale, 1.0), LITTLE_TANH * softcap)
    near = absolute(w) <= select(float32_serves(softcap, scale), limit, -1.0)
    return z, (x - z) + w, fma(-tanh, tanh, 1.0), near


@formula
def softcapped_near_zero(x, u, softcap):
    """`softcapped` of float32 for |u| = |x / softcap| <= SMALL_TANH, and FMA: x + x (c u**2 + u**4 R(u**2)), minimax.

    The first term's products are carried in two parts, the second is 0.8 % of x: z is within 2**-29 (of a logit of 50 this is
    1 ulp in its exponential). The same in float64 vectors and for all x takes 2.5 times the time.
    """
    square = x * x
    square_low = fma(x, x, -square)
    c = _TANH_32[-1] / (softcap * softcap)
    c_high = to_float32(c)
    term = square * c_high
    term_low = fma(square, c_high, -term) + fma(square_low, c_high, square * (c - c_high))
    power = u * u
    tail = power * power * polynomial(power, _TANH_32[:-1])
    v = term + tail
    v_low = (term - v) + tail + term_low
    w = x * v
    w_low = fma(x, v, -w) + x * v_low
    z = x + w
    tanh = z * (1.0 / softcap)
    return z, ((x - z) + w) + w_low, fma(-tanh, tanh, 1.0)


@formula
def tanh_and_slope(x):
    """tanh(x) and 1 - tanh(x)**2 of a float64 vector, both relatively exact: with E = expm1(2|x|), E/(E+2), 4(E+1)/(E+2)**2."""
    twice = absolute(x) * 2.0
    twice = select(twice > 700.0, splat_like(x, 700.0), twice)
    n = nearest_power(FLOAT64, twice)
    r = reduce_argument(FLOAT64, twice, n)
    power = exp2_whole(FLOAT64, n)
    excess = fma(power, fma(r * r, polynomial(r, _EXP_64[:-2]), r), power - 1.0)
    inverse = 1.0 / (excess + 2.0)
    magnitude = excess * inverse
    slope = (4.0 * (excess + 1.0)) * inverse * inverse
    return select(x < 0.0, -magnitude, magnitude), slope


@formula
def tanh_in_two(x, divisor):
    """tanh(x / divisor) of float64 vectors as a sum of two, within 2**-58, and its derivative times divisor.

    The same formula with every step's rounding error carried along (Dekker, Numer. Math. 18, 1971): what comes out is a
    logit, and an error of 1 ulp in a logit of 50 is one of 64 ulp in its exponential.
    """
    divisor = splat_like(x, divisor)
    inverse = 1.0 / divisor
    inverse_low = rest_of_product(-inverse, divisor, splat_like(x, 1.0)) * inverse
    size = absolute(x)
    size = select(size > 380.0 * divisor, 380.0 * divisor, size)
    u = size * inverse
    u_low = rest_of_product(size, inverse, -u) + size * inverse_low
    n = nearest_power(FLOAT64, u + u)
    r, r_low = reduce_in_two(u + u, n)
    r_low = r_low + (u_low + u_low)
    # powers above 2**1000 are the slope's alone, down to its underflow
    bounded = select(n > 1000.0, splat_like(n, 1000.0), n)
    power = exp2_whole(FLOAT64, bounded)
    # expm1(r) = r + r**2/2 + r**3 tail
    square = r * r
    sum_of_two, rest = two_sum(r, 0.5 * square)
    grown, more = two_sum(sum_of_two, square * r * polynomial(r, _EXPM1_64))
    grown_low = rest + more + 0.5 * rest_of_product(r, r, -square) + r_low * (1.0 + grown)
    excess, excess_low = two_sum(power - 1.0, power * grown)
    excess_low = excess_low + power * grown_low
    below, below_low = two_sum(excess, splat_like(excess, 2.0))
    below_low = below_low + excess_low
    inverse = 1.0 / below
    tanh = excess * inverse
    tanh_low = (rest_of_product(-tanh, below, excess) + (excess_low - tanh * below_low)) * inverse
    inverse = fma(-below_low * inverse, inverse, inverse)
    # (1 - tanh) (1 + tanh): two roundings, where 4 (E + 1) / (E + 2)**2 has six
    other = 1.0 + tanh
    other_low = ((1.0 - other) + tanh) + tanh_low
    twice = inverse + inverse
    slope = fma(twice, other, twice * other_low) * exp2_whole(FLOAT64, bounded - n)
    negative = x < 0.0
    return select(negative, -tanh, tanh), select(negative, -tanh_low, tanh_low), slope
