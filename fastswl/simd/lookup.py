"""Tables of eight entries, held in a register."""

import llvmlite.ir as ir
from numba.core import cgutils

from fastswl.simd.symbols import intrinsic
from fastswl.simd.tiles import concatenate, shuffle
from fastswl.simd.types import I32, target_family, target_has

ENTRIES = 8


def look_up_in(entries):
    """For constants: what gives, of a vector of int32, the entry of a table that the last three bits of each lane say."""

    @intrinsic
    def look_up(typingctx, numbers):
        def codegen(context, builder, sig, args):
            family = target_family(context)
            if family == "x86" and target_has(context, "avx512f"):
                return _call(builder, "llvm.x86.avx512.permvar.si.512", _constant(entries * 2), args[0])
            if family == "x86" and target_has(context, "avx2"):
                return _in_parts(builder, 8, args[0], lambda part: _permuted(builder, entries, part))
            if family == "aarch64":
                return _in_parts(builder, 4, args[0], lambda part: _byte_by_byte(builder, entries, part))
            return _lane_by_lane(builder, entries, args[0])

        return numbers(numbers), codegen

    return look_up


def _vector(count, element=I32):
    return ir.VectorType(element, count)


def _constant(numbers):
    return ir.Constant(_vector(len(numbers)), list(numbers))


def _call(builder, name, *args):
    """Of an intrinsic that returns what its last argument is."""
    function_type = ir.FunctionType(args[-1].type, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _in_parts(builder, width, numbers, look_up):
    """Register by register."""
    firsts = range(0, numbers.type.count, width)
    parts = (shuffle(builder, numbers, numbers, range(first, first + width)) for first in firsts)
    return concatenate(builder, list(map(look_up, parts)))


def _permuted(builder, entries, numbers):
    return _call(builder, "llvm.x86.avx2.permd", _constant(entries), numbers)


def _byte_by_byte(builder, entries, numbers):
    """By a table of bytes: entry i has the bytes 4 i to 4 i + 3."""
    lanes = numbers.type.count
    bytes_type = _vector(4 * lanes, ir.IntType(8))
    entry = builder.and_(numbers, _constant([ENTRIES - 1] * lanes))
    first = builder.mul(entry, _constant([0x04040404] * lanes))
    places = builder.add(first, _constant([0x03020100] * lanes))
    tables = [builder.bitcast(_constant(entries[i : i + lanes]), bytes_type) for i in range(0, ENTRIES, lanes)]
    found = _call(builder, "llvm.aarch64.neon.tbl2.v16i8", *tables, builder.bitcast(places, bytes_type))
    return builder.bitcast(found, numbers.type)


def _lane_by_lane(builder, entries, numbers):
    table = _constant(entries)
    result = ir.Constant(numbers.type, ir.Undefined)
    for i in range(numbers.type.count):
        lane = ir.Constant(I32, i)
        entry = builder.and_(builder.extract_element(numbers, lane), ir.Constant(I32, ENTRIES - 1))
        result = builder.insert_element(result, builder.extract_element(table, entry), lane)
    return result
