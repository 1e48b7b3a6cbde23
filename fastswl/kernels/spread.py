"""Target mass on every class, and masked classes, in scratch memory.

`class_step` says how scratch memory is laid out: a tile has a vector a class and a row in a lane, a part of a row has its
classes in lanes.
"""

import functools

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import FAR_AHEAD, mass_and_distance, mass_in_pairs, no_mass, settled
from fastswl.kernels.lines import load_part, vectors_in, vectors_of
from fastswl.kernels.merge import weight_of_part
from fastswl.kernels.plan import PROBABILITY_TARGETS, spread_evenly, targets_of_row
from fastswl.kernels.record import PART_DISTANCE, PART_MASS, PART_MASS_AT, PART_MASS_MOVES, PART_VECTORS
from fastswl.kernels.rows import (
    FILLED,
    MASS_AT,
    MASS_MOVES,
    ONES,
    REFERENCE_LOW,
    ROW_WEIGHT,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    smoothing_unit,
)
from fastswl.kernels.tiles import load_tile
from fastswl.simd import (
    VECTOR_BYTES,
    Running,
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    choose,
    fma,
    formula,
    greatest,
    itemsize,
    lane,
    lane_numbers,
    lanes,
    load,
    load_double,
    load_int64,
    load_integer,
    load_integers,
    load_one,
    load_wide,
    log2_of,
    same_arithmetic,
    same_storage,
    select,
    splat_like,
    steps,
    store,
    store_double,
    store_int64,
    store_one,
    store_wide,
    to_float64,
    when,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import plain_total_of_lanes, total_of_lanes


@formula
def fill_masked(storage, plan, block, value, class_step, outer, inner, first_class, n):
    """Put `value` at the masked ones of `n` classes of one row."""
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner + first_class * plan.mask_class

    def neighbours():
        whole = vectors_in(storage, n)
        for i in steps(0, whole):
            masked = load_integers(storage, place + lanes(storage) * i, 8, False) == 0.0
            x = load(storage, block + VECTOR_BYTES * i)
            store(storage, block + VECTOR_BYTES * i, select(masked, splat_like(x, value), x))
        return whole * lanes(storage)

    # (1,000 classes: loss and gradient 0.92 to 0.63 ns an element)
    vectors = (plan.mask_class == 1) & (class_step == itemsize(storage))
    for c in steps(choose(vectors, lambda: 0, neighbours), n):
        masked = load_integer(place + plan.mask_class * c, 8, False) == 0
        when(masked, functools.partial(store_one, storage, block + class_step * c, value))


@formula
def fill_masked_of_tile(storage, plan, tile, value, outer, inner, count):
    """`fill_masked` of all rows of a tile."""

    def row_by_row():
        for row in steps(0, count):
            place = tile + itemsize(storage) * row
            fill_masked(storage, plan, place, value, VECTOR_BYTES, outer, inner + row, 0, plan.n_classes)

    def all_alike():
        place = plan.mask + outer * plan.mask_outer
        masked_class = splat_like(load(storage, tile), value)
        for c in steps(0, plan.n_classes):
            masked = load_integer(place + plan.mask_class * c, 8, False) == 0
            when(masked, functools.partial(store, storage, tile + VECTOR_BYTES * c, masked_class))

    choose(plan.mask_inner == 0, row_by_row, all_alike)


@routine
def spread_unit(plan, outer, inner):
    """Smoothing of each class of a row: eps / (classes that are not masked)."""
    if plan.mask == 0:
        return smoothing_unit(plan)
    place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner
    left = 0
    for c in range(plan.n_classes):
        if load_integer(place + plan.mask_class * c, 8, False) != 0:
            left += 1
    return plan.label_smoothing / greatest(left, 1)


@routine
def spread_mass(storage, target_storage, plan, mass, class_step, outer, inner, first_class, n, unit):
    """The mass q of `n` classes of one row, one by one: w_c ((1 - eps) t_c + unit) of probability targets, w_c unit of
    index targets (less what stands at the target itself)."""
    t_place = targets_of_row(plan, outer, inner) + first_class * plan.targets_class
    mask_place = plan.mask + outer * plan.mask_outer + inner * plan.mask_inner + first_class * plan.mask_class
    for c in range(n):
        q = unit
        if plan.mask != 0 and load_integer(mask_place + plan.mask_class * c, 8, False) == 0:
            q = 0.0
        if plan.kind == PROBABILITY_TARGETS:
            q += (1.0 - plan.label_smoothing) * load_one(target_storage, t_place + plan.targets_class * c)
        if plan.weight != 0:
            q *= load_double(plan.weight + 8 * (first_class + c))
        store_one(storage, mass + class_step * c, q)


@formula
def made_by_vectors(storage, target_storage, plan):
    """Whether the mass can be made a vector at a time: no mask, targets that are worked on in the type of the logits."""
    return (plan.mask == 0) & ((plan.kind != PROBABILITY_TARGETS) | same_arithmetic(storage, target_storage))


@routine
def smooth_part(storage, plan, mass, first_class, n_vectors):
    """q = w ((1 - eps) t + unit) in place, lanes along the classes; nothing to do for plain targets."""
    if plan.label_smoothing == 0.0 and plan.weight == 0:
        return
    keep, unit = 1.0 - plan.label_smoothing, smoothing_unit(plan)
    weights = plan.weight_vector + itemsize(storage) * first_class
    for i in range(n_vectors):
        place = mass + VECTOR_BYTES * i
        q = load(storage, place) * keep + unit
        if plan.weight != 0:
            q = q * load(storage, weights + VECTOR_BYTES * i)
        store(storage, place, q)


@routine
def smooth_tile(storage, plan, mass):
    """The same for a tile, a lane a row."""
    if plan.label_smoothing == 0.0 and plan.weight == 0:
        return
    keep, unit = 1.0 - plan.label_smoothing, smoothing_unit(plan)
    for c in range(plan.n_classes):
        place = mass + VECTOR_BYTES * c
        q = load(storage, place) * keep + unit
        if plan.weight != 0:
            q = q * load_double(plan.weight + 8 * c)
        store(storage, place, q)


@formula
def is_finite(a):
    return absolute(a) < np.inf


@formula
def all_finite(total, distance):
    return ~any_lane(~is_finite(total) | ~is_finite(distance))


@formula
def clear_ignored(storage, table, tile, n_classes):
    """An ignored row is as if it were 0."""
    ignored = load_wide(storage, table + ROW_WEIGHT) == 0.0
    for c in steps(0, n_classes):
        x = load(storage, tile + VECTOR_BYTES * c)
        store(storage, tile + VECTOR_BYTES * c, select(ignored, splat_like(x, 0.0), x))


@routine
def put_weights(storage, plan, table, mass):
    """The class weights into a tile, each in all lanes, if they are not there."""
    if load_int64(table + FILLED) == 0:
        like = load(storage, mass)
        for c in range(plan.n_classes):
            store(storage, mass + VECTOR_BYTES * c, splat_like(like, load_double(plan.weight + 8 * c)))
        store_int64(table + FILLED, 1)


@routine
def make_mass_of_tile(storage, target_storage, plan, mass, outer, inner, count):
    """The target mass of every class of every row of a tile."""
    place = targets_of_row(plan, outer, inner)
    if made_by_vectors(storage, target_storage, plan):
        load_tile(target_storage, mass, place, plan.targets_inner, plan.targets_class, plan.n_classes, count)
        smooth_tile(storage, plan, mass)
        return
    for row in range(count):
        unit = spread_unit(plan, outer, inner + row)
        row_mass = mass + itemsize(storage) * row
        spread_mass(
            storage, target_storage, plan, row_mass, word(VECTOR_BYTES), outer, inner + row, word(0),
            plan.n_classes, unit,
        )  # fmt: skip


@routine
def spread_of_tile(storage, target_storage, plan, table, tile, low_parts, mass, m, outer, inner, count):
    """The mass of a tile's rows, where it lies, and its distance from the reference, into the table."""
    even = spread_evenly(plan)
    at, moves = mass, word(1)
    if even and plan.weight == 0:
        at, moves = table + ONES, word(0)
    elif not even:
        make_mass_of_tile(storage, target_storage, plan, mass, outer, inner, count)
    else:
        put_weights(storage, plan, table, mass)
    reference, reference_low = widen(m), load_wide(storage, table + REFERENCE_LOW)
    # the next tile's, where rows follow each other
    ahead = at
    if plan.kind == PROBABILITY_TARGETS:
        ahead = targets_of_row(plan, outer, inner + lanes(storage))
    n, n_numbers = plan.n_classes, plan.n_classes * lanes(storage)
    first = word(0)
    sums = no_mass(storage)
    if low_parts == 0:
        first = n // 2 * 2
        sums = mass_in_pairs(storage, tile, at, moves, ahead, n // 2, m, sums)
    sums = mass_and_distance(
        storage, tile, low_parts, at, moves, word(0), first, n, n_numbers, reference, reference_low, sums,
    )  # fmt: skip
    q_sum, away = settled(sums.total, sums.total_low), settled(sums.distance, sums.distance_low)
    if not all_finite(q_sum, away):
        sums = mass_and_distance(
            storage, tile, low_parts, at, moves, mass, word(0), n, n_numbers, reference, reference_low, no_mass(storage),
        )  # fmt: skip
        # (lane by lane, so that no row hangs on its neighbours)
        known = is_finite(q_sum) & is_finite(away)
        q_sum = select(known, q_sum, settled(sums.total, sums.total_low))
        away = select(known, away, settled(sums.distance, sums.distance_low))
        at, moves = mass, word(1)
        clear_ignored(storage, table, mass, n)
        store_int64(table + FILLED, 0)
    if even:
        q_sum, away = splat_like(q_sum, smoothing_unit(plan) * plan.weight_total), away * smoothing_unit(plan)
    store_int64(table + MASS_AT, at)
    store_int64(table + MASS_MOVES, moves)
    store_wide(storage, table + SPREAD_MASS, q_sum)
    store_wide(storage, table + SPREAD_DISTANCE, away)


@routine
def make_mass(storage, target_storage, plan, mass, n_vectors, outer, inner, first_class, n):
    """The target mass of the classes of a part."""
    size = itemsize(storage)
    place = targets_of_row(plan, outer, inner) + first_class * plan.targets_class
    if made_by_vectors(storage, target_storage, plan):
        load_part(target_storage, mass, place, plan.targets_class, n)
        smooth_part(storage, plan, mass, first_class, n_vectors)
    else:
        unit = spread_unit(plan, outer, inner)
        spread_mass(storage, target_storage, plan, mass, size, outer, inner, first_class, n, unit)


@formula
def mass_stays_in_place(storage, target_storage, plan, n):
    """Whether the target mass of a part is its targets as they lie in memory."""
    return (
        (plan.kind == PROBABILITY_TARGETS)
        & same_storage(target_storage, arithmetic_of(storage))
        & (plan.targets_class == itemsize(target_storage))
        & (n >= lanes(storage))
        & (plan.mask == 0)
        & (plan.weight == 0)
        & (plan.label_smoothing == 0.0)
    )


@formula
def weigh_edge(storage, target_storage, plan, put, first_class, whole, n):
    """Where the weights of a part's classes lie, and the sum of logits times them in each lane, of those past the last whole pair of
    vectors, which `put_edge` has put elsewhere. None in kernels for plain calls."""
    if target_storage is None:
        return None, None
    weights = select(plan.weight == 0, 0, plan.weight + 8 * first_class)
    zero = wide_zero(storage)
    total = Running(zero)
    for i in steps(2 * whole, vectors_of(storage, n)):
        x = load(storage, put + VECTOR_BYTES * i)
        weighed = choose(
            weights != 0,
            functools.partial(weigh, storage, None, zero, i, x),
            functools.partial(weigh, storage, weights, zero, i, x),
        )
        inside = lane_numbers(storage) < to_float64(n - lanes(storage) * i)
        total.value = total.value + select(inside, weighed, zero)
    return weights, total.value


def weigh(storage, weights, total, i, x):
    """For formulas: `total` and the vector number i of logits more, times the class weights, if there are any."""
    if weights is None:
        return total + widen(x)
    return fma(load_wide(storage, weights + 8 * lanes(storage) * i), widen(x), total)


@formula
def weigh_part(storage, plan, source, logits, first_class, n):
    """The sum of a part's logits times the class weights in each lane, bit by bit as it is where the power of two is guessed: the
    logits of whole pairs of vectors lie at `source`, the others in scratch memory (`logits`)."""
    n_pairs = n >> log2_of(2 * lanes(storage))
    weights, edge = weigh_edge(storage, storage, plan, logits, first_class, n_pairs, n)

    def all_vectors(weights):
        total = Running(edge)
        for i in steps(0, 2 * n_pairs):
            total.value = weigh(storage, weights, total.value, i, load(storage, source + VECTOR_BYTES * i))
        return total.value

    return choose(weights != 0, lambda: all_vectors(None), lambda: all_vectors(weights))


@formula
def store_even_spread(storage, plan, ones, part, step, first_class, n, m, weighed):
    """Of an even smoothing what `spread_of_part` stores: where the mass of the classes lies, and sum of q (m - x), from one of w x;
    whether that is finite."""
    part_weight = weight_of_part(plan, first_class >> log2_of(PART_VECTORS * lanes(storage)), n)
    away = smoothing_unit(plan) * (part_weight * m - sum_one(storage, weighed))
    store_double(part + step * PART_DISTANCE, away)
    weighted = plan.weight != 0
    store_int64(
        part + step * PART_MASS_AT, select(weighted, plan.weight_vector + itemsize(storage) * first_class, ones)
    )
    store_int64(part + step * PART_MASS_MOVES, select(weighted, 1, 0))
    return (away < np.inf) & (away > -np.inf)


@formula
def is_weighed(storage, plan, low_parts, is_near):
    """Whether an even smoothing may come from a sum of w x: logits that are as they were given, near 0 (float64 has no digits for
    the difference of two such sums)."""
    return by_type(storage, spread_evenly(plan), False) & (low_parts == 0) & is_near


@routine
def spread_of_part(
    storage, target_storage, plan, ones, part, step, source, whole, logits, low_parts, mass, m, m_low, outer, inner,
    first_class, n, is_near,
):  # fmt: skip
    """The mass of a part's classes, where it lies, and its distance from the part's reference, into its record.

    The logits of the pairs of vectors before `whole` lie at `source`, the others in scratch memory (`logits`). `is_near` says that
    nothing was subtracted from them.
    """
    if is_weighed(storage, plan, low_parts, is_near):
        weighed = weigh_part(storage, plan, source if whole > 0 else logits, logits, first_class, n)
        reference = to_float64(lane(m, 0))
        if store_even_spread(storage, plan, ones, part, step, first_class, n, reference, weighed):
            return
    even = spread_evenly(plan)
    n_vectors = vectors_of(storage, n)
    n_pairs = n // (2 * lanes(storage))
    at, moves = mass, word(1)
    rest_at = mass
    if even and plan.weight == 0:
        at, moves = ones, word(0)
        rest_at = at
    elif even:
        at = plan.weight_vector + itemsize(storage) * first_class
        rest_at = at
    elif mass_stays_in_place(storage, target_storage, plan, n):
        at = targets_of_row(plan, outer, inner) + first_class * plan.targets_class
        left = n - n_pairs * 2 * lanes(storage)
        if left > 0:
            # what is past the last whole pair is filled up in scratch memory
            behind = 2 * VECTOR_BYTES * n_pairs
            load_part(target_storage, mass + behind, at + behind, plan.targets_class, left)
    else:
        make_mass(storage, target_storage, plan, mass, n_vectors, outer, inner, first_class, n)
    reference = widen(m)
    reference_low = splat_like(reference, m_low)
    n_first = 2 * n_pairs
    place = source if whole > 0 else logits
    sums = no_mass(storage)
    if low_parts == 0:
        sums = mass_in_pairs(storage, place, at, moves, at + moves * FAR_AHEAD, n_pairs, m, sums)
    else:
        sums = mass_and_distance(
            storage, place, low_parts, at, moves, word(0), word(0), n_first, n, reference, reference_low, sums,
        )  # fmt: skip
    sums = mass_and_distance(
        storage, logits, low_parts, rest_at, moves, word(0), n_first, n_vectors, n, reference, reference_low, sums,
    )  # fmt: skip
    q_sum, away = settled(sums.total, sums.total_low), settled(sums.distance, sums.distance_low)
    if not all_finite(q_sum, away):
        # once more, and what is left of the mass goes into scratch memory
        sums = mass_and_distance(
            storage, place, low_parts, at, moves, mass, word(0), n_first, n, reference, reference_low, no_mass(storage),
        )  # fmt: skip
        sums = mass_and_distance(
            storage, logits, low_parts, rest_at, moves, mass, n_first, n_vectors, n, reference, reference_low, sums,
        )  # fmt: skip
        q_sum, away = settled(sums.total, sums.total_low), settled(sums.distance, sums.distance_low)
        at, moves = mass, word(1)
    mass_sum, distance_sum = sum_one(storage, q_sum), sum_one(storage, away)
    if even:
        distance_sum *= smoothing_unit(plan)
    store_int64(part + step * PART_MASS_AT, at)
    store_int64(part + step * PART_MASS_MOVES, moves)
    store_double(part + step * PART_MASS, mass_sum)
    store_double(part + step * PART_DISTANCE, distance_sum)


@formula
def sum_one(storage, total):
    def finite():
        high, low = total_of_lanes(storage, total, splat_like(total, 0.0))
        return high + low

    # (a compensated sum of infinities is NaN)
    return choose(any_lane(absolute(total) == np.inf), finite, lambda: plain_total_of_lanes(storage, total))
