"""Arithmetic beyond the operators: fused multiply-add, choice, bits, conversions, lanes."""

import functools
import operator

import llvmlite.ir as ir
from numba.core import cgutils, types

from fastswl.simd.symbols import SideBySide, formula, intrinsic
from fastswl.simd.types import I1, I32, I64, Vector, target_has


@intrinsic
def splat_like(typingctx, vector, scalar):
    """A vector of the type of the first argument with `scalar` in every lane."""
    return vector(vector, vector), lambda context, builder, sig, args: args[1]


@intrinsic
def fma(typingctx, a, b, c):
    """`a*b + c` in one rounding; two roundings where the target has no fused multiply-add (there it would be a call)."""
    vector = next(ty for ty in (a, b, c) if isinstance(ty, Vector))

    def codegen(context, builder, sig, args):
        if not target_has(context, "fma"):
            return builder.fadd(builder.fmul(args[0], args[1]), args[2])
        return _call_intrinsic(builder, "llvm.fma", args[0].type, args)

    return vector(vector, vector, vector), codegen


def _suffix(llvm_type):
    if isinstance(llvm_type, ir.VectorType):
        return f"v{llvm_type.count}{_suffix(llvm_type.element)}"
    if isinstance(llvm_type, ir.FloatType):
        return "f32"
    if isinstance(llvm_type, ir.DoubleType):
        return "f64"
    return f"i{llvm_type.width}"


