"""The rows of a tile: what is known of each before its logits are read, and the formula that turns its sums into results.

What is known of a tile's rows lies in a small table in the scratch memory: one line a quantity, one column (lane) a row.
"""

from typing import Any, NamedTuple

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.near_zero import NEAR_ZERO, NEAR_ZERO_OF_ALL, logsumexp_near_zero
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOGSUMEXP,
    LOSS,
    NO_TARGETS,
    SOFTMAX,
    changed,
    leaves_one_out,
    spread_wanted,
    targets_of_row,
)
from fastswl.kernels.targets import index_bytes, load_index, load_indices, vectors_serve
from fastswl.simd import (
    FLOAT64,
    SideBySide,
    any_lane,
    arithmetic_of,
    choose,
    fma,
    formula,
    in_float64,
    lanes,
    load_double,
    load_doubles_at,
    load_int64,
    load_wide,
    narrow,
    quotient,
    result_of,
    select,
    splat_like,
    steps,
    store,
    store_double,
    store_int64,
    store_one,
    store_wide,
    when,
    wide_zero,
    widen,
)
from fastswl.vectormath import (
    LN2,
    exact_total_of_lanes,
    exp_above,
    exp_above_for_float32,
    exp_in_two,
    exp_reference,
    exp_unit,
    log_of_quotient,
    reduce_argument,
    rest_of_product,
    split_exponent,
    two_sum,
)

LINE = 128  # bytes: 16 lanes of 8 bytes
#: where each line stands; the first fourteen are known of a part of a row, too, see `record.py`
(
    TOP,  # the largest logit
    POWER,  # rint(m log2 e): N
    UNITS,  # the power of two that the exponentials in memory are relative to: N, or what was taken for it
    REST,  # sum of the other e, in two parts
    REST_LOW,
    APART,  # the logit that is left out of the sum: the target's, or the largest; -inf for none
    APART_LOW,  # what its float64 leaves of it after a change of variable
    APART_EXP,  # e of the class left out
    CLASS,  # index of the target, or of the class that is left out of the sum; -1 for none
    REFERENCE_LOW,  # what m leaves of the largest logit after a change of variable, where that is the class left out
    SPREAD_MASS,  # sum of q over all classes but for that: (eps/C) sum w, or sum of all q
    SPREAD_DISTANCE,  # sum of q_c (m - x_c) over the spread part
    MASS_AT,  # whole number: where q lies of the classes, or what is like it for all of them
    MASS_MOVES,  # whole number: 1, or 0 if q is the same vector for all
    APART_EXP_LOW,  # what APART_EXP leaves of that, where arithmetic is in float64
    TARGET_MASS,  # q at the target without its share of smoothing: (1 - eps) w_y
    SPREAD_AT_TARGET,  # (eps/C) w_y
    ROW_WEIGHT,  # of the loss: sample_weight, 0 for a row that is ignored
    ROW_FACTOR,  # of the gradient: sample_weight * upstream / divisor
    REFERENCE,  # the largest less the shift, 0 where it is infinite: m
    LOSS_VALUE,
    SCALE,  # alpha = (Q + 2 z lse) g / S, in two parts of the arithmetic type
    SCALE_LOW,
    SPREAD_SCALE,  # beta: what a unit of q takes off the gradient
    TARGET_GRADIENT,
    LOG_SUM,  # lse - m
    INVERSE,  # 1 / S, in two parts
    INVERSE_LOW,
    SUM,  # of the losses of the block so far, in two parts
    SUM_LOW,
    SHIFT,  # what was subtracted from the logits
    ONES,  # a vector of the arithmetic type
    SLOPE,  # row and split walk: of the change of variable at the class left out, with `slopes_on_the_way`
    PLACED,  # panel: what stands in place of the target's exponential, see `place_targets`
    FILLED,  # panel: whether the tile's mass holds the class weights
    PLACES,  # panel: where in the tile the class lies that is left out of each row, int32, bytes from the table
    TOP_REST,  # what the exponential of the largest logit has lost in float32, see `rest_of_largest`
    AGAIN,  # row and split walk: whether the row's sums have to be done (again)
    REPEATED,  # row and split walk: whether that is the second time
    GUESS,  # row walk: what the next row's N is taken for, see `guess_part`; and how often that was wrong in this block
) = range(0, 40 * LINE, LINE)
TABLE_BYTES = 40 * LINE
#: in the same line as PLACES: what is put there, in the arithmetic type; the place itself of a row that leaves none out
LEFT_OUT = PLACES + LINE // 2
#: in the same line as FILLED: whole number, whether all rows of the last tile counted alike, see `describe_tile`
ALIKE = FILLED + 8
#: what N is taken for at first: good for rows whose largest logit is between -11 and 33
FIRST_GUESS = 48.0


