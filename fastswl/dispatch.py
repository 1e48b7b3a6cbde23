"""From a checked call to kernels: the route, the divisor, the walk, the sum of the losses.

What shapes and options decide is found once (`walks.find_route`); a call fills in addresses. Calls of contiguous arrays whose
options are numbers, weights of classes or of rows don't come here again: `fastswl.prepared` holds them ready. Those of one block,
already the first time, so that a first call need not compile what only the general way uses.
"""

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastswl import threads
from fastswl.arguments import LossPlan, empty_error, index_error
from fastswl.kept import REFUSED
from fastswl.kernels.plan import (
    CHANGING,
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    LOSS,
    NO_TARGETS,
    PROBABILITY_TARGETS,
    SOFTMAX,
    Plan,
)
from fastswl.kernels.record import PART_BYTES, PART_VECTORS
from fastswl.kernels.rows import AGAIN, TABLE_BYTES
from fastswl.kernels.scan import SCAN_BYTES, SCAN_ROWS
from fastswl.kernels.split import DESCRIBE, FINISH, MERGE, STRETCH_PARTS, SUM_UP
from fastswl.kernels.targets import INDEX_CODES
from fastswl.prepared import exact_sum, keep_loss, keep_softmax, sum_of_weights, total_of_blocks
from fastswl.running import Storages, address_of, as_words, kernel_address, packed_plan, run_kernel
from fastswl.simd import STORAGES
from fastswl.walks import Options, Route, find_route, pack_fixed

Array = npt.NDArray[Any]
OPERATIONS = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}
#: bytes of the tables of rows that the split walk works on at once
SPLIT_TABLE_BYTES = 4 << 20
#: where each array's address stands among the changing words
_PLACE = {name: number for number, name in enumerate(Plan._fields[:CHANGING])}
_NO_ADDRESSES = (0,) * CHANGING


