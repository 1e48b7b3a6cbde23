"""From what is known of each part of a row, or of rows of one part, to what is known of the row."""

import functools

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import FAR_32, FAR_64, settled
from fastswl.kernels.lines import first_class_of
from fastswl.kernels.plan import INDEX_TARGETS, LOG_SOFTMAX, LOSS, spread_evenly, spread_wanted
from fastswl.kernels.record import (
    PART_APART,
    PART_APART_EXP,
    PART_APART_LOW,
    PART_BYTES,
    PART_CLASS,
    PART_DISTANCE,
    PART_MASS,
    PART_POWER,
    PART_REFERENCE_LOW,
    PART_REST,
    PART_REST_LOW,
    PART_TOP,
    PART_VECTORS,
    RECORD_STEP,
)
from fastswl.kernels.rows import (
    AGAIN,
    APART,
    APART_LOW,
    CLASS,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REPEATED,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SHIFT,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    TOP,
    exact_exponential,
    smoothing_unit,
)
from fastswl.simd import (
    Running,
    SideBySide,
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    choose,
    formula,
    greatest,
    itemsize,
    lane,
    lanes,
    least,
    load_double,
    load_one,
    load_wide,
    narrow,
    power_of_two,
    select,
    splat_like,
    steps,
    store_double,
    store_wide,
    to_float64,
    to_int64,
    when,
    wide_zero,
)
from fastswl.vectormath import exp_above, exp_reference, two_sum

#: share of a sum that the others must have for what is left of it without the largest to have the digits of a float32: of float64
#: lanes that up to 128 pairs are added to, 2**-30 then, at worst
LEAST_OF_SUM = 2.0**-16


@formula
def two_to(exponent):
    """2**exponent of a whole float64 in [-1022, 0], 0 below."""
    return select(exponent < -1022.0, 0.0, power_of_two(exponent))


class Total:
    """A sum of two in a loop of a formula, compensated."""

    def __init__(self):
        self.high, self.low = Running(0.0), Running(0.0)

    def add(self, number, rest=0.0):
        self.high.value, error = two_sum(self.high.value, number)
        self.low.value = self.low.value + (error + rest)