@formula
def start_block(storage, table):
    """Before the first tile of a block, or of several."""
    zero = wide_zero(storage)
    for offset in steps(0, TABLE_BYTES, LINE):
        store_wide(storage, table + offset, zero)
    store_wide(storage, table + CLASS, splat_like(zero, -1.0))
    store_wide(storage, table + APART, splat_like(zero, -np.inf))
    start_losses(storage, table)
    store_double(table + GUESS, FIRST_GUESS)


@formula
def start_losses(storage, table):
    """What has to be known of losses alone."""
    zero = wide_zero(storage)
    store_wide(storage, table + SUM, zero)
    store_wide(storage, table + SUM_LOW, zero)
    store(storage, table + ONES, narrow(storage, splat_like(zero, 1.0)))


@formula
def smoothing_unit(plan):
    """The smoothing of each class, where all are the same."""
    return plan.label_smoothing / plan.n_classes


@formula
def weigh_row(plan, table, row, chosen):
    """The mass of a row's own class: its own, and its share of a smoothing that is even."""
    class_weight = choose(
        (chosen >= 0) & (plan.weight != 0),
        lambda: select(chosen >= 0, 1.0, 0.0),
        lambda: load_double(plan.weight + 8 * chosen),
    )
    store_double(table + TARGET_MASS + 8 * row, (1.0 - plan.label_smoothing) * class_weight)
    store_double(table + SPREAD_AT_TARGET + 8 * row, smoothing_unit(plan) * class_weight)


@formula
def describe_classes(storage, plan, table, place):
    """The indices of a whole tile of rows, which lie side by side; in which lanes they are those of ignored rows."""
    index = load_indices(storage, plan.index_code, place)
    ignored = index == plan.ignore_index
    store_wide(storage, table + CLASS, select(ignored, splat_like(index, -1.0), index))
    return ignored


@formula
def describe_plain_rows(storage, plan, table, outer, inner):
    """A whole tile of rows whose indices and weights lie side by side; 1 if any is ignored, else 0.

    (10 classes, loss and gradient with weights of rows: 1.00 to 0.89 ns an element.)
    """
    ignored = describe_classes(storage, plan, table, targets_of_row(plan, outer, inner))
    zero = wide_zero(storage)
    one = splat_like(zero, 1.0)

    def own_weights():
        place = plan.sample_weight + outer * plan.sample_weight_outer + inner * plan.sample_weight_inner
        return load_wide(storage, place)

    def without_weight():
        # as if it were ignored
        index = load_wide(storage, table + CLASS)
        store_wide(storage, table + CLASS, select(weight == 0.0, -one, index))
        return ignored | (weight == 0.0)

    weight = choose(plan.sample_weight != 0, lambda: one, own_weights)
    ignored = choose(plan.sample_weight != 0, lambda: ignored, without_weight)

    def class_weights():
        index = load_wide(storage, table + CLASS)
        return load_doubles_at(plan.weight, select(ignored, zero, index))

    mass = select(ignored, zero, choose(plan.weight != 0, lambda: one, class_weights))
    store_wide(storage, table + TARGET_MASS, mass * (1.0 - plan.label_smoothing))
    store_wide(storage, table + SPREAD_AT_TARGET, mass * smoothing_unit(plan))
    store_wide(storage, table + ROW_WEIGHT, select(ignored, zero, weight))
    store_wide(storage, table + ROW_FACTOR, select(ignored, zero, weight * plan.row_factor))
    any_ignored = any_lane(ignored)
    store_int64(table + ALIKE, select(any_ignored | (plan.sample_weight != 0) | (plan.weight != 0), 0, 1))
    return select(any_ignored, 1, 0)


@formula
def describe_no_rows(storage, table):
    """A tile of no rows."""
    zero = wide_zero(storage)
    store_int64(table + ALIKE, 0)
    store_wide(storage, table + CLASS, splat_like(zero, -1.0))
    for line in (TARGET_MASS, SPREAD_AT_TARGET, ROW_WEIGHT, ROW_FACTOR):
        store_wide(storage, table + line, zero)


