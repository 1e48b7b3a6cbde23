"""How kernels are compiled: the one module that names Numba's options.

No fast-math flag anywhere: multiply-adds are written as `fma`, sums run in a fixed number of lanes, so that no bit hangs on
what LLVM chooses to contract, to reassociate or to vectorise.
"""

import contextlib
import functools
import gc

from numba import config, get_num_threads, njit, prange, set_num_threads, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.experimental.function_type import _get_wrapper_address

from fastswl import forks
from fastswl.cache import KernelCache
from fastswl.simd import STORAGE_TYPES

__all__ = [
    "DRIVER_SIGNATURE",
    "block_kernel",
    "compiled_address",
    "compiled_entry",
    "get_num_threads",
    "inlined",
    "kernel_signature",
    "parallel_driver",
    "prange",
    "python_entry",
    "routine",
    "set_num_threads",
]

if config.DISABLE_JIT:
    raise RuntimeError("fastswl is compiled by Numba and can't run with NUMBA_DISABLE_JIT=1")

_COMMON = {"error_model": "numpy", "boundscheck": False}


@register_pass(mutates_CFG=True, analysis_only=False)
class _RoutineLowering(NativeLowering):
    """Lowers a function that only kernels call: no machine code of its own, no optimisation of its own.

    Numba optimises and assembles every function with all that it calls; a routine four calls deep would be optimised five
    times. Here a kernel is optimised once, whole.
    """

    _name = "routine_lowering"

    def run_pass(self, state):
        library = state.library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        library.enable_object_caching()
        library._optimize_final_module = lambda: None
        state.flags.no_compile = True
        super().run_pass(state)
        # Numba knows an overload by the object that Python would call: a built-in method, another one for each
        nobody_calls_this = [].clear
        state.targetctx.insert_user_function(nobody_calls_this, state.cr.fndesc, [library])
        state.cr = state.cr._replace(cfunc=nobody_calls_this)
        return True


class _RoutineCompiler(CompilerBase):
    def define_pipelines(self):
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state, "routine")
        manager.passes = [(_RoutineLowering if step is NativeLowering else step, text) for step, text in manager.passes]
        manager.finalize()
        return [manager]


#: a step of a formula: put in place before types are known. A function of its own costs 60 to 90 ms of compilation
inlined = njit(inline="always", **_COMMON)
#: a loop over a block: compiled once in a kernel, called from several places
routine = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_RoutineCompiler, **_COMMON)


def _cached(dispatcher):
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


def block_kernel(function):
    """A whole walk over blocks of rows; called by its address, compiled for a pair of storages, kept on disk."""
    return _cached(njit(nogil=True, **_COMMON)(function))


def parallel_driver(function):
    """Runs a kernel over blocks in several threads, by its address."""
    return _cached(njit(nogil=True, parallel=True, **_COMMON)(function))


#: objects made before the youngest are looked through, while Numba makes millions that stay (a cold start: 7.5 to 6.7 s)
_OBJECTS_WHILE_COMPILING = 20_000


@contextlib.contextmanager
def _at_work():
    """One thread compiles at a time, no process forks meanwhile, and Python's garbage collector looks seldom."""
    with forks.at_work:
        before = gc.get_threshold()
        if 0 < before[0] < _OBJECTS_WHILE_COMPILING:
            gc.set_threshold(_OBJECTS_WHILE_COMPILING, *before[1:])
        try:
            yield
        finally:
            gc.set_threshold(*before)


def compiled_entry(dispatcher, signature):
    """Compile (or load) for one signature; what Python calls with arguments of exactly these types, past Numba's dispatcher."""
    with _at_work():
        dispatcher.compile(signature)
    return dispatcher.overloads[signature.args].entry_point


def python_entry(*argument_types, returns, nogil=False):
    """Decorate a function that Python calls with arguments of exactly these types; a call of the result compiles it."""

    def compile_entry(function):
        dispatcher = _cached(njit(nogil=nogil, **_COMMON)(function))
        return functools.cache(lambda: compiled_entry(dispatcher, returns(*argument_types)))

    return compile_entry


_WORD = types.int64
KERNEL_WORDS = (_WORD,) * 4  # plan, scratch, first block, last block
DRIVER_SIGNATURE = _WORD(*(_WORD,) * 8)  # as the arguments of `run_parallel`


def kernel_signature(storage, target_storage):
    """Signature of a block kernel for the names of two storages."""
    return _WORD(STORAGE_TYPES[storage], STORAGE_TYPES[target_storage], *KERNEL_WORDS)


def compiled_address(dispatcher, signature):
    """Compile (or load from the cache) for one signature; the machine address of the C function."""
    with _at_work():
        dispatcher.compile(signature.args)
    return _get_wrapper_address(dispatcher, signature)