def _call_intrinsic(builder, name, llvm_type, args):
    function_type = ir.FunctionType(llvm_type, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{_suffix(llvm_type)}")
    return builder.call(function, args)


@formula
def polynomial(x, coefficients):
    """Horner's rule with `fma`; coefficients (a tuple of float64) from the highest power down to the constant."""
    result, *others = coefficients
    for coefficient in others:
        result = fma(result, x, coefficient)
    return result


@intrinsic
def power_of_two(typingctx, exponent):
    """2**exponent of one whole float64 in the normal range, from its bits (`**` would be a call of exp2)."""

    def codegen(context, builder, sig, args):
        whole = builder.fptosi(args[0], I64)
        bits = builder.shl(builder.add(whole, ir.Constant(I64, 1023)), ir.Constant(I64, 52))
        return builder.bitcast(bits, ir.DoubleType())

    return types.float64(types.float64), codegen


@intrinsic
def as_it_is(typingctx, number):
    """The same whole number, of which LLVM knows nothing: it does not make it from others again."""

    def codegen(context, builder, sig, args):
        return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", args, side_effect=False)

    return types.int64(types.int64), codegen


@intrinsic
def absolute(typingctx, a):
    """Absolute value, lane by lane."""

    def codegen(context, builder, sig, args):
        return _call_intrinsic(builder, "llvm.fabs", args[0].type, args)

    return a(a), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`."""
    vector = a if isinstance(a, Vector) else b

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return vector(mask, vector, vector), codegen


@intrinsic
def quotient(typingctx, a, b):
    """`a // b` of positive integers."""
    return types.int64(types.int64, types.int64), lambda context, builder, sig, args: builder.sdiv(*args)


def log2_of(size):
    """The logarithm of a power of two that is known while the code is written, for shifts."""
    return size.bit_length() - 1


@formula
def least(a, b):
    """The smaller of two numbers (Numba compiles `min` anew, as a function, for each pair of types)."""
    return select(b < a, b, a)


@formula
def greatest(a, b):
    """The larger of two numbers."""
    return select(b > a, b, a)


@intrinsic
def as_bits(typingctx, a):
    """The bits of floats as integers of the same width."""
    result = a.of(types.int32 if a.element == types.float32 else types.int64)
    return result(a), lambda context, builder, sig, args: builder.bitcast(
        args[0], context.get_value_type(sig.return_type)
    )


@intrinsic
def as_floats(typingctx, a):
    """Integers as the floats that have these bits."""
    result = a.of(types.float32 if a.element == types.int32 else types.float64)
    return result(a), lambda context, builder, sig, args: builder.bitcast(
        args[0], context.get_value_type(sig.return_type)
    )


@intrinsic
def widen(typingctx, a):
    """A vector in float64, same lanes."""
    result = a.of(types.float64)

    def codegen(context, builder, sig, args):
        return args[0] if a == result else builder.fpext(args[0], context.get_value_type(result))

    return result(a), codegen


@intrinsic
def narrow(typingctx, storage, a):
    """A float64 vector rounded to the arithmetic type of `storage`, same lanes."""
    result = a.of(storage.storage.arithmetic)

    def codegen(context, builder, sig, args):
        return args[1] if a == result else builder.fptrunc(args[1], context.get_value_type(result))

    return result(storage, a), codegen


@intrinsic
def to_float32(typingctx, number):
    """One number in float32."""
    return types.float32(types.float64), lambda context, builder, sig, args: builder.fptrunc(args[0], ir.FloatType())


@intrinsic
def to_float64(typingctx, number):
    """One number in float64."""
    return types.float64(types.float64), lambda context, builder, sig, args: args[0]


@intrinsic
def to_int64(typingctx, number):
    """One whole float64 as an integer."""
    return types.int64(types.float64), lambda context, builder, sig, args: builder.fptosi(args[0], I64)


@intrinsic
def as_numbers(typingctx, a):
    """A vector of integers as float64."""
    result = a.of(types.float64)
    return result(a), lambda context, builder, sig, args: builder.sitofp(args[0], context.get_value_type(result))


@intrinsic
def any_lane(typingctx, mask):
    """Whether the mask is set anywhere."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


def any_lane_of(masks):
    """For formulas: `any_lane` of one mask, or of several side by side."""
    return any_lane(functools.reduce(operator.or_, masks) if isinstance(masks, SideBySide) else masks)


@intrinsic
def first_lane(typingctx, mask):
    """The number of the first lane in which the mask is set; that of lanes where it is nowhere."""

    def codegen(context, builder, sig, args):
        bits = builder.zext(builder.bitcast(args[0], ir.IntType(mask.lanes)), I64)
        # a bit behind the last lane, so that there is always one
        bits = builder.or_(bits, ir.Constant(I64, 1 << mask.lanes))
        function_type = ir.FunctionType(I64, [I64, I1])
        count = cgutils.get_or_insert_function(builder.module, function_type, "llvm.cttz.i64")
        return builder.call(count, [bits, ir.Constant(I1, 1)])

    return types.int64(mask), codegen


@intrinsic(prefer_literal=True)
def swap_halves(typingctx, a, distance):
    """Lane i takes lane i XOR `distance` (a literal power of two): the step of a reduction in tree order."""
    if not isinstance(distance, types.IntegerLiteral):
        return None
    step = distance.literal_value

    def codegen(context, builder, sig, args):
        order = [i ^ step for i in range(a.lanes)]
        return builder.shuffle_vector(args[0], args[0], ir.Constant(ir.VectorType(I32, a.lanes), order))

    return a(a, distance), codegen


@intrinsic
def lane(typingctx, a, index):
    """The number in one lane."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], args[1])

    return a.element(a, types.int64), codegen


@intrinsic
def wide_zero(typingctx, storage):
    """A zero in float64 for every lane of a vector of `storage`."""
    result = storage.vector.of(types.float64)
    return result(storage), lambda context, builder, sig, args: ir.Constant(context.get_value_type(result), None)


@intrinsic
def lane_numbers(typingctx, storage):
    """The vector 0, 1, 2, ... in float64."""
    result = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(result), [float(i) for i in range(result.lanes)])

    return result(storage), codegen


def _attribute(name, opposite):
    @intrinsic
    def mark(typingctx):
        def codegen(context, builder, sig, args):
            # (Numba may have set one of its own, for NUMBA_ENABLE_PROFILING or NUMBA_DEBUGINFO; what is not optimised is a function)
            attributes = builder.function.attributes
            if "optnone" not in attributes:
                attributes.discard(opposite)
                attributes.add(name)
            return context.get_dummy_value()

        return types.none(), codegen

    return mark


#: the routine in which this stands is called, never put in place: a loop with many constants keeps them in registers where
#: nothing around it wants some
stays_a_function = _attribute("noinline", "alwaysinline")
#: the routine in which this stands is put in place however long it is: for one that is called once, with many arguments
put_in_place = _attribute("alwaysinline", "noinline")