@formula
def describe_row(plan, table, outer, inner, row):
    """One row of a tile; 1 if it counts, else 0."""

    def own_weight():
        place = plan.sample_weight + outer * plan.sample_weight_outer + (inner + row) * plan.sample_weight_inner
        return load_double(place)

    def own_index():
        place = targets_of_row(plan, outer, inner + row)
        index = load_index(plan.index_code, place)
        return index, index == plan.ignore_index

    def own_upstream():
        place = plan.upstream + outer * plan.upstream_outer + (inner + row) * plan.upstream_inner
        return load_double(place)

    weight = choose(plan.sample_weight != 0, lambda: 1.0, own_weight)
    chosen, ignored = choose(plan.kind == INDEX_TARGETS, lambda: (-1, False), own_index)
    weight = select(ignored, 0.0, weight)
    counts = weight != 0.0
    upstream = choose(counts & (plan.upstream != 0), lambda: 1.0, own_upstream)
    chosen = select(counts & ~ignored, chosen, -1)
    store_double(table + CLASS + 8 * row, chosen)
    weigh_row(plan, table, row, chosen)
    store_double(table + ROW_WEIGHT + 8 * row, weight)
    store_double(table + ROW_FACTOR + 8 * row, select(counts, weight * plan.row_factor * upstream, 0.0))
    return select(counts, 1, 0)


@formula
def rows_are_plain(storage, plan, count):
    """Whether a whole tile of rows has nothing but indices and perhaps weights, which lie side by side, and class weights."""
    return (
        (plan.kind == INDEX_TARGETS)
        & ((plan.sample_weight == 0) | (plan.sample_weight_inner == 8))
        & (plan.upstream == 0)
        & (count == lanes(storage))
        & (plan.targets_inner == index_bytes(plan.index_code))
        & vectors_serve(plan)
    )


@routine
def describe_rows(storage, plan, table, outer, inner, count):
    """Fill in what is known of `count` rows before their logits are read; fewer than `count` if any is ignored."""
    if plan.kind == NO_TARGETS:
        return count
    if rows_are_plain(storage, plan, count):
        return count - describe_plain_rows(storage, plan, table, outer, inner)
    describe_no_rows(storage, table)
    active = 0
    for row in range(count):
        active += describe_row(plan, table, outer, inner, row)
    return active


@routine
def describe_tile(storage, plan, table, outer, inner, count):
    """`describe_rows` of a table that `start_block` has begun: of rows that count like those of the tile before, without weights and
    none ignored, only the classes are new (loss of 64 classes: 4 %)."""
    if plan.kind == INDEX_TARGETS and count == lanes(storage) and load_int64(table + ALIKE) != 0:
        place = targets_of_row(plan, outer, inner)
        if not any_lane(describe_classes(storage, plan, table, place)):
            return count
    return describe_rows(storage, plan, table, outer, inner, count)


@formula
def times_inverse(storage, numerator, inverse, inverse_low):
    """numerator * (inverse + inverse_low) of float64 vectors, as two parts of the arithmetic type of `storage`."""
    product = numerator * inverse
    first = widen(narrow(storage, product))
    rest = product - first
    if in_float64(storage):
        rest = rest_of_product(numerator, inverse, -product) + numerator * inverse_low
    return first, rest


@formula
def invert_sums(storage, table, total, total_low):
    """1 / S of each row in two float64 parts: into the table in two parts of the arithmetic type, and as they are."""
    inverse = 1.0 / total
    first = widen(narrow(storage, inverse))
    rest = inverse - first
    inverse_low = rest
    if in_float64(storage):
        inverse_low = (rest_of_product(-inverse, total, splat_like(total, 1.0)) - inverse * total_low) * inverse
        rest = inverse_low
    store_wide(storage, table + INVERSE, first)
    store_wide(storage, table + INVERSE_LOW, rest)
    return inverse, inverse_low


class RowSums(NamedTuple):
    """What the sums of a tile's rows say, a lane a row, float64: m the reference, e the exponential left out, d the sum of the
    others, S = d + e, all in units of `exp_unit` and of 2**N."""

    total: Any  # S
    total_low: Any
    apart: Any  # the logit left out
    e: Any
    d: Any
    log_ratio: Any  # log(S / e)
    log_sum: Any  # lse - m
    lse: Any
    nothing: Any  # whether S is 0