@formula
def merge_parts(storage, plan, table, row, parts, n_parts):
    """Sum up the parts of a row; whether it has to be done again: with its maximum subtracted first (SHIFT says by what), or with
    the largest left out of the sum."""

    def known(i, what):
        return load_double(parts + PART_BYTES * i + RECORD_STEP * what)

    top, leader, poisoned = Running(-np.inf), Running(0), Running(False)
    for i in steps(0, n_parts):
        part_top, rest = known(i, PART_TOP), known(i, PART_REST)
        poisoned.value = poisoned.value | (part_top != part_top) | ((rest != rest) & (part_top < np.inf))
        larger = part_top > top.value
        top.value, leader.value = select(larger, part_top, top.value), select(larger, i, leader.value)
    top, leader, poisoned = top.value, leader.value, poisoned.value
    shift = load_double(table + SHIFT + 8 * row)
    first_time = load_double(table + REPEATED + 8 * row) == 0.0
    limit = by_type(storage, FAR_32, FAR_64)
    finite = (top < np.inf) & (top > -np.inf)

    def again(shift):
        store_double(table + SHIFT + 8 * row, shift)
        store_double(table + REPEATED + 8 * row, 1.0)
        return True

    def merge():
        m = select(finite, top, 0.0)
        power, m_low = known(leader, PART_POWER), known(leader, PART_REFERENCE_LOW)
        total, mass, distance = Total(), Total(), Total()
        chosen, apart, apart_low = Running(-1), Running(-np.inf), Running(0.0)
        part_classes = PART_VECTORS * lanes(storage)
        for i in steps(0, n_parts):
            factor = two_to(known(i, PART_POWER) - power)
            total.add(known(i, PART_REST) * factor, known(i, PART_REST_LOW) * factor)
            place = to_int64(known(i, PART_CLASS))

            def of_row(i=i, place=place):
                chosen.value = place + part_classes * i
                apart.value, apart_low.value = known(i, PART_APART), known(i, PART_APART_LOW)

            def of_part(i=i, factor=factor):
                total.add(known(i, PART_APART_EXP) * factor)

            def of_any(i=i, own=of_row, other=of_part):
                choose((plan.kind == INDEX_TARGETS) | (i == leader), other, own)

            when(place >= 0, of_any)

            def even_mass(i=i):
                n = least(part_classes, plan.n_classes - part_classes * i)
                own = smoothing_unit(plan) * weight_of_part(plan, i, n)
                store_double(parts + PART_BYTES * i + RECORD_STEP * PART_MASS, own)

            when(spread_evenly(plan), even_mass)

            def spread(i=i):
                own = known(i, PART_MASS)
                limited = least(greatest(known(i, PART_TOP), -limit), limit)
                moved = own * ((m - limited) + (m_low - known(i, PART_REFERENCE_LOW)))
                mass.add(own)
                distance.add(known(i, PART_DISTANCE) + select(own != 0.0, moved, 0.0))

            when(spread_wanted(plan), spread)
        away = settled(distance.high.value, distance.low.value)
        for line, value in (
            (TOP, select(poisoned, np.nan, top + shift)),
            (REFERENCE, m),
            (REFERENCE_LOW, m_low),
            (POWER, power),
            (REST, total.high.value),
            (REST_LOW, total.low.value),
            (APART, apart.value),
            (APART_LOW, apart_low.value),
            (SPREAD_MASS, mass.high.value + mass.low.value),
            (SPREAD_DISTANCE, away),
        ):
            store_double(table + line + 8 * row, value)
        put = functools.partial(store_double, table + CLASS + 8 * row, chosen.value)
        when(plan.kind != INDEX_TARGETS, put)

        def is_most():
            known = (splat_like(wide_zero(storage), x) for x in (m, power, total.high.value))
            return any_lane(largest_is_most(storage, *known))

        asked = (plan.operation == LOG_SOFTMAX) & first_time & finite
        return choose(choose(asked, lambda: False, is_most), lambda: False, lambda: again(0.0))

    far = first_time & finite & ((top >= limit) | (top <= -limit))
    return choose(far, merge, lambda: again(top))


@formula
def stays_as_it_is(table, row, part):
    """Whether a part needs no second time though its row does: of which nothing but the largest is left out, which is in another.
    (log_softmax of 32,768 classes, all of whose rows are: 10.1 to 5.8 instructions a number.)"""
    repeated = load_double(table + REPEATED + 8 * row) != 0.0
    only_largest = repeated & (load_double(table + SHIFT + 8 * row) == 0.0)
    return only_largest & (load_double(part + RECORD_STEP * PART_TOP) < load_double(table + TOP + 8 * row))


@formula
def largest_is_most(storage, m, power, total):
    """Whether half of a sum or more is the largest logit's exponential: log(S / e_m) = log1p(d / e_m) of log_softmax is small then,
    and d, the sum of the others, has to be known to as many digits. The sums are done again, without the largest."""
    return total <= 2.0 * exact_exponential(storage, m, power)


@routine
def take_largest_out(storage, plan, table, logits, logits_step, count):
    """Of the rows that AGAIN marks, whose classes lie side by side, the largest is taken out of the sum that is there, where that has
    the digits (float32, whose sums are float64); whether any row is left, whose sum has to be done again. (log_softmax of 1,000
    classes, a sixth of whose rows are such: 5.5 to 4.8 instructions a number; 9.0 to 5.1 where all are.)"""
    left = False
    for row in range(count):
        if load_double(table + AGAIN + 8 * row) == 0.0:
            continue
        place = logits + logits_step * row
        chosen = first_class_of(storage, place, plan.n_classes, load_double(table + TOP + 8 * row))
        if largest_taken_out(storage, plan, table, row, place, chosen):
            store_double(table + AGAIN + 8 * row, 0.0)
        else:
            left = True
    return left


