"""From a checked call to kernels: rows put in order, the walk chosen, threads, the sums of the losses.

`choose_walk` is the one place that decides which kernel runs. It looks at one row, its dtype and its layout, never at the
number of rows, the machine or the threads, so a row's bits don't depend on those.
"""

import ctypes
import functools
import math
import threading
from typing import NamedTuple

import numpy as np

from fastswl import threads
from fastswl.arguments import LossPlan, empty_error, index_error
from fastswl.compilation import DRIVER_SIGNATURE, compiled_address, kernel_signature
from fastswl.kernels.entry import small_loss, small_softmax
from fastswl.kernels.launch import COUNTER_BYTES, run_parallel
from fastswl.kernels.panel import panel_walk
from fastswl.kernels.plan import (
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    LOSS,
    NO_TARGETS,
    PLAN_LAYOUT,
    PROBABILITY_TARGETS,
    SOFTMAX,
    Plan,
)
from fastswl.kernels.row import (
    DESCRIBE,
    FINISH,
    MERGE,
    PART_BYTES,
    PART_VECTORS,
    SUM_UP,
    WHOLE_ROWS,
    row_walk,
)
from fastswl.kernels.rows import AGAIN, TABLE_BYTES
from fastswl.kernels.scan import SCAN_BYTES, SCAN_ROWS, scan_targets
from fastswl.kernels.targets import INDEX_CODES
from fastswl.simd import STORAGES, VECTOR_BYTES

OPERATIONS = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}

#: classes up to which a row of contiguous classes goes into a tile of rows
PANEL_CLASSES = 128
#: classes of the tiles that go through the stages together
STEP_CLASSES = 64
#: classes up to which the tile of rows that lie side by side stays in the second-level cache
STRIDED_CLASSES = 2048
#: classes from which on a row is cut into parts that all threads share, and computed twice
SPLIT_CLASSES = 131072
#: elements in a block: a thread's step, and what one partial sum of losses covers
BLOCK_ELEMENTS = 16384
#: elements below which no parallel region is started
PARALLEL_ELEMENTS = 32768
#: exponentials of a batch of short rows, held in the first-level cache
BATCH_ELEMENTS = 8192
#: bytes of results from which on they are written past the caches
STREAMING_BYTES = 16 << 20
#: bytes of the tables of rows that the split walk works on at once
SPLIT_TABLE_BYTES = 4 << 20

_EMPTY_PLAN = Plan(*(0,) * len(Plan._fields))._replace(logit_scale=1.0)
_KERNELS = {"panel": panel_walk, "strided": panel_walk, "row": row_walk, "split": row_walk, "scan": scan_targets}
_KERNEL_TYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 4)
_DRIVER_TYPE = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_int64,) * 6)
_compiled: dict = {}
_compile_lock = threading.RLock()
_own = threading.local()


class Walk(NamedTuple):
    """Which kernel walks over the rows, and in what steps."""

    name: str  # "panel", "strided", "row" or "split"
    tile_rows: int  # rows in a step
    tile_bytes: int  # of each tile of a step of several
    scratch_bytes: int  # a thread's