@formula
def sums_of_others(storage, table):
    """d in two parts; NaN of a row with +inf, which has no finite answer."""
    top = load_wide(storage, table + TOP)
    d, d_low = load_wide(storage, table + REST), load_wide(storage, table + REST_LOW)
    if in_float64(storage):
        # compensated sums: the rest can be more than one unit of the first part
        d, d_low = two_sum(d, d_low)
    else:
        d = d + load_wide(storage, table + TOP_REST)
    return select(top == np.inf, splat_like(d, np.nan), d), d_low


@formula
def exact_exponential(storage, x, power):
    """exp(x) 2**-N to the digits of float64 that a float32 result can show, in units of float32's exponentials."""
    return exp_above_for_float32(x, *exp_reference(FLOAT64, power)) * (exp_unit(storage) / exp_unit(FLOAT64))


@formula
def rest_of_largest(storage, table, exact):
    """What the exponential of the largest logit has lost in float32, where it is in the sum: of that it may be most. (Softmax of 5 to
    100 classes, millions of rows: 3.3 to 2.7 ulp.)"""
    m, power = load_wide(storage, table + REFERENCE), load_wide(storage, table + POWER)
    rounded = exp_above(storage, narrow(storage, m), *exp_reference(storage, narrow(storage, power)))
    is_summed = (load_wide(storage, table + APART) != m) & (load_wide(storage, table + TOP) != -np.inf)
    return select(is_summed, exact - widen(rounded), wide_zero(storage))


@routine
def raise_exactly(storage, plan, table):
    """Of each row the exponentials that count most, to the digits that they need: e of the logit that is left out of the sum, and
    what that of the largest has lost.

    A step of its own, which hangs on nothing but what is known before a row's other exponentials: together with `finish_rows` they
    are a chain of operations too long for a processor to begin the next tile's meanwhile (2 classes, loss and gradient: 2.43 to
    2.22 ns an element).
    """
    exponentials_in_float64(storage, plan, table)


@formula
def exponentials_in_float64(storage, plan, table):
    apart, power = load_wide(storage, table + APART), load_wide(storage, table + POWER)
    m = load_wide(storage, table + REFERENCE)

    def left_out():
        apart_low = load_wide(storage, table + APART_LOW)
        e, e_low = exp_in_two(apart, apart_low, *exp_reference(FLOAT64, power))
        store_wide(storage, table + APART_EXP, e)
        store_wide(storage, table + APART_EXP_LOW, e_low)

    def of_both():
        e, of_largest = exact_exponential(storage, SideBySide(apart, m), power)
        store_wide(storage, table + APART_EXP, e)
        return of_largest

    if in_float64(storage):
        when(leaves_one_out(plan), left_out)
        return
    exact = choose(leaves_one_out(plan), lambda: exact_exponential(storage, m, power), of_both)
    rest = rest_of_largest(storage, table, exact)
    # (logits in two parts have exponentials of their own)
    store_wide(storage, table + TOP_REST, choose(changed(plan), lambda: rest, lambda: wide_zero(storage)))


@formula
def logarithms(storage, plan, table):
    """log(S / e) and log S of each row.

    log(S / e) = log1p(d / e) keeps its relative accuracy however small, where d <= e.
    """
    d, d_low = sums_of_others(storage, table)
    top = load_wide(storage, table + TOP)
    m = load_wide(storage, table + REFERENCE)
    power = load_wide(storage, table + POWER)
    apart, apart_low = load_wide(storage, table + APART), load_wide(storage, table + APART_LOW)
    e = load_wide(storage, table + APART_EXP)
    if in_float64(storage):
        e_low = load_wide(storage, table + APART_EXP_LOW)
        total, total_low = two_sum(d, e)
        total_low = total_low + (d_low + e_low)
    else:
        e_low = total_low = wide_zero(storage)
        total = d + e

    near = d <= e
    k, fraction = split_exponent(total * (1.0 / exp_unit(storage)))
    difference = select(near, d, fraction - 1.0)
    sum_of_both = select(near, total + e, fraction + 1.0)
    quotient = difference / sum_of_both
    core = log_of_quotient(storage, quotient)
    if in_float64(storage):
        # what division and rounding left behind (6.9 ulp without, 2.9 with)
        behind = two_sum(total, e)[1] + (total_low + e_low)
        remainder = rest_of_product(-quotient, sum_of_both, difference) + (d_low - quotient * behind)
        core = core + select(near, 2.0 * remainder / sum_of_both, splat_like(core, 0.0))
    m_low = load_wide(storage, table + REFERENCE_LOW)
    far = fma(k, LN2, core - (reduce_argument(FLOAT64, m, power) + m_low))
    below_top = (m - apart) + (m_low - apart_low)
    log_sum = select(near, core - below_top, far)
    # of a row that was not shifted, past the logit that is left out: nothing cancels (6.6 ulp with it)
    whole = fma(k + power, LN2, core)
    lse = select(near | (top != m), top + (m_low + log_sum), whole)
    return RowSums(
        total, total_low, apart, e, d, select(near, core, far + below_top), log_sum, lse, total == 0.0
    )  # fmt: skip


