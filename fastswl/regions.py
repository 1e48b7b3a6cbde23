"""Parallel regions: the memory their calls share, and which driver runs the blocks."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastswl import forks, threads
from fastswl.compilation import DRIVER_SIGNATURE, LOOP_SIGNATURE, TASK_SIGNATURE, compiled_address, compiled_entry
from fastswl.kernels.launch import AS_TASKS, IF_ALONE, IN_A_LOOP, run_blocks, share_loop, share_task
from fastswl.kernels.region import (
    ADD_TASK,
    CALLERS,
    GETAFFINITY,
    GETCPU,
    GETTID,
    LOOP,
    PLACED,
    REGION_BYTES,
    SETAFFINITY,
    SYNCHRONIZE,
    TASK,
    WORKERS,
)

_SYSTEM_FUNCTIONS = {
    GETTID: "gettid",
    GETCPU: "sched_getcpu",
    GETAFFINITY: "sched_getaffinity",
    SETAFFINITY: "sched_setaffinity",
}
_region: npt.NDArray[np.int64] = np.zeros(REGION_BYTES // 8, np.int64)
_REGION_ADDRESS = _region.ctypes.data
_drivers: dict[str, Callable[..., Any]] = {}


def _new_driver() -> Callable[..., Any]:
    with forks.at_work:
        if threads.has_tasks():
            from numba.np.ufunc import tbbpool

            _region[ADD_TASK // 8], _region[SYNCHRONIZE // 8] = tbbpool.add_task, tbbpool.synchronize
        _region[TASK // 8] = compiled_address(share_task, TASK_SIGNATURE)
        driver = _drivers["blocks"] = compiled_entry(run_blocks, DRIVER_SIGNATURE)
    return driver


def run_in_threads(kernel: int, plan: int, memory: int, thread_bytes: int, n_blocks: int, n_threads: int) -> None:
    """Run the kernel at an address over its blocks, in at most `n_threads` threads, each of which has `thread_bytes` of `memory`.

    The first call that comes has the tasks of Numba's pool for itself.
    """
    driver = _drivers.get("blocks") or _new_driver()
    call = (kernel, plan, memory, thread_bytes, n_blocks, n_threads, _REGION_ADDRESS)
    alone = threads.one_region_at_a_time()
    asleep = not alone and threads.others_sleep()
    done = False
    if threads.has_tasks() and not forks.pool.locked():
        with forks.pool:
            if not forks.detached:
                driver(*call, AS_TASKS, asleep)
                done = True
    if not done:
        # of up to three threads none is left while the pool is taken
        if not _region[LOOP // 8] and (n_threads > 3 or forks.detached or not threads.has_tasks()):
            with forks.at_work:
                _region[LOOP // 8] = compiled_address(share_loop, LOOP_SIGNATURE)
        driver(*call, IF_ALONE if alone else IN_A_LOOP, asleep)
    threads.note_region()


def _find_system_functions() -> None:
    if sys.platform != "linux":
        return
    system = ctypes.CDLL(None)
    if all(hasattr(system, name) for name in _SYSTEM_FUNCTIONS.values()):
        for place, name in _SYSTEM_FUNCTIONS.items():
            _region[place // 8] = ctypes.cast(getattr(system, name), ctypes.c_void_p).value


def _forget_region() -> None:
    # the parent's callers and workers
    _region[CALLERS // 8] = 0
    _region[WORKERS // 8 :] = 0


def _forget_workers() -> None:
    # Numba ends TBB's threads before a fork
    _region[WORKERS // 8 : PLACED // 8] = 0


_find_system_functions()
forks.in_child.append(_forget_region)
forks.in_parent.append(_forget_workers)
