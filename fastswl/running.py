"""Running a compiled kernel over blocks: its address, this thread's memory, one thread or several."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastswl import threads
from fastswl.compilation import DRIVER_SIGNATURE, compiled_address, compiled_entry, kernel_signature
from fastswl.kernels.entry import run_serial
from fastswl.kernels.launch import COUNTER_BYTES, run_parallel
from fastswl.kernels.panel import panel_walk
from fastswl.kernels.plan import CHANGING_LAYOUT, PLAN_BYTES
from fastswl.kernels.row import row_walk
from fastswl.kernels.scan import scan_targets
from fastswl.kernels.split import split_walk

_KERNELS = {"panel": panel_walk, "strided": panel_walk, "row": row_walk, "split": split_walk, "scan": scan_targets}
_addresses: dict[tuple[str, str, str], int] = {}
_entries: dict[str, Callable[..., Any]] = {}
_compile_lock = threading.RLock()
_FIXED = CHANGING_LAYOUT.size


def kernel_address(walk: str, storage: str, target_storage: str) -> int:
    """Compile a kernel for a pair of storages, if that has not been done: its address."""
    key = (walk, storage, target_storage)
    address = _addresses.get(key)
    if address is None:
        with _compile_lock:
            address = _addresses[key] = compiled_address(_KERNELS[walk], kernel_signature(storage, target_storage))
    return address


def _serial_entry() -> Callable[..., Any]:
    with _compile_lock:
        entry = _entries["serial"] = run_serial()
    return entry


def _parallel_entry() -> Callable[..., Any]:
    with _compile_lock:
        threads.prepare_parallel()
        entry = compiled_entry(run_parallel, DRIVER_SIGNATURE)
        threads.threading_layer()
        _entries["parallel"] = entry
    return entry


class _OwnMemory(threading.local):
    """A plan and scratch memory of each Python thread, kept from call to call."""

    def __init__(self) -> None:
        self.plan = bytearray(PLAN_BYTES)
        self.plan_address = ctypes.addressof((ctypes.c_char * PLAN_BYTES).from_buffer(self.plan))
        self.reserve(65536)

    def reserve(self, size: int) -> None:
        self.size = size
        self.scratch = np.empty(size + 64, np.uint8)
        self.scratch_address = (self.scratch.ctypes.data + 63) // 64 * 64


_own = _OwnMemory()


def write_plan(changing: tuple, fixed: bytes) -> int:
    """Lay a plan into this thread's memory: its address, good until the next call."""
    CHANGING_LAYOUT.pack_into(_own.plan, 0, *changing)
    _own.plan[_FIXED:] = fixed
    return _own.plan_address


def run_kernel(kernel: int, plan: int, scratch_bytes: int, n_blocks: int, n_threads: int) -> None:
    """Run the kernel at an address over its blocks, in at most `n_threads` threads."""
    if n_threads > 1 and n_blocks > 1:
        entry = _entries.get("parallel") or _parallel_entry()
        context = threads.parallel_entry()
        if context is not None:
            n_threads = min(n_threads, n_blocks)
            thread_bytes = COUNTER_BYTES + (scratch_bytes + 4159) // 64 * 64
            size = n_threads * thread_bytes
            if size > _own.size:
                _own.reserve(size)
            with context:
                entry(kernel, plan, _own.scratch_address, thread_bytes, n_blocks, n_threads)
            return
    if scratch_bytes > _own.size:
        _own.reserve(scratch_bytes)
    (_entries.get("serial") or _serial_entry())(kernel, plan, _own.scratch_address, n_blocks)
