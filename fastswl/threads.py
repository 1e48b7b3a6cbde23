"""How many threads, and by which of Numba's threading layers.

The setting is this library's own: Numba's (`numba.set_num_threads`) is neither read after the start nor written.
"""

import ctypes
import importlib.metadata
import math
import os
import time
from typing import Any

import numba

from fastswl import forks
from fastswl.arguments import thread_count

#: threads that Numba has started, or will
MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_state: dict[str, Any] = {
    "n_threads": None,
    "set_by_user": False,
    "tbb_loaded": False,
    "layer": None,
    "last_work": -math.inf,
    "last_region": -math.inf,
}
#: work in float32 numbers from which on a second thread pays that is awake (1,000 classes: 11 us in one thread, 10 in two), and one
#: that is asleep (2 ms after other work, 192,000: 54 and 51 us)
PARALLEL_WORK, WAKING_WORK = 40_000, 200_000
#: how long after a call others are taken to be awake (TBB's sleep after 1 ms)
AWAKE_SECONDS = 0.5e-3


def _available_processors() -> int:
    """Processors this process may use (affinity; cgroup limits where Python knows them), within NUMBA_NUM_THREADS."""
    if hasattr(os, "process_cpu_count"):
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    return max(1, min(count or 1, MOST_THREADS))


def get_num_threads() -> int:
    """Return the number of threads that a call uses at most when its `n_threads` is None.

    Returns
    -------
    int
        What `set_num_threads` was given last; before that the processors that this process may use, at most
        ``NUMBA_NUM_THREADS``.

    Examples
    --------
    >>> import fastswl as swl
    >>> swl.get_num_threads() >= 1
    True
    """
    count: int | None = _state["n_threads"]
    if count is None:
        count = _state["n_threads"] = _available_processors()
    return count


def set_num_threads(n: int) -> None:
    """Set the number of threads that a call uses at most when its `n_threads` is None.

    Parameters
    ----------
    n : int
        At least 1. More than Numba has started (``NUMBA_NUM_THREADS``) run on those there are. Results do not depend on it.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is below 1.

    Examples
    --------
    >>> import fastswl as swl
    >>> before = swl.get_num_threads()
    >>> swl.set_num_threads(1)
    >>> swl.get_num_threads()
    1
    >>> swl.set_num_threads(before)
    """
    _state["n_threads"], _state["set_by_user"] = thread_count(n, "n"), True


def threading_layer() -> str:
    """Return the threading layer that parallel calls use: "tbb", "omp" or "workqueue".

    Starts it if no parallel call has run yet in this process.

    Examples
    --------
    >>> import fastswl as swl
    >>> swl.threading_layer() in ("tbb", "omp", "workqueue")
    True
    """
    prepare_parallel()
    from numba.np.ufunc import parallel

    if not parallel._is_initialized:
        forks.note_launch()
        if parallel._backend_init_process_lock is None:
            # made in each process anew, so it keeps no other process out; it warns where there is no /dev/shm, and a worker
            # of a pool leaves it behind
            parallel._backend_init_process_lock = parallel._nop()  # type: ignore[assignment]
        parallel._launch_threads()  # type: ignore[no-untyped-call]
    layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    return layer


def prepare_parallel() -> None:
    """Make pip's libtbb visible to Numba, before the first parallel region.

    It lies in the environment's lib folder, where the loader does not look, so Numba would fall back to a layer that is not
    safe after a fork (GNU OpenMP) or with two Python threads (workqueue). A user's own choice of layer is left alone.
    """
    if _state["tbb_loaded"]:
        return
    _state["tbb_loaded"] = True
    if "NUMBA_THREADING_LAYER" in os.environ:
        return
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libtbb.so.12") or file.name == "tbb12.dll":
            path = file.locate()
            try:
                ctypes.CDLL(os.fspath(path), mode=getattr(ctypes, "RTLD_GLOBAL", 0))
            except OSError:
                continue
            return


def parallel_is_safe() -> bool:
    """Whether this process may start a parallel region; begins the layer if none is running.

    GNU OpenMP and the workqueue cannot run in a child that was forked after a parallel region, TBB only if it was at rest.
    """
    if forks.serial_only:
        return False
    if _state["layer"] is None:
        with forks.at_work:
            _state["layer"] = threading_layer()
    return True


def has_tasks() -> bool:
    """Whether Numba's pool of the layer takes tasks (those of the others run them at once, in the caller)."""
    return bool(_state["layer"] == "tbb")


def one_region_at_a_time() -> bool:
    """Whether the layer aborts when two Python threads start parallel regions."""
    return bool(_state["layer"] == "workqueue")


def threads_for(work: int, n_threads: int) -> int:
    """How many of `n_threads` threads `work` (in float32 numbers) is worth.

    Threads that have been idle for a while sleep, and to wake one takes 20 us and more: work in between gets others only when it
    follows other such work closely, as in a loop. (128 rows of 1,000 classes: 20 us with a second thread that is awake, 43 with
    one that is not, 37 alone.)
    """
    if work < PARALLEL_WORK or n_threads == 1:
        return 1
    before = _state["last_work"]
    note_work()
    return n_threads if work >= WAKING_WORK or _state["last_work"] - before < AWAKE_SECONDS else 1


def note_work() -> None:
    """Note the time of work that is for several threads."""
    _state["last_work"] = time.perf_counter()


def note_region() -> None:
    """Note the end of a parallel region."""
    _state["last_region"] = _state["last_work"] = time.perf_counter()


def others_sleep() -> bool:
    """Whether other threads may sleep: they did not work in the last half of a millisecond."""
    return bool(time.perf_counter() - _state["last_region"] > AWAKE_SECONDS)


def _forget_processors() -> None:
    # a child may have been given other processors than its parent
    if not _state["set_by_user"]:
        _state["n_threads"] = None


forks.in_child.append(_forget_processors)
