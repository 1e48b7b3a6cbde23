"""Choices of the compilation: what a storage and the target say."""

import functools
import os

import llvmlite.ir as ir
from numba.core import types

from fastswl.simd.symbols import as_symbol, formula, intrinsic
from fastswl.simd.types import I1, I64, STORAGE_TYPES, target_has

#: the first-level cache of most processors of before 2020
SMALL_FIRST_LEVEL_BYTES = 32768


@intrinsic
def arithmetic_of(typingctx, storage):
    """The storage of the numbers that `storage` is worked on in (float32 or float64)."""
    result = STORAGE_TYPES[storage.storage.arithmetic.name]
    return result(storage), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic
def same_arithmetic(typingctx, storage, other):
    """Whether two storages are worked on in the same type (a constant of the compilation)."""
    same = int(storage.storage.arithmetic == other.storage.arithmetic)
    return types.boolean(storage, other), lambda context, builder, sig, args: ir.Constant(I1, same)


@intrinsic
def same_storage(typingctx, storage, other):
    """Whether two storages are the same (a constant of the compilation)."""
    same = int(storage.storage.name == other.storage.name)
    return types.boolean(storage, other), lambda context, builder, sig, args: ir.Constant(I1, same)


@intrinsic
def result_of(typingctx, storage):
    """The storage of results: that of the input where it holds fractions, else float64."""
    integral = storage.storage.name.startswith(("int", "uint", "bool"))
    result = STORAGE_TYPES["float64"] if integral else storage
    return result(storage), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic
def itemsize(typingctx, storage):
    """Bytes of one stored number."""
    size = storage.storage.itemsize
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(I64, size)


@intrinsic
def lanes(typingctx, storage):
    """Numbers in one vector of this storage's arithmetic."""
    count = storage.storage.lanes
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(I64, count)


@intrinsic
def by_type(typingctx, storage, for_float32, for_float64):
    """The first or the second value, by the arithmetic type of `storage` (a choice of the compilation)."""
    index = 1 if storage.storage.arithmetic == types.float32 else 2
    args = (storage, types.unliteral(for_float32), types.unliteral(for_float64))
    return args[index](*args), lambda context, builder, sig, values: values[index]


#: what is not chosen may be of any kind: a tuple, a number
by_type.in_formulas = lambda storage, for_float32, for_float64: (
    for_float32 if as_symbol(storage).type.storage.arithmetic == types.float32 else for_float64
)


@formula
def in_float64(storage):
    """Whether arithmetic is in float64, which has no digits to spare; float32 has, its sums being float64."""
    return by_type(storage, False, True)


@intrinsic
def vectors_side_by_side(typingctx, most):
    """How many vectors are worked on side by side (a constant of the compilation): `most` where a vector is a register of 32, else
    they go one by one."""

    def codegen(context, builder, sig, args):
        return args[0] if target_has(context, "avx512f") else ir.Constant(I64, 1)

    return types.int64(types.int64), codegen


@functools.cache
def first_level_bytes():
    """Bytes of this machine's first-level cache of data, those of a small one where nobody says; what is made of it must change no
    bit."""
    try:
        size = os.sysconf("SC_LEVEL1_DCACHE_SIZE")
    except (AttributeError, OSError, ValueError):
        size = 0
    return size if size > 0 else SMALL_FIRST_LEVEL_BYTES


@intrinsic
def has_fma(typingctx):
    """Whether `fma` rounds once on the target (a constant of the compilation)."""

    def codegen(context, builder, sig, args):
        return ir.Constant(I1, int(target_has(context, "fma")))

    return types.boolean(), codegen
