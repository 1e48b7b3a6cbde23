"""Reading index targets before anything is written: the first one out of range, and what the mean divides by."""

from fastswl.compilation import block_kernel
from fastswl.kernels.part import add_exactly
from fastswl.kernels.plan import INDEX_TARGETS, load_plan
from fastswl.kernels.targets import load_index
from fastswl.simd import load_double, store_double

#: rows in a block of the scan
SCAN_ROWS = 65536
#: bytes of a block's result, float64: first bad row (or -1), divisor, its rest
SCAN_BYTES = 24


@block_kernel
def scan_targets(storage, target_storage, plan_address, scratch, first, last):
    """Per block of rows: the first index that is no class, and the sum of the weights that the mean divides by."""
    plan = load_plan(plan_address)
    n_rows = plan.n_outer * plan.n_inner
    for block in range(first, last):
        bad = -1
        high, low = 0.0, 0.0
        for row in range(block * SCAN_ROWS, min((block + 1) * SCAN_ROWS, n_rows)):
            outer = row // plan.n_inner
            inner = row - outer * plan.n_inner
            weight = 1.0
            if plan.kind == INDEX_TARGETS:
                place = plan.targets + outer * plan.targets_outer + inner * plan.targets_inner
                chosen = load_index(plan.index_code, place)
                if chosen == plan.ignore_index:
                    continue
                if chosen < 0 or chosen >= plan.n_classes:
                    bad = row
                    break
                if plan.weight != 0:
                    weight = load_double(plan.weight + 8 * chosen)
            if plan.sample_weight != 0:
                place = plan.sample_weight + outer * plan.sample_weight_outer + inner * plan.sample_weight_inner
                weight = weight * load_double(place)
            high, error = add_exactly(high, weight)
            low += error
        result = plan.partials + SCAN_BYTES * block
        store_double(result, float(bad))
        store_double(result + 8, high)
        store_double(result + 16, low)
    return 0
