"""Calls whose arrays lie against memory that may not be touched; run as a process of its own, since a fault ends it.

python tests/guarded.py [seed [calls]]: prints the number of calls. A read or a write one byte too far is a SIGSEGV, and
`faulthandler` says where; the call that did it is the last line of the file named by GUARDED_LOG.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import math
import mmap
import os
import sys

import numpy as np
from problems import soft_targets

import fastswl as swl
from fastswl import dispatch, lazy, prepared, running, threads, walks

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

PAGE = mmap.PAGESIZE
FILLER = 0xA5
_LIBC = ctypes.CDLL(None, use_errno=True)

# (classes, rows): every kind of remainder of the steps, tiles, batches and parts
SHAPES = {
    "panel": (
        (1, 2, 3, 4, 5, 7, 10, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 159, 257, 383),
        (1, 2, 5, 15, 16, 17, 33, 67),
    ),
    "row": ((641, 642, 655, 767, 1000, 1023, 2049, 2079, 3001, 4096, 4097, 4111, 8193, 9001), (1, 2, 3, 5, 17)),
    "parallel": ((1, 3, 10, 100, 131, 401, 1000, 9001), (0,)),  # as many rows as make 40,000 logits
}
LAYOUTS = ("contiguous", "sliced rows", "sliced classes", "backwards", "side by side", "images", "in steps")
INDEX_DTYPES = tuple(np.dtype(code) for code in "bBhHiIlLqQ")


class Guard:
    """Copies of arrays whose first or last byte lies beside an inaccessible page."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.held: list[tuple[mmap.mmap, int, np.ndarray, int, int]] = []

    def place(self, view: np.ndarray) -> np.ndarray:
        """A copy with the same strides; all that lies around its extent is filler."""
        if view.size == 0:
            return view
        low, high = np.lib.array_utils.byte_bounds(view)
        extent = high - low
        inner = -(-extent // PAGE) * PAGE
        memory = mmap.mmap(-1, inner + 2 * PAGE)
        handle = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(handle)
        del handle
        for page in (address, address + PAGE + inner):
            if _LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        usable = np.frombuffer(memory, np.uint8, inner, PAGE)
        usable[:] = FILLER
        begin = inner - extent if self.at_end else 0
        offset = begin + view.__array_interface__["data"][0] - low
        copy = np.ndarray(view.shape, view.dtype, memory, PAGE + offset, view.strides)
        copy[...] = view
        self.held.append((memory, address, usable, begin, extent))
        return copy

    def check_and_free(self) -> None:
        """See that nothing around the arrays has changed, and give the pages back."""
        for _, _, usable, begin, extent in self.held:
            assert (usable[:begin] == FILLER).all(), "written before an array"
            assert (usable[begin + extent :] == FILLER).all(), "written behind an array"
        self.held.clear()


def shaped(rng, kind, n_classes, n_rows, layout, dtype):
    """(logits with the class axis anywhere, that axis)."""

    def values(*shape):
        x = rng.normal(0, 4, shape)
        return (x if np.dtype(dtype).kind in "fV" else np.abs(x)).astype(dtype)

    match layout:
        case "contiguous":
            return values(n_rows, n_classes), -1
        case "sliced rows":
            return values(2 * n_rows, n_classes)[::2], -1
        case "sliced classes":
            return values(n_rows, n_classes + 3)[:, 2:-1], -1
        case "backwards":
            return values(n_rows, n_classes)[::-1, ::-1], -1
        case "side by side":
            return values(n_classes, n_rows), 0
        case "images":
            return values(2, n_classes, max(1, n_rows // 3), 3), 1
        case _:
            return values(n_rows, 3 * n_classes)[:, ::3], -1


def options_for(rng, x, axis, indices):
    """Some of the options, as arrays where they may be arrays."""
    n_classes = x.shape[axis]
    rows = tuple(n for i, n in enumerate(x.shape) if i != axis % x.ndim)
    options: dict[str, object] = {}
    chosen = rng.random(9) < 0.25
    if chosen[0]:
        options["weight"] = rng.random(n_classes)
    if chosen[1]:
        options["sample_weight"] = rng.integers(0, 3, rows).astype(np.float64)
    if chosen[2]:
        options["class_mask"] = rng.random(n_classes if rng.random() < 0.5 else x.shape) < 0.8
    if chosen[3]:
        options["label_smoothing"] = float(rng.choice([0.125, 1.0]))
    if chosen[4]:
        options["z_loss"] = 0.25
    if chosen[5]:
        options["logit_scale"] = 1.25
    if chosen[6]:
        options["softcap"] = 6.0
    if chosen[7] and indices:
        options["ignore_index"] = 0
    if chosen[8]:
        options["reduction"] = "none"
        options["upstream"] = rng.normal(size=rows)
    else:
        options["reduction"] = str(rng.choice(["mean", "sum"]))
    return options


class GuardedNumPy:
    """NumPy for the dispatch and for scratch memory: what it allocates lies against an inaccessible page, too."""

    def __init__(self) -> None:
        self.guard = Guard(True)

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        return self.guard.place(np.full(shape, 0x7F, dtype))

    def zeros(self, shape, dtype=np.float64):
        return self.guard.place(np.zeros(shape, dtype))

    def scratch(self, size):
        # it begins at a multiple of 64; pages do
        rounded = (size + 63) // 64 * 64
        memory = self.guard.place(np.full(rounded, 0x7F, np.uint8))
        return memory, memory.ctypes.data


@contextlib.contextmanager
def guarded_internals():
    """Scratch memory and the dispatch's own arrays against inaccessible pages."""
    internals = GuardedNumPy()
    scratch = running._scratch
    dispatch.np = prepared.np = internals
    running._scratch = internals.scratch
    try:
        yield internals
    finally:
        dispatch.np = prepared.np = np
        running._scratch = scratch


@contextlib.contextmanager
def crossovers(**values):
    """Other crossovers of `walks`, so that small arrays take the ways of large ones."""
    before = {name: getattr(walks, name) for name in values}
    walks.__dict__.update(values)
    walks.find_route.cache_clear()
    lazy.prepared.clear()
    try:
        yield
    finally:
        walks.__dict__.update(before)
        walks.find_route.cache_clear()
        lazy.prepared.clear()


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def one_call(rng, guard, kind, dtype, log):
    """A call on ordinary arrays and on guarded ones: the same bits, and again (the second may be a kept small call)."""
    classes, row_counts = SHAPES[kind]
    n_classes = int(rng.choice(classes))
    n_rows = int(rng.choice(row_counts)) or -(-40_000 // n_classes) + int(rng.integers(0, 20))
    layout = str(rng.choice(LAYOUTS, p=[0.4, *[0.1] * 6]))
    n_threads = 2 if kind == "parallel" else 1
    x, axis = shaped(rng, kind, n_classes, n_rows, layout, dtype)
    rows = tuple(n for i, n in enumerate(x.shape) if i != axis % x.ndim)
    result = np.dtype(np.float64) if np.dtype(dtype).kind in "iub" else x.dtype
    loss_dtype = np.dtype(np.float64) if result == np.float64 else np.dtype(np.float32)
    in_place = bool(rng.random() < 0.2) and result == x.dtype
    function = str(rng.choice(["softmax", "log_softmax", "logsumexp", "value", "value_and_grad", "value_and_grad"]))
    log(f"{kind} {function} {dtype} C={n_classes} {layout} {x.shape} in_place={in_place} end={guard.at_end}")
    place = guard.place

    def empty_like_x():
        # an output of the same order of axes as the logits, without their gaps and directions
        return np.empty_like(x, result)

    if function in ("softmax", "log_softmax", "logsumexp"):
        call = getattr(swl, function)
        expected = call(x, axis, n_threads=n_threads)
        for _ in range(2):
            logits = place(x)
            out = place(np.empty(rows, result)) if function == "logsumexp" else None
            if out is None:
                out = logits if in_place else place(empty_like_x())
            call(logits, axis, out=out, n_threads=n_threads)
            assert same(np.ascontiguousarray(out), np.ascontiguousarray(expected)), "other bits"
        return
    indices = bool(rng.random() < 0.6)
    if indices:
        index_dtype = INDEX_DTYPES[rng.integers(len(INDEX_DTYPES))]
        targets = rng.integers(0, min(n_classes, np.iinfo(index_dtype).max), rows).astype(index_dtype)
    else:
        targets = soft_targets(rng, x, axis, result)
    plain = bool(rng.random() < 0.4)
    options = {} if plain else options_for(rng, x, axis, indices)
    log(f"  targets {targets.dtype} {targets.shape}, {sorted(options)}")
    upstream = options.pop("upstream", None)
    per_sample = options.get("reduction") == "none"
    with_grad = function == "value_and_grad"
    if with_grad and upstream is not None:
        options["upstream"] = upstream
    call = swl.cross_entropy_value_and_grad if with_grad else swl.cross_entropy
    expected = call(x, targets, axis, n_threads=n_threads, **options)
    for _ in range(2):
        logits = place(x)
        arguments = {k: place(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        out = None
        if per_sample and rows:
            out = arguments["out"] = place(np.empty(rows, loss_dtype))
        if with_grad:
            arguments["grad_out"] = logits if in_place else place(empty_like_x())
        value = call(logits, place(targets), axis, n_threads=n_threads, **arguments)
        loss = value.loss if with_grad else value
        assert same(loss, expected.loss if with_grad else expected), "another loss"
        if with_grad:
            grad = np.ascontiguousarray(value.grad)
            assert same(grad, np.ascontiguousarray(expected.grad)), "another gradient"


def batches(dtype, at_end):
    """Rows of a batch, of which the last may be the first in memory, or not the only one that ends near the end."""
    x = np.random.default_rng(0).normal(0, 4, (37, 250)).astype(dtype)
    targets = np.arange(37)
    overlapping = np.lib.stride_tricks.sliding_window_view(x.ravel()[: 250 + 36], 250)
    for view in (x, x[::-1], overlapping):
        logits = np.ascontiguousarray(view)
        guard = Guard(at_end)
        placed, out = guard.place(view), guard.place(np.empty_like(logits))
        assert same(swl.softmax(placed, out=out), swl.softmax(logits)), "other bits"
        loss, grad = swl.cross_entropy_value_and_grad(placed, targets, reduction="none", grad_out=out)
        expected = swl.cross_entropy_value_and_grad(logits, targets, reduction="none")
        assert same(loss, expected.loss), "another loss"
        assert same(grad, expected.grad), "another gradient"
        del placed, out, grad
        guard.check_and_free()


def main(seed: int = 0, calls: int = 400) -> None:
    faulthandler.enable()
    rng = np.random.default_rng(seed)
    path = os.environ.get("GUARDED_LOG")
    file = open(path, "w") if path else None

    def log(line):
        if file:
            print(line, file=file, flush=True)

    dtypes = ["float32", "float64", "float16", *([ml_dtypes.bfloat16] if ml_dtypes else [])]
    small = {"STREAMING_BYTES": 16}
    # a call that is shared is, whenever the last one was
    threads.AWAKE_SECONDS = math.inf
    ways = [
        ("panel", {}),
        ("panel", small),
        ("row", {}),
        ("row", small),
        ("row", {"SPLIT_CLASSES": 128}),
        ("row", {"SPLIT_CLASSES": 128, **small}),
        ("parallel", {}),
        ("parallel", small),
    ]
    # (a vector of float32 may be read without the numbers past its end, where the processor has such instructions)
    for dtype, at_end in itertools.product(("float32", "float16"), (False, True)):
        log(f"batches {dtype} end={at_end}")
        batches(dtype, at_end)
        lazy.prepared.clear()
    done = 0
    while done < calls:
        kind, values = ways[rng.integers(len(ways))]
        with crossovers(**values), guarded_internals() as internals:
            for _ in range(25):
                dtype = dtypes[rng.integers(len(dtypes))]
                if rng.random() < 0.1:
                    dtype = ("int8", "uint16", "bool")[rng.integers(3)]
                guard = Guard(bool(rng.random() < 0.6))
                log(f"{done} {values}")
                one_call(rng, guard, kind, np.dtype(dtype), log)
                guard.check_and_free()
                done += 1
            lazy.prepared.clear()  # these hold plans in guarded memory
            internals.guard.check_and_free()
    print(done)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
