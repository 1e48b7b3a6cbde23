"""Reading index targets before anything is written: the first one out of range, and what the mean divides by."""

from fastswl.compilation import block_kernel, routine
from fastswl.kernels.plan import INDEX_TARGETS, load_plan
from fastswl.kernels.targets import index_bytes, load_index, load_indices
from fastswl.simd import (
    FLOAT64,
    any_lane,
    choose,
    formula,
    lanes,
    least,
    load_double,
    select,
    splat_like,
    store_double,
    wide_zero,
)
from fastswl.vectormath import plain_total_of_lanes, two_sum

#: rows in a block of the scan
SCAN_ROWS = 65536
#: bytes of a block's result, float64: first bad row (or -1), divisor, its rest
SCAN_BYTES = 24


@formula
def side_by_side(plan):
    """Whether indices are all there is, and they are neighbours. (As float64, in which vectors compare them, a whole number that
    large could be taken for another.)"""
    return (
        (plan.kind == INDEX_TARGETS)
        & (plan.weight == 0)
        & (plan.sample_weight == 0)
        & ((plan.n_outer == 1) | (plan.targets_outer == plan.targets_inner * plan.n_inner))
        & (plan.targets_inner == index_bytes(plan.index_code))
        & (plan.ignore_index < 2**53)
        & (plan.ignore_index > -(2**53))
    )


@formula
def scan_vector(plan, place):
    """Whether all of a vector of indices are classes or ignored, and 1 in the lanes of those that count."""
    index = load_indices(FLOAT64, plan.index_code, place)
    ignored = index == plan.ignore_index
    good = ignored | ((index >= 0.0) & (index < plan.n_classes))
    zero = wide_zero(FLOAT64)
    return ~any_lane(~good), select(ignored, zero, splat_like(zero, 1.0))


@formula
def weight_of_row(plan, outer, inner):
    """Whether a row's index is a class or ignored, and what the mean divides by for it."""

    def of_index():
        chosen = load_index(plan.index_code, plan.targets + outer * plan.targets_outer + inner * plan.targets_inner)
        ignored = chosen == plan.ignore_index
        is_class = (chosen >= 0) & (chosen < plan.n_classes)
        own = choose(is_class & (plan.weight != 0), lambda: 1.0, lambda: load_double(plan.weight + 8 * chosen))
        return is_class | ignored, select(ignored, 0.0, own), ignored

    def of_sample():
        place = plan.sample_weight + outer * plan.sample_weight_outer + inner * plan.sample_weight_inner
        return load_double(place)

    good, weight, ignored = choose(plan.kind == INDEX_TARGETS, lambda: (True, 1.0, False), of_index)
    sample_weight = choose(plan.sample_weight != 0, lambda: 1.0, of_sample)
    return good, select(ignored, 0.0, weight * sample_weight)


@routine
def scan_vectors(plan, start, end):
    """Go over whole vectors of good indices: the row where that ends, and how many of them count (1e6 rows: 10 times faster
    than one by one)."""
    width = lanes(FLOAT64)
    total = wide_zero(FLOAT64)
    row = start
    while row + width <= end:
        good, counted = scan_vector(plan, plan.targets + row * plan.targets_inner)
        if not good:
            break
        total = total + counted
        row += width
    return row, plain_total_of_lanes(FLOAT64, total)


@block_kernel
def scan_targets(storage, target_storage, plan_address, scratch, first, last):
    """Per block of rows: the first index that is no class, and the sum of the weights that the mean divides by."""
    plan = load_plan(plan_address)
    n_rows = plan.n_outer * plan.n_inner
    for block in range(first, last):
        bad = -1
        start, end = block * SCAN_ROWS, least((block + 1) * SCAN_ROWS, n_rows)
        high, low = 0.0, 0.0
        if side_by_side(plan):
            start, high = scan_vectors(plan, start, end)
        for row in range(start, end):
            outer = row // plan.n_inner
            inner = row - outer * plan.n_inner
            good, weight = weight_of_row(plan, outer, inner)
            if not good:
                bad = row
                break
            high, error = two_sum(high, weight)
            low += error
        result = plan.partials + SCAN_BYTES * block
        store_double(result, float(bad))
        store_double(result + 8, high)
        store_double(result + 16, low)
    return 0
