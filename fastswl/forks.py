"""What a forked child finds: no lock that nobody will release, and no threading layer that waits for threads that are gone.

Imports nothing but the standard library, so that a fork is seen from `import fastswl` on.
"""

import contextlib
import ctypes
import logging  # noqa: F401  (its hook has to be there before the one below, so that its lock is taken after those here)
import os
import sys
import threading
import weakref
from typing import Any

#: held while modules are imported or kernels compiled: a fork waits, or the child would find them half done
at_work = threading.RLock()
#: held by the call whose blocks are tasks of Numba's pool
pool = threading.Lock()
#: how long a fork waits for that call before it leaves the pool as it is
_LONGEST_WAIT = 10.0
#: whether Numba has let go of TBB: its pool has no tasks any more
detached = False
#: whether this process was forked from one whose threading layer does not survive that
serial_only = False
#: what else is to be done in a child, and in its parent
in_child: list[Any] = []
in_parent: list[Any] = []
#: the thread that started the layer, if this library did
_launcher: threading.Thread | None = None
#: threads that have called a parallel region, and so may keep TBB from being shut down
_callers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_clean = True
_held: list[Any] = []


def note_launch() -> None:
    """The current thread starts the threading layer."""
    global _launcher
    _launcher = threading.current_thread()


def note_caller() -> None:
    """The current thread will call parallel regions."""
    _callers.add(threading.current_thread())


def _layer() -> str | None:
    parallel: Any = sys.modules.get("numba.np.ufunc.parallel")
    return parallel._threading_layer if parallel is not None and parallel._is_initialized else None


def _before() -> None:
    """Let no compilation be cut in two, and see whether TBB is at rest.

    Numba shuts TBB down before a fork if the thread that started it is the one that forks, and no other thread has used it.
    Else it prints a warning at each fork; then its handlers are taken off, and children do without threads.
    """
    global _clean
    at_work.acquire()
    _held.append(at_work)
    compiler: Any = sys.modules.get("numba.core.compiler_lock")
    if compiler is not None:
        compiler.global_compiler_lock.acquire()
        _held.append(compiler.global_compiler_lock)
    # a thread that frees compiled code holds LLVM's lock alone (a fork at that moment left a child in which nothing could be compiled)
    llvm: Any = sys.modules.get("llvmlite.binding.ffi")
    if llvm is not None:
        llvm.lib._lock._lock.acquire()
        _held.append(llvm.lib._lock._lock)
    if _layer() == "tbb":
        current = threading.current_thread()
        others = any(thread is not current and thread.is_alive() for thread in list(_callers))
        at_rest = not others and not detached and _launcher in (None, current)
        _clean = at_rest and _launcher is not None
        # (else Numba prints its warning, and its pool is what it was)
        if not at_rest and not detached and pool.acquire(timeout=_LONGEST_WAIT):
            _held.append(pool)
            _detach()


def _detach() -> None:
    """Run what Numba runs when its module of TBB is freed: it lets go of TBB, and its fork handlers do nothing from then on.

    TBB itself stays and starts by itself when it is used.
    """
    global detached
    detached = True
    module = sys.modules.get("numba.np.ufunc.tbbpool")
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        definition_of = ctypes.pythonapi.PyModule_GetDef
        definition_of.restype, definition_of.argtypes = ctypes.c_void_p, [ctypes.py_object]
        # PyModuleDef: an object's head and three words, then eight of which m_free is the last
        place = definition_of(module) + object.__basicsize__ + (3 + 7) * ctypes.sizeof(ctypes.c_void_p)
        free = ctypes.c_void_p.from_address(place).value
        if free:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(free)(None)


def _release() -> None:
    while _held:
        _held.pop().release()


def _in_parent() -> None:
    _release()
    for action in in_parent:
        action()


def _in_child() -> None:
    global serial_only
    _release()
    layer = _layer()
    if layer is not None and (layer != "tbb" or not _clean):
        serial_only = True
    for action in in_child:
        action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
