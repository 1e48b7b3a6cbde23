"""How kernels are compiled: the one module that names Numba's options.

No fast-math flag anywhere: multiply-adds are written as `fma`, sums run in a fixed number of lanes, so that no bit hangs on
what LLVM chooses to contract, to reassociate or to vectorise.
"""

import functools

from numba import config, get_num_threads, njit, prange, set_num_threads, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)
from numba.experimental.function_type import _get_wrapper_address

from fastswl import forks
from fastswl.cache import KernelCache
from fastswl.simd import STORAGE_TYPES

__all__ = [
    "DRIVER_SIGNATURE",
    "LOOP_SIGNATURE",
    "TASK_SIGNATURE",
    "block_kernel",
    "compiled_address",
    "compiled_entry",
    "get_num_threads",
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


class _Library(JITCodeLibrary):
    """The code of a function of ours. It is not optimised before all that it calls is there."""

    def _optimize_functions(self, module):
        pass


class _RoutineLibrary(_Library):
    """The code of a function that only kernels call, as it was written: they link it, and are optimised and assembled whole.

    Numba optimises and assembles every function with all that it calls; a routine four calls deep would be done five times.
    """

    def finalize(self):
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True


class _KernelLibrary(_Library):
    """The code of a kernel, and of all routines that it calls, directly or not."""

    def add_linking_library(self, library):
        if library not in self._linking_libraries:
            super().add_linking_library(library)
            if isinstance(library, _RoutineLibrary):
                for deeper in library._linking_libraries:
                    self.add_linking_library(deeper)


@register_pass(mutates_CFG=True, analysis_only=False)
class _RoutineLowering(NativeLowering):
    _name = "routine_lowering"

    def run_pass(self, state):
        state.library = _RoutineLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        # Numba knows an overload by the object that Python would call: a built-in method, another one for each
        nobody_calls_this = [].clear
        state.targetctx.insert_user_function(nobody_calls_this, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=nobody_calls_this)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _KernelLowering(NativeLowering):
    _name = "kernel_lowering"

    def run_pass(self, state):
        state.library = _KernelLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().run_pass(state)


#: of Numba's passes those that kernels have a use for (the others, which find nothing, take a tenth of a first call)
_PASSES = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    RewriteSemanticConstants,
    DeadBranchPrune,
    GenericRewrites,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
)


def _compiler(lowering):
    """Numba's compiler with another way to lower."""

    class Compiler(CompilerBase):
        def define_pipelines(self):
            manager = PassManager(lowering._name)
            for step in (*_PASSES, lowering, NoPythonBackend):
                manager.add_pass(step, step.__name__)
            manager.finalize()
            return [manager]

    return Compiler


#: what is long, or called from several places: a function in the machine code of each kernel
routine = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_compiler(_RoutineLowering), **_COMMON)


def _cached(dispatcher):
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


def block_kernel(function):
    """A whole walk over blocks of rows; called by its address, compiled for a pair of storages, kept on disk."""
    return _cached(njit(nogil=True, pipeline_class=_compiler(_KernelLowering), **_COMMON)(function))


def parallel_driver(function):
    """A loop over shares of the blocks in several threads."""
    return _cached(njit(nogil=True, parallel=True, **_COMMON)(function))


def compiled_entry(dispatcher, signature):
    """Compile (or load) for one signature; what Python calls with arguments of exactly these types, past Numba's dispatcher."""
    with forks.at_work:
        dispatcher.compile(signature)
    return dispatcher.overloads[signature.args].entry_point


def python_entry(*argument_types, returns, nogil=False):
    """Decorate a function that Python calls with arguments of exactly these types; a call of the result compiles it."""

    def compile_entry(function):
        dispatcher = _cached(njit(nogil=nogil, pipeline_class=_compiler(_KernelLowering), **_COMMON)(function))
        return functools.cache(lambda: compiled_entry(dispatcher, returns(*argument_types)))

    return compile_entry


_WORD = types.int64
KERNEL_WORDS = (_WORD,) * 4  # plan, scratch, first block, last block
# as the arguments of `run_blocks`, of `share_task` and of `share_loop`
DRIVER_SIGNATURE, TASK_SIGNATURE, LOOP_SIGNATURE = _WORD(*(_WORD,) * 9), _WORD(*(_WORD,) * 4), _WORD(*(_WORD,) * 3)


def kernel_signature(storage, target_storage):
    """Signature of a block kernel for the names of two storages; None for the second makes one for plain calls."""
    target_type = types.none if target_storage is None else STORAGE_TYPES[target_storage]
    return _WORD(STORAGE_TYPES[storage], target_type, *KERNEL_WORDS)


def compiled_address(dispatcher, signature):
    """Compile (or load from the cache) for one signature; the machine address of the C function."""
    with forks.at_work:
        dispatcher.compile(signature.args)
    return _get_wrapper_address(dispatcher, signature)
