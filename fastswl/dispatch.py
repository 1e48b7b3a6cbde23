"""From a checked call to kernels: the route, the divisor, the walk, the sum of the losses.

What shapes and options decide is found once (`walks.find_route`); a call fills in addresses. Small calls of contiguous
arrays without options don't come here again: `prepared` holds them ready.
"""

import ctypes
import functools
import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fastswl import threads
from fastswl.arguments import LossPlan, empty_error, index_error
from fastswl.kernels.entry import REFUSED, small_loss, small_softmax
from fastswl.kernels.plan import (
    CHANGING,
    CHANGING_LAYOUT,
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    LOSS,
    NO_TARGETS,
    PLAN_BYTES,
    PROBABILITY_TARGETS,
    SOFTMAX,
    Plan,
)
from fastswl.kernels.record import PART_BYTES, PART_VECTORS
from fastswl.kernels.rows import AGAIN, TABLE_BYTES
from fastswl.kernels.scan import SCAN_BYTES, SCAN_ROWS
from fastswl.kernels.split import DESCRIBE, FINISH, MERGE, SUM_UP
from fastswl.kernels.targets import INDEX_CODES
from fastswl.running import kernel_address, packed_plan, run_kernel
from fastswl.simd import STORAGES
from fastswl.walks import BLOCK_ELEMENTS, Options, Route, find_route, pack_fixed

Array = npt.NDArray[Any]
OPERATIONS = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}
#: elements below which no parallel region is started
PARALLEL_ELEMENTS = 32768
#: bytes of the tables of rows that the split walk works on at once
SPLIT_TABLE_BYTES = 4 << 20
#: where each array's address stands among the changing words
_PLACE = {name: number for number, name in enumerate(Plan._fields[:CHANGING])}
_NO_ADDRESSES = (0,) * CHANGING
_DATA = object.__basicsize__


def address_of(array: Array) -> int:
    """Address of an array's first element: the first field of its C structure (eight times as fast as `array.ctypes.data`)."""
    value: int = ctypes.c_ssize_t.from_address(id(array) + _DATA).value
    return value


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


def _walk_over(route: Route, storages: tuple[str, str], words: list[Any], n_threads: int, partials: Any) -> None:
    """Walk over one piece of the rows. With a list for `partials`, sums of losses are added to it."""
    if route.walk.name == "split":
        _walk_split(route, storages, words, n_threads, partials)
        return
    if partials is not None:
        sums = np.empty((route.n_blocks, 2))
        partials.append(sums)
        words[_PLACE["partials"]] = address_of(sums)
    words[_PLACE["phase"]] = 0
    if route.n_rows * route.fields["n_classes"] < PARALLEL_ELEMENTS:
        n_threads = 1
    kernel = kernel_address(route.walk.name, *storages)
    run_kernel(kernel, packed_plan(tuple(words), route.fixed), route.walk.scratch_bytes, route.n_blocks, n_threads)


def _walk_split(route: Route, storages: tuple[str, str], words: list[Any], n_threads: int, partials: Any) -> None:
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
                # rows far from 0: once more, their maximum subtracted first
                step(SUM_UP, count * n_parts)
                step(MERGE, count)
            if own[_PLACE["out"]]:
                step(FINISH, count * n_parts)


# --- small calls of shapes seen before ------------------------------------------------------------------------------------

#: (operation, dtype, shape) or (dtype, shape, dtype of targets, reduction, with gradient) -> a call that takes the arrays
prepared: dict[tuple[Any, ...], Any] = {}
#: a kept call has one plan and one scratch memory, which the GIL guards
_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
#: elements up to which a call's way through Python counts (1e6: 12 us of 200)
PREPARED_ELEMENTS = 1 << 20
#: shapes kept; past it all are forgotten (a program that goes through thousands of shapes gains nothing by them)
PREPARED_SHAPES = 256


def _prepare(
    key: tuple[Any, ...], entry: Any, storages: tuple[str, str], route: Route, extent: int, *more: int
) -> None:
    """Keep a call of contiguous arrays whose rows are one block: `entry` with all but the arrays given."""
    if not _can_prepare(route):
        return
    partials = (PLAN_BYTES + 63) // 64 * 64
    scratch = partials + 64
    memory = np.zeros(scratch + route.walk.scratch_bytes + 64, np.uint8)
    plan = memory[-address_of(memory) % 64 :]
    words = list(_NO_ADDRESSES)
    words[_PLACE["partials"]] = address_of(plan) + partials
    words[_PLACE["weight_total"]] = route.fields["n_classes"]
    packed = CHANGING_LAYOUT.pack(*words) + route.fixed
    plan[: len(packed)] = np.frombuffer(packed, np.uint8)
    kernel = kernel_address(route.walk.name, *storages)
    call = functools.partial(entry(), kernel, address_of(plan), address_of(plan) + scratch, extent, *more)
    call.memory = memory  # type: ignore[attr-defined]
    _keep(key, call)


def _keep(key: tuple[Any, ...], call: Any) -> None:
    if len(prepared) >= PREPARED_SHAPES:
        prepared.clear()
    prepared[key] = call


def _can_prepare(route: Route) -> bool:
    return route.walk.name != "split" and len(route.pieces) == 1 and route.fields["n_outer"] == 1 and _GIL


