"""From what is known of each part of a row, or of rows of one part, to what is known of the row."""

import numpy as np

from fastswl.compilation import inlined, routine
from fastswl.kernels.block import FAR_32, FAR_64
from fastswl.kernels.plan import INDEX_TARGETS, LOSS, spread_evenly, spread_wanted
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
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SHIFT,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    TOP,
    smoothing_unit,
)
from fastswl.simd import (
    absolute,
    any_lane,
    by_type,
    lanes,
    load_double,
    load_wide,
    power_of_two,
    select,
    splat_like,
    store_double,
    store_wide,
)
from fastswl.vectormath import two_sum


@inlined
def two_to(exponent):
    """2**exponent of a whole float64 in [-1022, 0], 0 below."""
    if exponent < -1022.0:
        return 0.0
    return power_of_two(exponent)


@routine
def merge_parts(storage, plan, table, row, parts, n_parts):
    """Sum up the parts of a row; whether it has to be done again with its maximum subtracted first (SHIFT says by what)."""
    top = -np.inf
    leader = 0
    poisoned = False
    for i in range(n_parts):
        part_top = load_double(parts + PART_BYTES * i + RECORD_STEP * PART_TOP)
        rest = load_double(parts + PART_BYTES * i + RECORD_STEP * PART_REST)
        poisoned = poisoned or part_top != part_top or (rest != rest and part_top < np.inf)
        if part_top > top:
            top = part_top
            leader = i
    shift = load_double(table + SHIFT + 8 * row)
    limit = by_type(storage, FAR_32, FAR_64)
    if shift == 0.0 and abs(top) >= limit and abs(top) < np.inf:
        store_double(table + SHIFT + 8 * row, top)
        return True
    m = 0.0
    if abs(top) < np.inf:
        m = top
    power = load_double(parts + PART_BYTES * leader + RECORD_STEP * PART_POWER)
    m_low = load_double(parts + PART_BYTES * leader + RECORD_STEP * PART_REFERENCE_LOW)
    high, low = 0.0, 0.0
    mass, mass_low, distance, distance_low = 0.0, 0.0, 0.0, 0.0
    chosen, apart, apart_low = -1, -np.inf, 0.0
    part_classes = PART_VECTORS * lanes(storage)
    for i in range(n_parts):
        part = parts + PART_BYTES * i
        factor = two_to(load_double(part + RECORD_STEP * PART_POWER) - power)
        high, error = two_sum(high, load_double(part + RECORD_STEP * PART_REST) * factor)
        low += error + load_double(part + RECORD_STEP * PART_REST_LOW) * factor
        place = int(load_double(part + RECORD_STEP * PART_CLASS))
        if place >= 0:
            if plan.kind == INDEX_TARGETS or i == leader:
                chosen = place + part_classes * i
                apart = load_double(part + RECORD_STEP * PART_APART)
                apart_low = load_double(part + RECORD_STEP * PART_APART_LOW)
            else:
                high, error = two_sum(high, load_double(part + RECORD_STEP * PART_APART_EXP) * factor)
                low += error
        if spread_evenly(plan):
            store_double(
                part + RECORD_STEP * PART_MASS,
                smoothing_unit(plan) * weight_of_part(plan, i, part_classes),
            )
        part_mass = load_double(part + RECORD_STEP * PART_MASS)
        if spread_wanted(plan):
            away = load_double(part + RECORD_STEP * PART_DISTANCE)
            if part_mass != 0.0:
                limited = min(max(load_double(part + RECORD_STEP * PART_TOP), -limit), limit)
                away += part_mass * ((m - limited) + (m_low - load_double(part + RECORD_STEP * PART_REFERENCE_LOW)))
            mass, error = two_sum(mass, part_mass)
            mass_low += error
            distance, error = two_sum(distance, away)
            distance_low += error
    if abs(distance) < np.inf:
        distance += distance_low
    mass += mass_low
    store_double(table + TOP + 8 * row, np.nan if poisoned else top + shift)
    store_double(table + REFERENCE + 8 * row, m)
    store_double(table + REFERENCE_LOW + 8 * row, m_low)
    store_double(table + POWER + 8 * row, power)
    store_double(table + REST + 8 * row, high)
    store_double(table + REST_LOW + 8 * row, low)
    store_double(table + APART + 8 * row, apart)
    store_double(table + APART_LOW + 8 * row, apart_low)
    store_double(table + SPREAD_MASS + 8 * row, mass)
    store_double(table + SPREAD_DISTANCE + 8 * row, distance)
    if plan.kind != INDEX_TARGETS:
        store_double(table + CLASS + 8 * row, chosen)
    return False


@routine
def settle_rows(storage, plan, table):
    """`merge_parts` of rows of one part, all rows of a tile at once; whether any may have to be done again."""
    top, rest = load_wide(storage, table + TOP), load_wide(storage, table + REST)
    finite = absolute(top) < np.inf
    store_wide(storage, table + REFERENCE, select(finite, top, splat_like(top, 0.0)))
    if spread_evenly(plan):
        mass = smoothing_unit(plan) * plan.weight_total
        store_wide(storage, table + SPREAD_MASS, splat_like(top, mass))
    shift = load_wide(storage, table + SHIFT)
    poisoned = (rest != rest) & (top < np.inf)
    store_wide(storage, table + TOP, select(poisoned, splat_like(top, np.nan), top + shift))
    far = (absolute(top) >= by_type(storage, FAR_32, FAR_64)) & finite & (shift == 0.0)
    return any_lane(far)


@routine
def mark_far_rows(storage, plan, table, count):
    """Say in AGAIN which rows have to be done again with their maximum subtracted, in SHIFT by what; whether there is any."""
    found = False
    for row in range(count):
        m = load_double(table + REFERENCE + 8 * row)
        far = abs(m) >= by_type(storage, FAR_32, FAR_64) and load_double(table + SHIFT + 8 * row) == 0.0
        if plan.operation == LOSS and load_double(table + ROW_WEIGHT + 8 * row) == 0.0:
            # an ignored row is not read
            far = False
        if far:
            store_double(table + SHIFT + 8 * row, m)
        store_double(table + AGAIN + 8 * row, 1.0 if far else 0.0)
        found = found or far
    return found


@inlined
def weight_of_part(plan, number, part_classes):
    """The class weights of a part added up."""
    first = number * part_classes
    end = min(first + part_classes, plan.n_classes)
    if plan.weight == 0:
        return float(end - first)
    if end - first == plan.n_classes:
        return plan.weight_total
    total = 0.0
    for c in range(first, end):
        total += load_double(plan.weight + 8 * c)
    return total
