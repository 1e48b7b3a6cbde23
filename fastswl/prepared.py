"""Calls of shapes seen before, kept ready: contiguous arrays, options that are numbers, and weights of classes or of rows.

The general way through Python takes 11 to 16 us, as much as a kernel of 50,000 logits; a kept call takes 1 to 4. All that does
not change between calls of the same shapes stands in a plan; a native entry fills in the addresses and looks at what can differ
between arrays of the same shape.
"""

import functools
import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fastswl import threads
from fastswl.arguments import (
    DEFAULT_EMPTY,
    DEFAULT_UPSTREAM,
    LossPlan,
)
from fastswl.kept import REFUSED, key_of_weights
from fastswl.kernels.entry import small_loss, small_softmax, small_weighted_loss
from fastswl.kernels.plan import BEHIND_PLAN, CHANGING, CHANGING_LAYOUT, Plan
from fastswl.kernels.scan import SCAN_ROWS
from fastswl.running import Storages, address_of, as_words, kernel_address, run_kernel_at
from fastswl.walks import Route

Array = npt.NDArray[Any]
#: (operation, dtype, shape) or (dtype, shape, dtype and shape of targets, number of results, scalars, which end in dtype and shape of
#: weights where there are any) -> a call that takes the arrays, and, if it has the attribute `in_blocks`, a number of threads
prepared: dict[tuple[Any, ...], Any] = {}
#: a kept call of one block has one plan and one scratch memory, which the GIL guards
_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
#: elements up to which a call's way through Python counts (1e6: 12 us of 200)
PREPARED_ELEMENTS = 1 << 20
#: scratch memory that a kept call may hold; one that needs more uses its thread's
HELD_BYTES = 1 << 17
#: shapes kept; past it all are forgotten (a program that goes through thousands of shapes gains nothing by them)
PREPARED_SHAPES = 256
#: of weights that a kept call takes as they are
WEIGHT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
#: weights up to which `math.fsum` is no slower
FEW_WEIGHTS = 160


def keep_softmax(key: tuple[Any, ...], storages: Storages, route: Route, x: Array, out: Array) -> Any:
    """Keep a call of softmax, log_softmax or logsumexp, and return it if it is one of a single block."""
    if not (_plain(x) and _plain(out) and x.dtype.kind in "fV"):
        return None
    return _keep(key, storages, route, small_softmax, x)


def keep_loss(storages: Storages, route: Route, plan: LossPlan, of_weights: dict[str, Any]) -> Any:
    """Keep a call of the loss, with gradient or without, or of the layer; return it if it is one of a single block.

    `of_weights` are arrays made of class weights, and the sum of these, for the plan, where targets have mass on every class: it is
    kept for calls with the same weights.
    """
    if not _can_be_kept(plan):
        return None
    logits, targets = plan.logits, plan.targets
    results = 2 if plan.probabilities_out is not None else 1 if plan.grad is not None else 0
    scalars = (
        plan.reduction, plan.ignore_index, plan.label_smoothing, plan.z_loss, plan.logit_scale, plan.softcap,
    )  # fmt: skip
    key: tuple[Any, ...] = (logits.dtype, logits.shape, targets.dtype, targets.shape, results, scalars)
    is_mean = int(plan.reduction == "mean")
    of_rows = plan.weight is None
    weight = plan.sample_weight if of_rows else plan.weight
    # (it is no address yet, but says that there are losses of rows)
    held = of_weights if plan.loss is None else {**of_weights, "row_values": 1}
    if weight is None:
        return _keep(key, storages, route, small_loss, logits, is_mean, held=held)
    room, n_weights = (0, 0) if of_weights else (_end_of_sums(route), weight.size)
    # the checks have made them float64 (the last dtype), whatever they were; the next call's are as the caller has them
    for dtype in WEIGHT_DTYPES:
        key = (*key[:5], (*scalars, *key_of_weights(dtype, weight.shape, of_rows)))
        more = is_mean, room, int(dtype.itemsize == 4), int(of_rows)
        call = _keep(key, storages, route, small_weighted_loss, logits, *more, n_weights=n_weights, held=held)
    return call


def _end_of_sums(route: Route) -> int:
    """Return where the sums of the blocks end, which follow the plan; class weights follow these."""
    return BEHIND_PLAN + 16 * route.n_blocks


def _keep(
    key: tuple[Any, ...],
    storages: Storages,
    route: Route,
    entry: Any,
    logits: Array,
    *more: int,
    n_weights: int = 0,
    held: dict[str, Any] | None = None,
) -> Any:
    if route.walk.name == "split" or len(route.pieces) > 1 or route.fields["n_outer"] > 1:
        return None
    if logits.size > PREPARED_ELEMENTS:
        return None
    seen = prepared.get(key)
    if seen is not None and _holds(seen, held):
        # a call like one that is kept, which came another way (a list of weights)
        return None if hasattr(seen, "in_blocks") else seen
    if len(prepared) >= PREPARED_SHAPES:
        prepared.clear()
    kernel = kernel_address(route.walk.name, *storages)
    words: list[Any] = [0] * CHANGING
    for name, value in {"weight_total": route.fields["n_classes"], **as_words(held or {})}.items():
        words[Plan._fields.index(name)] = value
    packed = CHANGING_LAYOUT.pack(*words) + route.fixed
    size = _end_of_sums(route) + 8 * n_weights
    few_bytes = route.walk.scratch_bytes + size <= HELD_BYTES
    is_one_block = route.n_blocks == 1 and route.work < threads.PARALLEL_WORK and few_bytes
    if is_one_block and not _GIL:
        return None
    make = _one_block if is_one_block else _in_blocks
    call = prepared[key] = make(kernel, packed, size, route, entry(), logits.nbytes, more)
    call.held = held
    return call if is_one_block else None