def _prepare_softmax_in_blocks(key: tuple[Any, ...], storages: tuple[str, str], route: Route, extent: int) -> None:
    """The same of a call of several blocks, without the GIL; what it does in Python takes 4 us, all checks take 12."""
    if not _can_prepare(route):
        return
    kernel = kernel_address(route.walk.name, *storages)
    serial = route.n_rows * route.fields["n_classes"] < PARALLEL_ELEMENTS
    logits_place, out_place = _PLACE["logits"], _PLACE["out"]

    def call(n_threads: int | None, x: Array, out: Array) -> float:
        x_address, out_address = address_of(x), address_of(out)
        flags = out.flags
        if not (x.flags.aligned and flags.aligned and flags.writeable) or 0 < abs(out_address - x_address) < extent:
            return REFUSED
        words: list[Any] = list(_NO_ADDRESSES)
        words[logits_place], words[out_place] = x_address, out_address
        count = 1 if serial else n_threads or threads.get_num_threads()
        run_kernel(kernel, packed_plan(tuple(words), route.fixed), route.walk.scratch_bytes, route.n_blocks, count)
        return 0.0

    _keep(key, call)


def _plain(array: Array) -> bool:
    return bool(array.flags.c_contiguous) and array.size > 0


def _plain_options(plan: LossPlan) -> bool:
    """Whether a call has class indices and contiguous arrays and no option but "mean" or "sum"."""
    return (
        not plan.probabilities
        and plan.reduction != "none"
        and plan.weight is None
        and plan.sample_weight is None
        and plan.class_mask is None
        and plan.probabilities_out is None
        and plan.normalizer is None
        and plan.ignore_index == -100
        and plan.label_smoothing == 0.0
        and plan.z_loss == 0.0
        and plan.logit_scale == 1.0
        and plan.softcap is None
        and isinstance(plan.upstream, float)
        and plan.upstream == 1.0
        and _plain(plan.logits)
        and _plain(plan.targets)
        and (plan.grad is None or _plain(plan.grad))
        and plan.logits.dtype.kind in "fV"
    )


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
    storages = (storage_of(x.dtype), "float64")
    route = arrays.route(storages[0], x.shape, 2 if code == LOG_SOFTMAX else 1, Options(code, NO_TARGETS))
    for offsets in route.pieces:
        _walk_over(route, storages, arrays.changing(offsets), n_threads, None)
    if code != LOGSUMEXP and _plain(x) and _plain(out) and x.dtype == out.dtype:
        key = (operation, x.dtype, x.shape)
        if route.n_blocks == 1:
            _prepare(key, small_softmax, storages, route, x.nbytes)
        elif x.size <= PREPARED_ELEMENTS:
            _prepare_softmax_in_blocks((*key, "in blocks"), storages, route, x.nbytes)


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
    ignore_index = int(plan.ignore_index)
    if not plan.probabilities and plan.targets.dtype == np.uint64 and ignore_index < 0:
        # no unsigned index is negative, though the kernels read those past 2**63 so
        ignore_index = -(2**63)
    changed = plan.softcap is not None or plan.logit_scale != 1.0
    spread = plan.probabilities or plan.label_smoothing != 0.0
    options = Options(
        LOSS,
        PROBABILITY_TARGETS if plan.probabilities else INDEX_TARGETS,
        0 if plan.probabilities else INDEX_CODES[storage_of(plan.targets.dtype)],
        ignore_index,
        float(plan.label_smoothing),
        float(plan.z_loss),
        float(plan.logit_scale),
        0.0 if plan.softcap is None else float(plan.softcap),
    )
    return options, 5 if plan.probabilities_out is not None else 4 if changed else 2 if spread else 1


def run_loss(plan: LossPlan) -> np.float64 | None:
    """The losses of a checked plan, and their gradient; the mean or sum, None with reduction "none"."""
    logits, targets = plan.logits, plan.targets
    storages = (storage_of(logits.dtype), storage_of(targets.dtype) if plan.probabilities else "float64")
    arrays = _loss_arrays(plan)
    options, areas = _loss_options(plan)
    route = arrays.route(storages[0], logits.shape, areas, options)
    others: dict[str, Any] = {"weight_total": logits.shape[-1]}
    held = None
    if plan.weight is not None:
        layout = STORAGES[storages[0]]
        held = np.zeros(logits.shape[-1] + layout.lanes, f"f{layout.arithmetic.bitwidth // 8}")
        held[: -layout.lanes] = plan.weight
        others["weight"], others["weight_vector"] = address_of(plan.weight), address_of(held)
        others["weight_total"] = math.fsum(plan.weight.tolist())

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
    if logits.size <= BLOCK_ELEMENTS and _plain_options(plan):
        key = (logits.dtype, logits.shape, targets.dtype, plan.reduction, plan.grad is not None)
        _prepare(key, small_loss, storages, route, logits.nbytes, int(plan.reduction == "mean"))
    total = _total(partials)
    if plan.reduction == "sum":
        return np.float64(total)
    if divisor == 0.0:
        if plan.empty == "zero" and plan.grad is not None:
            # also of rows with NaN whose classes weigh nothing
            plan.grad[...] = 0
        return np.float64(0.0 if plan.empty == "zero" else math.nan)
    return np.float64(total / divisor)


def _total(partials: list[Array]) -> float:
    """The sum of all blocks, rounded once; if it is not finite, the sum of the sums (their rests are NaN then)."""
    sums = partials[0] if len(partials) == 1 else np.concatenate(partials)
    values = sums.ravel().tolist()
    if all(map(math.isfinite, values)):
        return math.fsum(values)
    return float(sums[:, 0].sum())


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
    return math.fsum(sums)


def _raise_index_error(plan: LossPlan) -> None:
    """Name the first index out of range in the order of the caller's array."""
    targets, n_classes = plan.targets, plan.logits.shape[-1]
    for first in range(0, targets.size, SCAN_ROWS):
        some = targets.flat[first : first + SCAN_ROWS]
        wrong = ((some < 0) | (some >= n_classes)) & (some != plan.ignore_index)
        if wrong.any():
            raise index_error(targets, first + int(np.argmax(wrong)), n_classes)