@formula
def store_logarithms(storage, plan, table, sums):
    """Of softmax's relatives: lse and lse - m."""
    top = load_wide(storage, table + TOP)
    zero = wide_zero(storage)
    # inf - inf is the NaN at +inf, finite - inf the -inf beside it; a row of nothing but -inf has an lse of -inf
    log_sum = select(top == np.inf, top, sums.log_sum)
    of_nothing = select(plan.operation == LOGSUMEXP, zero, splat_like(zero, np.nan))
    log_sum = select(sums.nothing, of_nothing, log_sum)
    store_wide(storage, table + LOG_SUM, log_sum)
    unbound = sums.nothing | (top == np.inf)
    store_wide(storage, table + LOSS_VALUE, select(unbound, top + log_sum, sums.lse))


class RowMass(NamedTuple):
    """The target mass of each row: all of it in two parts, what is not the target's own, that of smoothing at the target."""

    total: Any
    total_low: Any
    elsewhere: Any
    at_target: Any


@formula
def store_losses(storage, plan, table, sums):
    """The losses; the mass that the gradient is made of."""
    zero = wide_zero(storage)
    target_mass = load_wide(storage, table + TARGET_MASS)
    row_weight = load_wide(storage, table + ROW_WEIGHT)
    own = select(target_mass == 0.0, zero, target_mass * sums.log_ratio)

    def with_mass_elsewhere():
        elsewhere = load_wide(storage, table + SPREAD_MASS)
        loss = own + select(elsewhere == 0.0, zero, elsewhere * sums.log_sum)
        loss = loss + load_wide(storage, table + SPREAD_DISTANCE)
        lse = load_wide(storage, table + TOP) + (load_wide(storage, table + REFERENCE_LOW) + sums.log_sum)
        loss, elsewhere, mass_low = choose(
            plan.z_loss != 0.0,
            lambda: (loss, elsewhere, zero),
            lambda: (loss + plan.z_loss * lse * lse, *two_sum(elsewhere, 2.0 * plan.z_loss * lse)),
        )
        mass, rest = two_sum(target_mass, elsewhere)
        return loss, RowMass(mass, mass_low + rest, elsewhere, load_wide(storage, table + SPREAD_AT_TARGET))

    loss, mass = choose(
        spread_wanted(plan) | (plan.z_loss != 0.0),
        lambda: (own, RowMass(target_mass, zero, zero, zero)),
        with_mass_elsewhere,
    )
    loss = select(sums.total == sums.total, loss, sums.total)
    loss = select(sums.nothing, splat_like(zero, np.nan), loss) * row_weight
    store_wide(storage, table + LOSS_VALUE, select(row_weight == 0.0, zero, loss))
    return mass


@formula
def store_factors(storage, table, sums, mass):
    """The factors of the gradient, and the gradient at the target."""
    zero = wide_zero(storage)
    inverse, inverse_low = invert_sums(storage, table, sums.total, sums.total_low)
    ignored = load_wide(storage, table + ROW_WEIGHT) == 0.0
    store_wide(storage, table + INVERSE, select(ignored, zero, load_wide(storage, table + INVERSE)))
    store_wide(storage, table + INVERSE_LOW, select(ignored, zero, load_wide(storage, table + INVERSE_LOW)))
    still = ignored | sums.nothing
    factor = select(still, zero, load_wide(storage, table + ROW_FACTOR))
    product = mass.total * factor
    scale, scale_low = times_inverse(storage, product, inverse, inverse_low)
    if in_float64(storage):
        scale_low = scale_low + (rest_of_product(mass.total, factor, -product) + mass.total_low * factor) * inverse
    store_wide(storage, table + SCALE, select(still, zero, scale))
    store_wide(storage, table + SCALE_LOW, select(still, zero, scale_low))
    store_wide(storage, table + SPREAD_SCALE, factor)
    target_mass = load_wide(storage, table + TARGET_MASS)
    difference = mass.elsewhere * sums.e - target_mass * sums.d
    first, rest = times_inverse(storage, difference * factor, inverse, inverse_low)
    at_target = (first + rest) - mass.at_target * factor
    struck = still | ((sums.apart == -np.inf) & (sums.total == sums.total))
    store_wide(storage, table + TARGET_GRADIENT, select(struck, zero, at_target))


