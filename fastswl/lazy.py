"""The kernels, imported by the first call: ``import fastswl`` imports NumPy only."""

import functools
from types import ModuleType
from typing import Any, Final

from fastswl import forks
from fastswl.arguments import thread_count

#: the modules that import Numba, once `load` has run
dispatch: Any = None
threads: Any = None

#: calls of shapes seen before: those of `fastswl.prepared`, once `load` has run
prepared: dict[tuple[Any, ...], Any] = {}

#: public names that live in `fastswl.threads`
THREAD_FUNCTIONS: Final = ("get_num_threads", "set_num_threads", "threading_layer")


def load_threads() -> ModuleType:
    """Import the module behind `threads` and return it."""
    global threads
    with forks.at_work:
        from fastswl import threads as module

        threads = module
    return module


def load() -> None:
    """Import the modules behind `dispatch` and `threads`."""
    global dispatch, prepared
    with forks.at_work:
        load_threads()
        from fastswl import dispatch as module
        from fastswl.prepared import prepared as calls

        prepared = calls
        dispatch = module


def kept_call(key: tuple[Any, ...], n_threads: int | None) -> Any:
    """Return a kept call that takes the arrays, or None."""
    call = prepared.get(key)
    if call is not None and n_threads is not None and hasattr(call, "in_blocks"):
        return functools.partial(call, n_threads=n_threads)
    return call


def resolved_thread_count(n_threads: int | None) -> int:
    """Return a checked thread count; None is `fastswl.get_num_threads()`.

    Raises
    ------
    TypeError
        For bool, float and other objects that are no integers.
    ValueError
        Below 1.
    """
    if n_threads is not None:
        count = thread_count(n_threads)
        if dispatch is None:
            load()
        return count
    if dispatch is None:
        load()
    default: int = threads.get_num_threads()
    return default
