"""How many threads, and by which of Numba's threading layers.

The setting is this library's own: Numba's (`numba.set_num_threads`) is neither read after the start nor written.
"""

import ctypes
import importlib.metadata
import os
import threading
from typing import Any

import numba

_PARALLEL_LOCK = threading.Lock()
_state: dict[str, Any] = {"n_threads": None, "tbb_loaded": False, "parallel_pid": None}


def _available_processors() -> int:
    """Processors this process may use (affinity; cgroup limits where Python knows them), within NUMBA_NUM_THREADS."""
    if hasattr(os, "process_cpu_count"):
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    limit: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(count or 1, limit))


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
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an integer, got {n!r}")
    count = n.__index__()
    if count < 1:
        raise ValueError(f"n must be at least 1, got {n!r}")
    _state["n_threads"] = count


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

    parallel._launch_threads()  # type: ignore[no-untyped-call]
    layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    return layer


def prepare_parallel() -> None:
    """Before the first parallel region: make pip's libtbb visible to Numba.

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


def parallel_entry() -> "_Nothing | None":
    """Return a context for one parallel region, or None where only the serial path is safe.

    GNU OpenMP cannot run in a child that was forked after a parallel region; the workqueue layer takes one caller at a time.
    """
    layer = _state.get("layer")
    if layer is None:
        layer = _state["layer"] = threading_layer()
        _state["parallel_pid"] = os.getpid()
    if layer == "tbb":
        return _NOTHING
    if _state["parallel_pid"] != os.getpid():
        return None
    if layer == "workqueue":
        return _OneAtATime() if _PARALLEL_LOCK.acquire(blocking=False) else None
    return _NOTHING


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        return None


class _OneAtATime(_Nothing):
    """Holds the lock of the workqueue layer, already taken."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        _PARALLEL_LOCK.release()


_NOTHING = _Nothing()