def _holds(call: Any, held: dict[str, Any] | None) -> bool:
    """Whether a kept call holds the same class weights, if any."""
    return not held or "weight" not in held or np.array_equal(call.held["weight"], held["weight"])


def _one_block(
    kernel: int, packed: bytes, size: int, route: Route, entry: Any, extent: int, more: tuple[int, ...]
) -> Any:
    """Bind everything but the arrays; the call stays in this thread and holds the GIL."""
    scratch = (size + 63) // 64 * 64
    memory = np.zeros(scratch + route.walk.scratch_bytes + 64, np.uint8)
    plan = memory[-address_of(memory) % 64 :]
    plan[: len(packed)] = np.frombuffer(packed, np.uint8)
    call = functools.partial(entry, kernel, address_of(plan), address_of(plan) + scratch, extent, *more)
    call.memory = memory  # type: ignore[attr-defined]
    return call


def _in_blocks(
    kernel: int, packed: bytes, size: int, route: Route, entry: Any, extent: int, more: tuple[int, ...]
) -> Any:
    """Make the same for several blocks, or one that is large, without the GIL: each call that runs has a plan of its own."""
    n_blocks, scratch_bytes, work = route.n_blocks, route.walk.scratch_bytes, route.work
    is_loss = len(more) > 0
    template = np.zeros(size, np.uint8)
    sums_end = _end_of_sums(route)
    template[: len(packed)] = np.frombuffer(packed, np.uint8)
    # of calls that are over (a new one takes 0.4 us): the plan, its address, and the sums of its blocks
    spare: list[tuple[Array, int, Array]] = []

    def call(*arrays: Array, n_threads: int | None = None) -> float:
        try:
            own = spare.pop()
        except IndexError:
            plan = template.copy()
            own = plan, address_of(plan), plan[BEHIND_PLAN:sums_end].view(np.float64)
        _, address, sums = own
        # no kernel: the entry fills in the plan, and says what the sum is to be divided by
        divisor: float = entry(0, address, 0, extent, *more, *arrays)
        if divisor == REFUSED:
            return REFUSED
        count = threads.threads_for(work, n_threads or threads.get_num_threads())
        run_kernel_at(kernel, address, scratch_bytes, n_blocks, count)
        result = total_of_blocks(sums) / divisor if is_loss else 0.0
        spare.append(own)
        return result

    call.in_blocks = True  # type: ignore[attr-defined]
    return call


def total_of_blocks(sums: Array) -> float:
    """Return the sum of all blocks, rounded once; if it is not finite, the sum of the sums (their rests are NaN then)."""
    values = sums.ravel().tolist()
    return exact_sum(values) if all(map(math.isfinite, values)) else float(sum(values[::2]))


def exact_sum(values: list[float]) -> float:
    """Return the sum of finite numbers rounded once; infinite where it is too large, which `math.fsum` takes for an error."""
    try:
        return math.fsum(values)
    except OverflowError:
        return float(sum(values))


def sum_of_weights(weights: Array) -> float:
    """Return the sum of finite float64 numbers that are not negative, rounded as if once (within 2**-30 more).

    Of many not by `math.fsum`, which takes 25 ns for each: their heads, multiples of 2**-26 of the largest, add up exactly in any
    order (Rump, Ogita & Oishi, SIAM J. Sci. Comput. 31, 2008), and what rounding does to the sum of the rests counts no more.
    (5,000: 125 to 8 us.)
    """
    largest = float(weights.max(initial=0.0))
    if not (FEW_WEIGHTS < weights.size <= 2**20 and 2.0**-900 < largest < 2.0**900):
        return exact_sum(weights.tolist())
    rounding = 1.5 * 2.0 ** (math.frexp(largest)[1] + 26)
    heads = (weights + rounding) - rounding
    return float(heads.sum()) + float((weights - heads).sum())


def _plain(array: Array) -> bool:
    return bool(array.flags.c_contiguous) and array.size > 0


def _weights_can_be_kept(plan: LossPlan) -> bool:
    """Whether class weights are few enough to be held, and what the mean divides by is one sum."""
    n_classes = plan.logits.shape[-1]
    return 16 * n_classes <= HELD_BYTES and math.prod(plan.logits.shape[:-1]) <= SCAN_ROWS


def _weights_of_rows_can_be_kept(plan: LossPlan) -> bool:
    """Whether weights of rows are one each, few enough to be held, and the only ones."""
    weight = plan.sample_weight
    return plan.weight is None and weight is not None and _plain(weight) and 16 * weight.size <= HELD_BYTES


def _losses_can_be_kept(plan: LossPlan) -> bool:
    """Whether the losses of rows are an array that an entry can write to, in place of a softmax."""
    return plan.loss is not None and plan.loss.ndim > 0 and _plain(plan.loss) and plan.probabilities_out is None


def _can_be_kept(plan: LossPlan) -> bool:
    """Whether a call has contiguous arrays, and no option that is another array or has to do with the divisor."""
    return (
        (plan.loss is None or _losses_can_be_kept(plan))
        and (plan.weight is None or _weights_can_be_kept(plan))
        and (plan.sample_weight is None or _weights_of_rows_can_be_kept(plan))
        and plan.class_mask is None
        and plan.normalizer is None
        and plan.empty == DEFAULT_EMPTY
        and isinstance(plan.upstream, float)
        and plan.upstream == DEFAULT_UPSTREAM
        and _plain(plan.logits)
        and _plain(plan.targets)
        and (plan.grad is None or _plain(plan.grad))
        and (plan.probabilities_out is None or _plain(plan.probabilities_out))
        and plan.logits.dtype.kind in "fV"
    )