def choose_walk(storage: str, n_classes: int, class_stride: int, row_stride: int, areas: int) -> Walk:
    """The walk for rows of `n_classes`, whose classes and neighbours lie `class_stride` and `row_stride` bytes apart."""
    layout = STORAGES[storage]
    lanes = layout.lanes
    contiguous = class_stride == layout.itemsize or n_classes == 1
    side_by_side = row_stride == layout.itemsize and not contiguous
    in_panel = (contiguous or not side_by_side) and n_classes <= PANEL_CLASSES
    if in_panel or (side_by_side and n_classes <= STRIDED_CLASSES):
        tiles = max(1, min(4, STEP_CLASSES // n_classes))
        tile_bytes = TABLE_BYTES + areas * VECTOR_BYTES * n_classes
        return Walk("panel" if in_panel else "strided", tiles * lanes, tile_bytes, tiles * tile_bytes)
    part_bytes = VECTOR_BYTES * (PART_VECTORS + 1)
    if n_classes > SPLIT_CLASSES:
        return Walk("split", 1, 0, areas * part_bytes)
    tile_rows = min(lanes, max(1, BATCH_ELEMENTS // n_classes))
    vectors = -(-n_classes // lanes)
    n_parts = -(-vectors // PART_VECTORS)
    area = VECTOR_BYTES * (min(PART_VECTORS, vectors) + 1) * n_parts * tile_rows
    return Walk("row", tile_rows, 0, TABLE_BYTES + n_parts * tile_rows * PART_BYTES + 64 + areas * area)


# --- rows in order ------------------------------------------------------------------------------------------------------


def ordered_rows(shape: tuple, strides: list, leader: list) -> tuple[list, list]:
    """Axes of the rows merged where every array allows it: lengths, and for each array the strides.

    Axes of length 1 go, the others are put in order of the leader's strides, so that neighbours in memory are neighbours.
    """
    axes = [i for i, length in enumerate(shape) if length != 1]
    axes.sort(key=lambda i: -abs(leader[i]))
    lengths: list = []
    merged: list = [[] for _ in strides]
    for axis in axes:
        length = shape[axis]
        if lengths and all(
            own[-1] == array_strides[axis] * length for own, array_strides in zip(merged, strides, strict=True)
        ):
            lengths[-1] *= length
            for own, array_strides in zip(merged, strides, strict=True):
                own[-1] = array_strides[axis]
        else:
            lengths.append(length)
            for own, array_strides in zip(merged, strides, strict=True):
                own.append(array_strides[axis])
    while len(lengths) < 2:
        lengths.insert(0, 1)
        for own in merged:
            own.insert(0, 0)
    return lengths, merged


class _RowArrays:
    """The arrays of a call by their names in the plan, with the strides of their rows."""

    def __init__(self, shape: tuple):
        self.shape = shape
        self.names: list = []
        self.addresses: list = []
        self.strides: list = []
        self.fields: dict = {}

    def add(self, name: str, array: np.ndarray | None, with_classes: bool) -> None:
        if array is None:
            return
        strides = array.strides
        if with_classes:
            self.fields[f"{name}_class"] = strides[-1]
            strides = strides[:-1]
        self.names.append(name)
        self.addresses.append(array.__array_interface__["data"][0])
        self.strides.append(strides)

    def pieces(self):
        """Fields of the plan for each piece of the rows that two strides can describe."""
        lengths, merged = ordered_rows(self.shape, self.strides, list(self.strides[0]))
        outside = lengths[:-2]
        fields = dict(self.fields)
        fields["n_outer"], fields["n_inner"] = lengths[-2:]
        for name, strides in zip(self.names, merged, strict=True):
            fields[f"{name}_outer"], fields[f"{name}_inner"] = strides[-2:]
        for position in np.ndindex(*outside):
            for name, address, strides in zip(self.names, self.addresses, merged, strict=True):
                fields[name] = address + sum(i * stride for i, stride in zip(position, strides, strict=False))
            yield fields


# --- running a kernel ---------------------------------------------------------------------------------------------------


def _compiled_kernel(walk: str, storage: str, target_storage: str):
    key = (_KERNELS[walk], storage, target_storage)
    found = _compiled.get(key)
    if found is None:
        with _compile_lock:
            address = compiled_address(_KERNELS[walk], kernel_signature(storage, target_storage))
            found = _compiled[key] = (address, _KERNEL_TYPE(address))
    return found


def _compiled_driver():
    found = _compiled.get("driver")
    if found is None:
        with _compile_lock:
            threads.prepare_parallel()
            found = _compiled["driver"] = _DRIVER_TYPE(compiled_address(run_parallel, DRIVER_SIGNATURE))
            threads.threading_layer()
    return found


def _memory(name: str, size: int) -> int:
    """Address of `size` bytes of this thread's own, kept for the next call."""
    held = getattr(_own, name, None)
    if held is None or held.size < size + 64:
        held = np.empty(max(size, 4096) + 64, np.uint8)
        setattr(_own, name, held)
    return (held.ctypes.data + 63) // 64 * 64


def run_kernel(walk: str, storages: tuple, plan: Plan, scratch_bytes: int, n_blocks: int, n_threads: int) -> None:
    """Run a kernel over `n_blocks` blocks."""
    address, function = _compiled_kernel(walk, *storages)
    words = _memory("plan", PLAN_LAYOUT.size)
    ctypes.memmove(words, PLAN_LAYOUT.pack(*plan), PLAN_LAYOUT.size)
    scratch_bytes = (scratch_bytes + 4095) // 4096 * 4096 + 64
    n_threads = min(n_threads, n_blocks)
    if n_threads > 1:
        driver = _compiled_driver()
        context = threads.parallel_entry()
        if context is not None:
            scratch = _memory("scratch", COUNTER_BYTES + n_threads * scratch_bytes)
            with context:
                driver(address, words, scratch, scratch_bytes, n_blocks, n_threads)
            return
    function(None, None, words, _memory("scratch", scratch_bytes), 0, n_blocks)


def _run_rows(storages: tuple, fields: dict, n_areas: int, n_threads: int, partials: list | None) -> str:
    """Walk over one piece of the rows; the name of the walk. Sums of losses go to `partials`."""
    plan = _EMPTY_PLAN._replace(**fields)
    n_rows = plan.n_outer * plan.n_inner
    walk = choose_walk(storages[0], plan.n_classes, plan.logits_class, plan.logits_inner, n_areas)
    if walk.name == "split":
        _run_split(storages, plan, walk, n_threads, partials)
        return walk.name
    tiles = plan.n_outer * -(-plan.n_inner // walk.tile_rows)
    tiles_per_block = max(1, BLOCK_ELEMENTS // (walk.tile_rows * plan.n_classes))
    n_blocks = -(-tiles // tiles_per_block)
    sums = None
    if partials is not None:
        sums = np.empty((n_blocks, 2))
        partials.append(sums)
    plan = plan._replace(
        streaming=int(n_rows * plan.n_classes * STORAGES[storages[0]].itemsize > STREAMING_BYTES),
        tile_rows=walk.tile_rows,
        tile_bytes=walk.tile_bytes,
        tiles_per_block=tiles_per_block,
        phase=WHOLE_ROWS,
        partials=0 if sums is None else sums.ctypes.data,
    )
    if n_rows * plan.n_classes < PARALLEL_ELEMENTS:
        n_threads = 1
    run_kernel(walk.name, storages, plan, walk.scratch_bytes, n_blocks, n_threads)
    return walk.name


def _run_split(storages: tuple, plan: Plan, walk: Walk, n_threads: int, partials: list | None) -> None:
    """The split walk: every row's parts to all threads, twice, with a merge of each row between."""
    part_classes = PART_VECTORS * STORAGES[storages[0]].lanes
    n_parts = -(-plan.n_classes // part_classes)
    rows_at_once = max(1, SPLIT_TABLE_BYTES // (n_parts * PART_BYTES + TABLE_BYTES))
    names = [name[: -len("_inner")] for name in Plan._fields if name.endswith("_inner") and name != "n_inner"]
    for outer in range(plan.n_outer):
        for first in range(0, plan.n_inner, rows_at_once):
            count = min(rows_at_once, plan.n_inner - first)
            tables = np.zeros(count * TABLE_BYTES + 64, np.uint8)
            parts = np.empty((count, n_parts, PART_BYTES // 8))
            sums = np.empty((count, 2))
            if partials is not None:
                partials.append(sums)
            moved = {
                name: getattr(plan, name)
                + outer * getattr(plan, f"{name}_outer")
                + first * getattr(plan, f"{name}_inner")
                for name in names
                if getattr(plan, name) != 0
            }
            base = (tables.ctypes.data + 63) // 64 * 64
            part_plan = plan._replace(
                n_outer=1,
                n_inner=count,
                tile_rows=1,
                row_tables=base,
                row_parts=parts.ctypes.data,
                partials=sums.ctypes.data if partials is not None else 0,
                **moved,
            )

            def step(phase, units, part_plan=part_plan):
                run_kernel("split", storages, part_plan._replace(phase=phase), walk.scratch_bytes, units, n_threads)

            step(DESCRIBE, count)
            step(SUM_UP, count * n_parts)
            step(MERGE, count)
            offset = base - tables.ctypes.data
            again = [tables[offset + row * TABLE_BYTES + AGAIN :][:8].view(np.float64)[0] for row in range(count)]
            if any(again):
                # rows far from 0: once more, their maximum subtracted first
                step(SUM_UP, count * n_parts)
                step(MERGE, count)
            if part_plan.out != 0:
                step(FINISH, count * n_parts)


# --- small calls of shapes seen before ------------------------------------------------------------------------------------

#: (operation, dtype, shape) or (dtype, shape, dtype of targets, reduction, with gradient) -> a call that takes the arrays
prepared: dict = {}
#: shapes kept; past it all are forgotten (a program that goes through thousands of shapes gains nothing by them)
PREPARED_SHAPES = 256


def _prepare(key: tuple, entry, storages: tuple, fields: dict, n_areas: int, extent: int, *more: int) -> None:
    """Keep a call of contiguous arrays whose rows are one block: `entry` with all but the arrays given."""
    walk = choose_walk(storages[0], fields["n_classes"], fields["logits_class"], fields["logits_inner"], n_areas)
    if walk.name == "split" or fields["n_outer"] != 1:
        return
    tiles = -(-fields["n_inner"] // walk.tile_rows)
    if tiles > max(1, BLOCK_ELEMENTS // (walk.tile_rows * fields["n_classes"])):
        return
    memory = np.zeros(4096 + walk.scratch_bytes + 64, np.uint8)
    words = (memory.ctypes.data + 63) // 64 * 64
    plan = _EMPTY_PLAN._replace(**fields)._replace(
        tile_rows=walk.tile_rows,
        tile_bytes=walk.tile_bytes,
        tiles_per_block=tiles,
        phase=WHOLE_ROWS,
        partials=words + PLAN_LAYOUT.size // 64 * 64 + 64,
    )
    ctypes.memmove(words, PLAN_LAYOUT.pack(*plan), PLAN_LAYOUT.size)
    address, _ = _compiled_kernel(walk.name, *storages)
    call = functools.partial(entry(), address, words, words + 4032, extent, *more)
    call.memory = memory  # type: ignore[attr-defined]
    if len(prepared) >= PREPARED_SHAPES:
        prepared.clear()
    prepared[key] = call


# --- what the public functions call -------------------------------------------------------------------------------------


def _plain(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.size > 0


def _storage(array: np.ndarray) -> str:
    return array.dtype.name


def run_softmax_family(operation: str, x: np.ndarray, out: np.ndarray, n_threads: int) -> None:
    """Softmax, log_softmax or logsumexp of `x` (class axis last) into `out`."""
    code = OPERATIONS[operation]
    arrays = _RowArrays(x.shape[:-1])
    arrays.add("logits", x, True)
    arrays.add("row_values" if code == LOGSUMEXP else "out", out, code != LOGSUMEXP)
    storage = _storage(x)
    common = {"operation": code, "n_classes": x.shape[-1], "kind": NO_TARGETS}
    for fields in arrays.pieces():
        fields.update(common)
        areas = 2 if code == LOG_SOFTMAX else 1
        _run_rows((storage, "float64"), fields, areas, n_threads, None)
        if code != LOGSUMEXP and x.size <= BLOCK_ELEMENTS and _plain(x) and _plain(out) and x.dtype == out.dtype:
            _prepare((operation, x.dtype, x.shape), small_softmax, (storage, "float64"), fields, areas, x.nbytes)


def run_loss(plan: LossPlan) -> np.float64 | None:
    """The losses of a checked plan, and their gradient; the mean or sum, None with reduction "none"."""
    logits, targets = plan.logits, plan.targets
    n_classes = logits.shape[-1]
    arrays = _RowArrays(logits.shape[:-1])
    arrays.add("logits", logits, True)
    arrays.add("targets", targets, plan.probabilities)
    arrays.add("sample_weight", plan.sample_weight, False)
    upstream = plan.upstream
    if isinstance(upstream, np.ndarray):
        arrays.add("upstream", upstream, False)
        upstream = 1.0
    arrays.add("mask", plan.class_mask, True)
    arrays.add("row_values", plan.loss, False)
    arrays.add("out", plan.grad, True)
    arrays.add("softmax", plan.probabilities_out, True)
    storage = _storage(logits)
    target_storage = _storage(targets) if plan.probabilities else "float64"
    common = {
        "operation": LOSS,
        "n_classes": n_classes,
        "kind": PROBABILITY_TARGETS if plan.probabilities else INDEX_TARGETS,
        "index_code": 0 if plan.probabilities else INDEX_CODES[targets.dtype.name],
        "ignore_index": int(max(-(2**63), min(plan.ignore_index, 2**63 - 1))),
        "weight_total": float(n_classes),
        "label_smoothing": float(plan.label_smoothing),
        "z_loss": float(plan.z_loss),
        "logit_scale": float(plan.logit_scale),
        "softcap": 0.0 if plan.softcap is None else float(plan.softcap),
        "row_factor": float(upstream),
    }
    if not plan.probabilities and targets.dtype.name == "uint64" and plan.ignore_index < 0:
        common["ignore_index"] = -(2**63)
    weight_vector = None
    if plan.weight is not None:
        layout = STORAGES[storage]
        weight_vector = np.zeros(n_classes + layout.lanes, f"f{layout.arithmetic.bitwidth // 8}")
        weight_vector[:n_classes] = plan.weight
        common["weight"] = plan.weight.ctypes.data
        common["weight_vector"] = weight_vector.ctypes.data
        common["weight_total"] = math.fsum(plan.weight.tolist())
    divisor = _divisor(plan, arrays, common)
    factor = 1.0
    if plan.reduction == "mean":
        if plan.normalizer is not None:
            divisor = plan.normalizer
        if divisor == 0.0 and plan.empty == "raise":
            raise empty_error()
        if divisor == 0.0 and plan.empty == "zero":
            common["row_factor"] = 0.0
        else:
            factor = math.nan if divisor == 0.0 else divisor
            common["row_factor"] = common["row_factor"] / factor if divisor != 0.0 else math.nan
    spread = plan.probabilities or plan.label_smoothing != 0.0
    areas = 1 + spread
    if plan.softcap is not None or plan.logit_scale != 1.0:
        areas = 4
    if plan.probabilities_out is not None:
        areas = 5
    partials: list | None = None if plan.reduction == "none" else []
    for fields in arrays.pieces():
        fields.update(common)
        _run_rows((storage, target_storage), fields, areas, plan.n_threads, partials)
    if _plain_options(plan) and logits.size <= BLOCK_ELEMENTS and len(arrays.names) <= 3:
        key = (logits.dtype, logits.shape, targets.dtype, plan.reduction, plan.grad is not None)
        is_mean = int(plan.reduction == "mean")
        _prepare(key, small_loss, (storage, target_storage), fields, areas, logits.nbytes, is_mean)
    if partials is None:
        return None
    total = math.fsum(np.concatenate(partials).ravel().tolist()) if _all_finite(partials) else _plain_sum(partials)
    if plan.reduction == "sum":
        return np.float64(total)
    if divisor == 0.0:
        return np.float64(0.0 if plan.empty == "zero" else math.nan)
    return np.float64(total / divisor)


def _plain_options(plan: LossPlan) -> bool:
    """Whether a call has class indices and contiguous arrays and no option but "mean" or "sum"."""
    return (
        not plan.probabilities
        and plan.reduction != "none"
        and plan.weight is None
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


def _all_finite(partials: list) -> bool:
    return all(np.isfinite(sums).all() for sums in partials)


def _plain_sum(partials: list) -> float:
    # an infinite sum leaves NaN as its rest: the sums alone tell
    with np.errstate(invalid="ignore"):
        return float(np.sum([sums[:, 0].sum() for sums in partials]))


def _divisor(plan: LossPlan, arrays: _RowArrays, common: dict) -> float:
    """Check the class indices, and sum up what the mean divides by."""
    total = 0.0
    if plan.probabilities:
        if plan.sample_weight is None:
            return float(math.prod(arrays.shape))
        if plan.reduction != "mean":
            return total
    sums = []
    for fields in arrays.pieces():
        scan = _EMPTY_PLAN._replace(**fields, **common)
        n_blocks = -(-(scan.n_outer * scan.n_inner) // SCAN_ROWS)
        results = np.empty((n_blocks, SCAN_BYTES // 8))
        run_kernel(
            "scan",
            ("float64", "float64"),
            scan._replace(partials=results.ctypes.data),
            64,
            n_blocks,
            plan.n_threads,
        )
        bad = results[:, 0].view(np.int64)
        if (bad >= 0).any():
            _raise_index_error(plan)
        sums.append(results[:, 1:])
    return math.fsum(np.concatenate(sums).ravel().tolist())


def _raise_index_error(plan: LossPlan) -> None:
    targets, n_classes = plan.targets, plan.logits.shape[-1]
    wrong = ((targets < 0) | (targets >= n_classes)) & (targets != plan.ignore_index)
    raise index_error(targets, int(np.argmax(wrong.ravel())), n_classes)