@formula
def largest_taken_out(given, plan, table, row, logits, chosen):
    """`take_largest_out` of one row, whose largest is the class `chosen`: d = S - (e_m + e_p) + e_p, where p is the class that the
    largest was added to in float32, the same lane of the other vector of its pair."""
    storage = arithmetic_of(given)
    m, power, total = (load_double(table + line + 8 * row) for line in (REFERENCE, POWER, REST))
    like = narrow(storage, wide_zero(storage))
    partner = chosen ^ lanes(storage)
    x = choose(
        partner < plan.n_classes,
        lambda: -np.inf,
        lambda: to_float64(load_one(given, logits + itemsize(given) * partner)),
    )
    magic, lowest = exp_reference(storage, splat_like(like, power))
    e, e_partner = exp_above(storage, SideBySide(splat_like(like, m), splat_like(like, x)), magic, lowest)
    others = (total - to_float64(lane(e + e_partner, 0))) + to_float64(lane(e_partner, 0))
    serves = (others >= LEAST_OF_SUM * total) & (load_double(table + SHIFT + 8 * row) == 0.0)
    for line, value in ((CLASS, to_float64(chosen)), (APART, m), (REST, select(serves, others, total))):
        store_double(table + line + 8 * row, value)
    return serves


@formula
def settle_rows(storage, plan, table):
    """`merge_parts` of rows of one part, all rows of a tile at once; whether any may have to be done again, which AGAIN says."""
    top, rest = load_wide(storage, table + TOP), load_wide(storage, table + REST)
    finite = absolute(top) < np.inf
    zero = splat_like(top, 0.0)
    m = select(finite, top, zero)
    store_wide(storage, table + REFERENCE, m)

    def even_mass():
        store_wide(storage, table + SPREAD_MASS, splat_like(top, smoothing_unit(plan) * plan.weight_total))

    when(spread_evenly(plan), even_mass)
    shift = load_wide(storage, table + SHIFT)
    poisoned = (rest != rest) & (top < np.inf)
    store_wide(storage, table + TOP, select(poisoned, splat_like(top, np.nan), top + shift))
    again = absolute(m) >= by_type(storage, FAR_32, FAR_64)

    def or_largest():
        most = largest_is_most(storage, m, load_wide(storage, table + POWER), rest)
        return again | (most & finite)

    again = choose(plan.operation == LOG_SOFTMAX, lambda: again, or_largest)
    again = again & (load_wide(storage, table + REPEATED) == 0.0)
    store_wide(storage, table + AGAIN, select(again, zero + 1.0, zero))
    return any_lane(again)


@formula
def mark_rows(storage, plan, table, count):
    """Of the rows that AGAIN says have to be done again, of those that are there: by what they are shifted; whether there is any."""
    found = Running(False)
    limit = by_type(storage, FAR_32, FAR_64)
    for row in steps(0, count):
        m = load_double(table + REFERENCE + 8 * row)
        # an ignored row is not read
        ignored = (plan.operation == LOSS) & (load_double(table + ROW_WEIGHT + 8 * row) == 0.0)
        again = (load_double(table + AGAIN + 8 * row) != 0.0) & ~ignored
        store_double(table + AGAIN + 8 * row, select(again, 1.0, 0.0))

        def repeat(row=row, m=m):
            store_double(table + REPEATED + 8 * row, 1.0)
            store_double(table + SHIFT + 8 * row, select((m >= limit) | (m <= -limit), m, 0.0))

        when(again, repeat)
        found.value = found.value | again
    return found.value


@formula
def weight_of_part(plan, number, n):
    """The class weights of a part of `n` classes added up. (One by one in the kernel they took four times what all else did.)"""
    return choose(plan.weight != 0, lambda: to_float64(n), lambda: load_double(plan.part_weights + 8 * number))
