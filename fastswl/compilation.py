"""How kernels are compiled: the one module that names Numba's options.

No fast-math flag anywhere: multiply-adds are written as `fma`, sums run in a fixed number of lanes, so that no bit hangs on
what LLVM chooses to contract, to reassociate or to vectorise.
"""

from numba import njit, prange, types
from numba.experimental.function_type import _get_wrapper_address

from fastswl.cache import KernelCache
from fastswl.simd import STORAGE_TYPES

__all__ = [
    "DRIVER_SIGNATURE",
    "block_kernel",
    "compiled_address",
    "inlined",
    "kernel_signature",
    "parallel_driver",
    "prange",
    "routine",
]

_COMMON = {"error_model": "numpy", "boundscheck": False}

#: a step of a formula: always inlined, so that vectors stay in registers
inlined = njit(forceinline=True, **_COMMON)
#: a loop over a block: compiled once in a kernel, called from several places
routine = njit(**_COMMON)


def _cached(dispatcher):
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


def block_kernel(function):
    """A whole walk over blocks of rows; called by its address, compiled for a pair of storages, kept on disk."""
    return _cached(njit(nogil=True, **_COMMON)(function))


def parallel_driver(function):
    """Runs a kernel over blocks in several threads, by its address."""
    return _cached(njit(nogil=True, parallel=True, **_COMMON)(function))


_WORD = types.int64
KERNEL_WORDS = (_WORD,) * 4  # plan, scratch, first block, last block
DRIVER_SIGNATURE = _WORD(*(_WORD,) * 6)  # kernel, plan, scratch, bytes of scratch a thread, blocks, threads


def kernel_signature(storage, target_storage):
    """Signature of a block kernel for the names of two storages."""
    return _WORD(STORAGE_TYPES[storage], STORAGE_TYPES[target_storage], *KERNEL_WORDS)


def compiled_address(dispatcher, signature):
    """Compile (or load from the cache) for one signature; the machine address of the C function."""
    dispatcher.compile(signature.args)
    return _get_wrapper_address(dispatcher, signature)
