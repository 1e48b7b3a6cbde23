"""Running a compiled kernel over blocks: its address, this thread's memory, one thread or several."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastswl import forks, threads
from fastswl.compilation import compiled_address, kernel_signature
from fastswl.kernels.batch_walk import batch_walk
from fastswl.kernels.entry import run_serial
from fastswl.kernels.launch import HEAD_BYTES
from fastswl.kernels.panel_walks import panel_walk, tile_walk
from fastswl.kernels.plan import CHANGING_LAYOUT
from fastswl.kernels.row import long_walk, row_walk
from fastswl.kernels.scan import scan_targets
from fastswl.kernels.short import few_walk, short_walk
from fastswl.kernels.split import split_walk
from fastswl.regions import run_in_threads

_DATA = object.__basicsize__
_KERNELS = {
    "few": few_walk,
    "short": short_walk,
    "tile": tile_walk,
    "panel": panel_walk,
    "strided": panel_walk,
    "batch": batch_walk,
    "row": row_walk,
    "long": long_walk,
    "split": split_walk,
    "scan": scan_targets,
}
#: of the logits, and of the targets: None for calls without options, whose kernels leave out what these need
Storages = tuple[str, str | None]
_addresses: dict[tuple[str, str, str | None], int] = {}
_entries: dict[str, Callable[..., Any]] = {}


def address_of(array: npt.NDArray[Any]) -> int:
    """Address of an array's first element: the first field of its C structure (eight times as fast as `array.ctypes.data`)."""
    value: int = ctypes.c_ssize_t.from_address(id(array) + _DATA).value
    return value


def as_words(values: dict[str, Any]) -> dict[str, Any]:
    """Return words of a plan: addresses in place of arrays, which the caller keeps."""
    return {name: address_of(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def kernel_address(walk: str, storage: str, target_storage: str | None) -> int:
    """Compile a kernel for a pair of storages, if that has not been done: its address."""
    key = (walk, storage, target_storage)
    address = _addresses.get(key)
    if address is None:
        address = _addresses[key] = compiled_address(_KERNELS[walk], kernel_signature(storage, target_storage))
    return address


def _serial_entry() -> Callable[..., Any]:
    entry = _entries["serial"] = run_serial()
    return entry


#: bytes of a bytes object before its content
_BYTES_HEAD = bytes.__basicsize__ - 1


def _aligned(size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Memory that holds `size` bytes from the multiple of 64 that is returned, too."""
    memory = np.empty(size + 64, np.uint8)
    return memory, (memory.ctypes.data + 63) // 64 * 64


class _Scratch(threading.local):
    """Scratch memory of each Python thread, kept from call to call."""

    def __init__(self) -> None:
        self.held = _aligned(65536)
        self.calls_parallel = False


_own = _Scratch()


def _scratch(size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Memory of at least `size` bytes, and where they begin; hold it as long as its address is used (a signal handler may call,
    too)."""
    memory, address = _own.held
    if memory.size < size + 64:
        memory, address = _own.held = _aligned(size)
    return memory, address


def packed_plan(changing: tuple, fixed: bytes) -> bytes:
    """The words of a plan: addresses, and what a route has packed."""
    return CHANGING_LAYOUT.pack(*changing) + fixed


def run_kernel(kernel: int, plan: bytes, scratch_bytes: int, n_blocks: int, n_threads: int) -> None:
    """Run the kernel at an address over its blocks, in at most `n_threads` threads."""
    run_kernel_at(kernel, id(plan) + _BYTES_HEAD, scratch_bytes, n_blocks, n_threads)


def run_kernel_at(kernel: int, plan_address: int, scratch_bytes: int, n_blocks: int, n_threads: int) -> None:
    """The same of a plan at an address."""
    if n_threads > 1 and n_blocks > 1:
        if threads.parallel_is_safe():
            if not _own.calls_parallel:
                forks.note_caller()
                _own.calls_parallel = True
            n_threads = min(n_threads, n_blocks, threads.MOST_THREADS)
            thread_bytes = HEAD_BYTES + (scratch_bytes + 4159) // 64 * 64
            _held, address = _scratch(n_threads * thread_bytes)
            run_in_threads(kernel, plan_address, address, thread_bytes, n_blocks, n_threads)
            return
    _held, address = _scratch(scratch_bytes)
    (_entries.get("serial") or _serial_entry())(kernel, plan_address, address, n_blocks)