class _Arrays:
    """The arrays of a call under their names in the plan: addresses, strides of the rows, strides of the classes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.addresses: list[int] = []
        self.strides: list[tuple[int, ...]] = []
        self.class_strides: list[int] = []

    def add(self, name: str, array: Array | None, with_classes: bool) -> None:
        if array is None:
            return
        strides = array.strides
        self.names.append(name)
        self.addresses.append(address_of(array))
        self.class_strides.append(strides[-1] if with_classes else 0)
        self.strides.append(strides[:-1] if with_classes else strides)

    def route(self, storage: str, shape: tuple[int, ...], areas: int, options: Options) -> Route:
        return find_route(
            storage, shape, tuple(self.names), tuple(self.strides), tuple(self.class_strides), areas, options
        )

    def changing(self, offsets: tuple[int, ...], **others: float) -> list[Any]:
        """The changing words of the plan for one piece of the rows."""
        words: list[Any] = list(_NO_ADDRESSES)
        for name, address, offset in zip(self.names, self.addresses, offsets, strict=True):
            words[_PLACE[name]] = address + offset
        for name, value in others.items():
            words[_PLACE[name]] = value
        return words


# --- the walks ----------------------------------------------------------------------------------------------------------


def _walk_over(route: Route, storages: Storages, words: list[Any], n_threads: int, partials: Any) -> None:
    """Walk over one piece of the rows. With a list for `partials`, sums of losses are added to it."""
    if route.walk.name == "split":
        _walk_split(route, storages, words, n_threads, partials)
        return
    if partials is not None:
        sums = np.empty((route.n_blocks, 2))
        partials.append(sums)
        words[_PLACE["partials"]] = address_of(sums)
    n_threads = threads.threads_for(route.work, n_threads)
    kernel = kernel_address(route.walk.name, *storages)
    run_kernel(kernel, packed_plan(tuple(words), route.fixed), route.walk.scratch_bytes, route.n_blocks, n_threads)


def _walk_split(route: Route, storages: Storages, words: list[Any], n_threads: int, partials: Any) -> None:
    """The split walk: every row's parts to all threads, twice, with a merge of each row between."""
    fields = route.fields
    part_classes = PART_VECTORS * STORAGES[storages[0]].lanes
    n_parts = -(-fields["n_classes"] // part_classes)
    rows_at_once = max(1, SPLIT_TABLE_BYTES // (n_parts * PART_BYTES + TABLE_BYTES))
    kernel = kernel_address("split", *storages)
    for outer in range(fields["n_outer"]):
        for first in range(0, fields["n_inner"], rows_at_once):
            count = min(rows_at_once, fields["n_inner"] - first)
            fixed = pack_fixed({**fields, "n_outer": 1, "n_inner": count})
            tables = np.zeros(count * TABLE_BYTES + 64, np.uint8)
            aligned = tables[-address_of(tables) % 64 :]
            parts = np.empty((count, n_parts, PART_BYTES // 8))
            own = list(words)
            for name, place in _PLACE.items():
                if f"{name}_inner" in fields and own[place]:
                    own[place] += outer * fields[f"{name}_outer"] + first * fields[f"{name}_inner"]
            own[_PLACE["row_tables"]], own[_PLACE["row_parts"]] = address_of(aligned), address_of(parts)
            if partials is not None:
                sums = np.empty((count, 2))
                partials.append(sums)
                own[_PLACE["partials"]] = address_of(sums)

            def step(phase: int, units: int, own: list[Any] = own, fixed: bytes = fixed) -> None:
                own[_PLACE["phase"]] = phase
                run_kernel(kernel, packed_plan(tuple(own), fixed), route.walk.scratch_bytes, units, n_threads)

            step(DESCRIBE, count)
            step(SUM_UP, count * n_parts)
            step(MERGE, count)
            again = aligned[: count * TABLE_BYTES].reshape(count, TABLE_BYTES)[:, AGAIN : AGAIN + 8]
            if again.any():
                # once more: rows far from 0, their maximum subtracted first, or where the largest is most of a log_softmax's sum
                step(SUM_UP, count * n_parts)
                step(MERGE, count)
            if own[_PLACE["out"]]:
                step(FINISH, count * -(-n_parts // STRETCH_PARTS))


# --- what the public functions call -------------------------------------------------------------------------------------


@functools.cache
def storage_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype among the storages (`dtype.name` takes a microsecond)."""
    return dtype.name


def run_softmax_family(operation: str, x: Array, out: Array, n_threads: int) -> None:
    """Softmax, log_softmax or logsumexp of `x` (class axis last) into `out`."""
    code = OPERATIONS[operation]
    arrays = _Arrays()
    arrays.add("logits", x, True)
    arrays.add("row_values" if code == LOGSUMEXP else "out", out, code != LOGSUMEXP)
    storages = (storage_of(x.dtype), "float64" if code == LOGSUMEXP else None)
    route = arrays.route(storages[0], x.shape, 2 if code == LOG_SOFTMAX else 1, Options(code, NO_TARGETS))
    if x.dtype == out.dtype:
        kept = keep_softmax((operation, x.dtype, x.shape), storages, route, x, out)
        if kept is not None and kept(x, out) != REFUSED:
            return
    for offsets in route.pieces:
        _walk_over(route, storages, arrays.changing(offsets), n_threads, None)


def _loss_arrays(plan: LossPlan) -> _Arrays:
    arrays = _Arrays()
    arrays.add("logits", plan.logits, True)
    arrays.add("targets", plan.targets, plan.probabilities)
    arrays.add("sample_weight", plan.sample_weight, False)
    if isinstance(plan.upstream, np.ndarray):
        arrays.add("upstream", plan.upstream, False)
    arrays.add("mask", plan.class_mask, True)
    arrays.add("row_values", plan.loss, False)
    arrays.add("out", plan.grad, True)
    arrays.add("softmax", plan.probabilities_out, True)
    return arrays


def _loss_options(plan: LossPlan) -> tuple[Options, int]:
    """The options of a plan, and the tables of the size of the exponentials that they need."""
    changed = plan.softcap is not None or plan.logit_scale != 1.0
    spread = plan.probabilities or plan.label_smoothing != 0.0
    options = Options(
        LOSS,
        PROBABILITY_TARGETS if plan.probabilities else INDEX_TARGETS,
        0 if plan.probabilities else INDEX_CODES[storage_of(plan.targets.dtype)],
        int(plan.ignore_index),
        float(plan.label_smoothing),
        float(plan.z_loss),
        float(plan.logit_scale),
        0.0 if plan.softcap is None else float(plan.softcap),
    )
    return options, 5 if plan.probabilities_out is not None else 4 if changed else 2 if spread else 1


def _target_storage(plan: LossPlan) -> str | None:
    """The storage of probability targets; of others any, and None where the kernels for plain calls serve."""
    if plan.probabilities:
        return storage_of(plan.targets.dtype)
    plain = plan.label_smoothing == 0.0 and plan.softcap is None and plan.logit_scale == 1.0 and plan.class_mask is None
    return None if plain else "float64"


def run_loss(plan: LossPlan) -> np.float64 | None:
    """The losses of a checked plan, and their gradient; the mean or sum, None with reduction "none"."""
    logits = plan.logits
    storages = (storage_of(logits.dtype), _target_storage(plan))
    arrays = _loss_arrays(plan)
    options, areas = _loss_options(plan)
    route = arrays.route(storages[0], logits.shape, areas, options)
    of_weights = _made_of_weights(plan, storages[0])
    kept = keep_loss(storages, route, plan, of_weights)
    if kept is not None:
        # (any array stands for a result that the plan has not)
        other = plan.probabilities_out if plan.loss is None else plan.loss
        results = (logits if array is None else array for array in (plan.grad, other))
        weights = plan.sample_weight if plan.weight is None else plan.weight
        value = kept(logits, plan.targets, *results, *(() if weights is None else (weights,)))
        if value != REFUSED:
            return np.float64(value) if plan.loss is None else None
    others: dict[str, Any] = {"weight_total": logits.shape[-1]}
    if plan.weight is not None:
        others["weight"] = address_of(plan.weight)
    others |= as_words(of_weights)

    divisor = _divisor(plan, arrays, route, others)
    upstream = 1.0 if isinstance(plan.upstream, np.ndarray) else plan.upstream
    if plan.reduction == "mean":
        if plan.normalizer is not None:
            divisor = plan.normalizer
        if divisor == 0.0:
            if plan.empty == "raise":
                raise empty_error()
            upstream = 0.0 if plan.empty == "zero" else math.nan
        else:
            upstream = upstream / divisor
    others["row_factor"] = upstream * plan.logit_scale
    partials: list[Array] | None = None if plan.reduction == "none" else []
    for offsets in route.pieces:
        _walk_over(route, storages, arrays.changing(offsets, **others), plan.n_threads, partials)
    if partials is None:
        return None
    total = total_of_blocks(partials[0] if len(partials) == 1 else np.concatenate(partials))
    if plan.reduction == "sum":
        return np.float64(total)
    if divisor == 0.0:
        if plan.empty == "zero" and plan.grad is not None:
            # also of rows with NaN whose classes weigh nothing
            plan.grad[...] = 0
        return np.float64(0.0 if plan.empty == "zero" else math.nan)
    return np.float64(total / divisor)


def _made_of_weights(plan: LossPlan, storage: str) -> dict[str, Any]:
    """What the plan wants of class weights where targets have mass on every class: the weights with a vector of zeros behind, the same
    in the arithmetic type, their sum over each part of a row, and that of all."""
    weight = plan.weight
    if weight is None or not (plan.probabilities or plan.label_smoothing != 0.0):
        return {}
    layout = STORAGES[storage]
    wide = np.zeros(weight.size + layout.lanes)
    wide[: weight.size] = weight
    part_classes = PART_VECTORS * layout.lanes
    sums = [sum_of_weights(weight[first : first + part_classes]) for first in range(0, weight.size, part_classes)]
    vector = wide.astype(f"f{layout.arithmetic.bitwidth // 8}")
    return {"weight": wide, "weight_vector": vector, "part_weights": np.array(sums), "weight_total": exact_sum(sums)}


def _divisor(plan: LossPlan, arrays: _Arrays, route: Route, others: dict[str, Any]) -> float:
    """Check the class indices, and sum up what the mean divides by."""
    if plan.probabilities:
        if plan.sample_weight is None:
            return float(math.prod(plan.logits.shape[:-1]))
        if plan.reduction != "mean":
            return 0.0
    kernel = kernel_address("scan", "float64", "float64")
    n_blocks = -(-route.n_rows // SCAN_ROWS)
    sums: list[float] = []
    for offsets in route.pieces:
        results = np.empty((n_blocks, SCAN_BYTES // 8))
        words = arrays.changing(offsets, partials=address_of(results), **others)
        run_kernel(kernel, packed_plan(tuple(words), route.fixed), 64, n_blocks, plan.n_threads)
        for first_bad, divisor, rest in results.tolist():
            if first_bad >= 0.0:
                _raise_index_error(plan)
            sums += (divisor, rest)
    return exact_sum(sums)


def _raise_index_error(plan: LossPlan) -> None:
    """Name the first index out of range in the order of the caller's array."""
    targets, n_classes = plan.targets, plan.logits.shape[-1]
    for first in range(0, targets.size, SCAN_ROWS):
        some = targets.flat[first : first + SCAN_ROWS]
        wrong = ((some < 0) | (some >= n_classes)) & (some != plan.ignore_index)
        if wrong.any():
            raise index_error(targets, first + int(np.argmax(wrong)), n_classes)