@formula
def others_at_target(storage, table):
    """What stands in place of the target's exponential, so that y - t is computed like all others: the sum of the others, negative."""
    rest = load_wide(storage, table + REST) + load_wide(storage, table + REST_LOW)
    # (a target of -inf pulls at nothing; of a class without weight the gradient is not -0)
    nothing = (load_wide(storage, table + APART) == -np.inf) & (rest == rest)
    nothing = nothing | (load_wide(storage, table + SCALE) == 0.0)
    store_wide(storage, table + TARGET_GRADIENT, select(nothing, splat_like(rest, 0.0), 0.0 - rest))


@routine
def finish_rows(storage, plan, table):
    """From the sums of each row to its loss, the factors of its gradient, and its log-sum."""
    if plan.operation == SOFTMAX:
        total, total_low = sums_of_others(storage, table)
        invert_sums(storage, table, total, total_low)
        return
    sums = logarithms(storage, plan, table)
    if plan.operation != LOSS:
        store_logarithms(storage, plan, table, sums)
        return
    mass = store_losses(storage, plan, table, sums)
    if plan.out != 0:
        store_factors(storage, table, sums, mass)


@formula
def add_losses(storage, sums, losses):
    """Add the losses of a tile to the sum in the table `sums`."""
    high, error = two_sum(load_wide(storage, sums + SUM), losses)
    store_wide(storage, sums + SUM, high)
    store_wide(storage, sums + SUM_LOW, load_wide(storage, sums + SUM_LOW) + error)


@routine
def keep_row_values(storage, target_storage, plan, table, sums, outer, inner, count):
    """Add the losses of a tile to the sum in the table `sums`; store the row values where they are wanted."""
    if plan.operation == LOSS:
        # the mean and the sum are those of the losses that reduction="none" returns
        add_losses(storage, sums, widen(narrow(storage, load_wide(storage, table + LOSS_VALUE))))
    store_row_values(storage, target_storage, plan, table, outer, inner, count)


@routine
def store_row_values(storage, target_storage, plan, table, outer, inner, count):
    """Round the row values of a tile to the results' type, and store them where they are wanted."""
    arithmetic = arithmetic_of(storage)
    if plan.row_values != 0:
        near = NEAR_ZERO if leaves_one_out(plan) else NEAR_ZERO_OF_ALL
        for row in range(count):
            place = plan.row_values + outer * plan.row_values_outer + (inner + row) * plan.row_values_inner
            value = load_double(table + LOSS_VALUE + 8 * row)
            if plan.operation == LOSS:
                store_one(arithmetic, place, value)
            else:
                if target_storage is not None and abs(value) < near:
                    logits = plan.logits + outer * plan.logits_outer + (inner + row) * plan.logits_inner
                    value = logsumexp_near_zero(storage, plan, logits, table + SPREAD_MASS)
                store_one(result_of(storage), place, value)


@formula
def store_partial(storage, plan, table, block):
    """The sum of a block's losses, in two parts."""
    high, low = exact_total_of_lanes(storage, load_wide(storage, table + SUM), load_wide(storage, table + SUM_LOW))
    store_double(plan.partials + 16 * block, high)
    store_double(plan.partials + 16 * block + 8, low)


@routine
def settle_step(storage, target_storage, plan, table, sums, outer, inner, count, step, end):
    """From the sums of a step's rows to what their results are made with, and their losses; `step` and `end` as in `end_block`."""
    arithmetic = arithmetic_of(storage)
    raise_exactly(arithmetic, plan, table)
    finish_rows(arithmetic, plan, table)
    if plan.operation == LOGSUMEXP or plan.operation == LOSS:
        keep_row_values(storage, target_storage, plan, table, sums, outer, inner, count)
    if plan.partials != 0:
        end_block(arithmetic, plan, sums, step, end)


@formula
def end_block(storage, plan, sums, step, end):
    """After a step of a walk that goes on from block to block, up to the step `end`: the losses of a block that ends here; the next
    begins at 0."""
    block = quotient(step, plan.tiles_per_block)

    def close():
        store_partial(storage, plan, sums, block)
        start_losses(storage, sums)

    when((step + 1 == end) | (step + 1 == (block + 1) * plan.tiles_per_block), close)
