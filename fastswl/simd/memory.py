"""Loads and stores by address, with the conversion between what is stored and what is worked on."""

import llvmlite.ir as ir
from numba.core import cgutils, types

from fastswl.simd.symbols import intrinsic
from fastswl.simd.types import I32, I64, target_has


def pointer_to(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def storage_llvm(storage, count=None):
    bits = storage.element_bits
    if storage.name == "float32":
        element = ir.FloatType()
    elif storage.name == "float64":
        element = ir.DoubleType()
    else:
        element = ir.IntType(bits)
    return element if count is None else ir.VectorType(element, count)


def _like(llvm_type, element):
    """`element`, as a vector of as many as `llvm_type` has, or as a scalar."""
    if isinstance(llvm_type, ir.VectorType):
        return ir.VectorType(element, llvm_type.count)
    return element


def _constant(llvm_type, value):
    if isinstance(llvm_type, ir.VectorType):
        return ir.Constant(llvm_type, [value] * llvm_type.count)
    return ir.Constant(llvm_type, value)


def from_storage(context, builder, storage, value):
    """Stored numbers (a vector or one) to the arithmetic type."""
    name, like = storage.name, value.type
    i32, f32, f64 = (_like(like, t) for t in (I32, ir.FloatType(), ir.DoubleType()))
    if name in ("float32", "float64"):
        return value
    if name == "float16":
        if target_has(context, "f16c"):
            return builder.fpext(builder.bitcast(value, _like(like, ir.HalfType())), f32)
        return _half_to_float(builder, builder.zext(value, i32), i32, f32)
    if name == "bfloat16":
        bits = builder.shl(builder.zext(value, i32), _constant(i32, 16))
        return builder.bitcast(bits, f32)
    if name == "bool":
        return builder.uitofp(builder.icmp_unsigned("!=", value, _constant(like, 0)), f64)
    return (builder.sitofp if name.startswith("int") else builder.uitofp)(value, f64)


def to_storage(context, builder, storage, value):
    """Numbers of the arithmetic type to what is stored, rounded to nearest even. Results are never bool or integers."""
    name, like = storage.name, value.type
    i16, i32 = _like(like, ir.IntType(16)), _like(like, I32)
    if name == "float16":
        if target_has(context, "f16c"):
            return builder.bitcast(builder.fptrunc(value, _like(like, ir.HalfType())), i16)
        return builder.trunc(_float_to_half(builder, value, i32), i16)
    if name == "bfloat16":
        bits = builder.bitcast(value, i32)
        high = builder.lshr(bits, _constant(i32, 16))
        odd = builder.and_(high, _constant(i32, 1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _constant(i32, 0x7FFF))), _constant(i32, 16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        quiet = builder.or_(high, _constant(i32, 0x40))
        return builder.trunc(builder.select(is_nan, quiet, rounded), i16)
    return value


def _half_to_float(builder, bits, i32, f32):
    """float16 bits to float32 in integer arithmetic: move the exponent, scale by 2^112, widen inf and NaN."""
    sign = builder.shl(builder.and_(bits, _constant(i32, 0x8000)), _constant(i32, 16))
    magnitude = builder.shl(builder.and_(bits, _constant(i32, 0x7FFF)), _constant(i32, 13))
    scaled = builder.fmul(builder.bitcast(magnitude, f32), _constant(f32, 2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, _constant(i32, 0x7C00 << 13))
    wide = builder.or_(magnitude, _constant(i32, 0x7F800000))
    result = builder.select(special, wide, builder.bitcast(scaled, i32))
    return builder.bitcast(builder.or_(result, sign), f32)


def _float_to_half(builder, value, i32):
    """float32 to float16 bits, rounded to nearest even, in integer arithmetic (float additions round the subnormals)."""
    f32 = value.type
    bits = builder.bitcast(value, i32)
    sign = builder.and_(bits, _constant(i32, 0x80000000))
    magnitude = builder.xor(bits, sign)
    # below 2^-14: adding 0.5 puts the 2^-24 of float16's subnormals at the last place of float32
    tiny = builder.sub(
        builder.bitcast(builder.fadd(builder.bitcast(magnitude, f32), _constant(f32, 0.5)), i32),
        _constant(i32, 0x3F000000),
    )
    odd = builder.and_(builder.lshr(magnitude, _constant(i32, 13)), _constant(i32, 1))
    moved = builder.add(builder.add(magnitude, _constant(i32, ((15 - 127) << 23) + 0xFFF)), odd)
    normal = builder.lshr(moved, _constant(i32, 13))
    result = builder.select(builder.icmp_unsigned("<", magnitude, _constant(i32, 113 << 23)), tiny, normal)
    is_nan = builder.icmp_unsigned(">", magnitude, _constant(i32, 0x7F800000))
    special = builder.select(is_nan, _constant(i32, 0x7E00), _constant(i32, 0x7C00))
    result = builder.select(builder.icmp_unsigned(">=", magnitude, _constant(i32, 143 << 23)), special, result)
    return builder.or_(result, builder.lshr(sign, _constant(i32, 16)))


@intrinsic
def load(typingctx, storage, address):
    """A vector from `address` on, in the arithmetic type; any alignment of the element."""
    stored, vector = storage.storage, storage.vector

    def codegen(context, builder, sig, args):
        pointer = pointer_to(builder, args[1], storage_llvm(stored, vector.lanes))
        value = builder.load(pointer, align=stored.itemsize)
        return from_storage(context, builder, stored, value)

    return vector(storage, types.int64), codegen


@intrinsic
def store(typingctx, storage, address, value):
    """Store a vector from `address` on."""
    stored, vector = storage.storage, storage.vector

    def codegen(context, builder, sig, args):
        pointer = pointer_to(builder, args[1], storage_llvm(stored, vector.lanes))
        builder.store(to_storage(context, builder, stored, args[2]), pointer, align=stored.itemsize)

    return types.none(storage, types.int64, vector), codegen


@intrinsic
def store_streaming(typingctx, storage, address, value):
    """Store a vector past the caches; `address` must be a multiple of the vector's stored size."""
    stored, vector = storage.storage, storage.vector

    def codegen(context, builder, sig, args):
        pointer = pointer_to(builder, args[1], storage_llvm(stored, vector.lanes))
        size = vector.lanes * stored.itemsize
        value = to_storage(context, builder, stored, args[2])
        past_the_caches = builder.module.add_metadata([ir.Constant(I32, 1)])
        if stored.name != "bfloat16":
            builder.store(value, pointer, align=size).set_metadata("nontemporal", past_the_caches)
            return
        # in halves: LLVM makes one instruction of a conversion and a store of a whole vector, an ordinary store (bfloat16, 1,000
        # classes: 0.43 to 0.26 ns an element)
        half = ir.VectorType(I64, size // 16)
        words = builder.bitcast(value, ir.VectorType(I64, size // 8))
        for i in range(2):
            order = ir.Constant(ir.VectorType(I32, half.count), [half.count * i + k for k in range(half.count)])
            part = builder.shuffle_vector(words, ir.Constant(words.type, ir.Undefined), order)
            place = pointer_to(builder, builder.add(args[1], ir.Constant(I64, size // 2 * i)), half)
            builder.store(part, place, align=size // 2).set_metadata("nontemporal", past_the_caches)

    return types.none(storage, types.int64, vector), codegen


@intrinsic
def load_wide(typingctx, storage, address):
    """As many float64 as a vector of `storage` has lanes."""
    result = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        return builder.load(pointer_to(builder, args[1], context.get_value_type(result)), align=8)

    return result(storage, types.int64), codegen


@intrinsic
def store_wide(typingctx, storage, address, value):
    """The reverse of `load_wide`."""
    wide = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        builder.store(args[2], pointer_to(builder, args[1], args[2].type), align=8)

    return types.none(storage, types.int64, wide), codegen


@intrinsic(prefer_literal=True)
def load_integers(typingctx, storage, address, bits, signed):
    """As many integers of `bits` bits as a vector of `storage` has lanes, as float64 (literals: bits, signed).

    Signed ones of 64 bits must lie within 2**51 of 0; others become some number outside, or NaN. (Without AVX-512 there is no
    instruction for them, and one by one they were 5 % of the instructions of loss and gradient of 2 classes.)
    """
    width, is_signed = bits.literal_value, signed.literal_value
    result = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        wide = context.get_value_type(result)
        pointer = pointer_to(builder, args[1], ir.VectorType(ir.IntType(width), result.lanes))
        value = builder.load(pointer, align=width // 8)
        if is_signed and width == 64:
            # added to the bits of 1.5 * 2**52, the floats about which are whole numbers
            bits_of_middle = ir.Constant(value.type, [0x4338000000000000] * result.lanes)
            moved = builder.bitcast(builder.add(value, bits_of_middle), wide)
            return builder.fsub(moved, ir.Constant(wide, [1.5 * 2.0**52] * result.lanes))
        return (builder.sitofp if is_signed else builder.uitofp)(value, wide)

    return result(storage, types.int64, bits, signed), codegen


@intrinsic
def store_integers(typingctx, storage, address, value):
    """Whole numbers of a vector of float64, as int32."""
    wide = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        integers = ir.VectorType(I32, wide.lanes)
        builder.store(builder.fptosi(args[2], integers), pointer_to(builder, args[1], integers), align=4)

    return types.none(storage, types.int64, wide), codegen


@intrinsic
def load_double(typingctx, address):
    """The float64 at `address`."""

    def codegen(context, builder, sig, args):
        return builder.load(pointer_to(builder, args[0], ir.DoubleType()), align=8)

    return types.float64(types.int64), codegen


@intrinsic
def load_doubles_at(typingctx, address, numbers):
    """Of the float64 from `address` on those of the given numbers (a vector of whole float64), as a vector."""

    def codegen(context, builder, sig, args):
        address, numbers = args
        offsets = builder.fptosi(numbers, ir.VectorType(I64, sig.args[1].lanes))
        result = ir.Constant(numbers.type, ir.Undefined)
        for lane in range(sig.args[1].lanes):
            number = ir.Constant(I32, lane)
            offset = builder.mul(builder.extract_element(offsets, number), ir.Constant(I64, 8))
            value = builder.load(pointer_to(builder, builder.add(address, offset), ir.DoubleType()), align=8)
            result = builder.insert_element(result, value, number)
        return result

    return numbers(types.int64, numbers), codegen


@intrinsic
def store_double(typingctx, address, value):
    """Store a float64 at `address`."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], pointer_to(builder, args[0], ir.DoubleType()), align=8)

    return types.none(types.int64, types.float64), codegen


@intrinsic
def word(typingctx, value):
    """A constant as a plain int64: Numba would compile a routine anew for each literal it is called with."""
    return types.int64(types.int64), lambda context, builder, sig, args: args[0]


@intrinsic
def load_int64(typingctx, address):
    """The int64 at `address`."""

    def codegen(context, builder, sig, args):
        return builder.load(pointer_to(builder, args[0], I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def store_int64(typingctx, address, value):
    """Store an int64 at `address`."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], pointer_to(builder, args[0], I64), align=8)

    return types.none(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_integer(typingctx, address, bits, signed):
    """The integer of `bits` bits at `address` as int64 (literals: bits, signed)."""
    width, is_signed = bits.literal_value, signed.literal_value

    def codegen(context, builder, sig, args):
        stored = ir.IntType(width)
        value = builder.load(pointer_to(builder, args[0], stored), align=width // 8)
        if width == 64:
            return value
        return (builder.sext if is_signed else builder.zext)(value, I64)

    return types.int64(types.int64, bits, signed), codegen


@intrinsic
def load_one(typingctx, storage, address):
    """One number in the arithmetic type."""
    stored = storage.storage

    def codegen(context, builder, sig, args):
        value = builder.load(pointer_to(builder, args[1], storage_llvm(stored)), align=stored.itemsize)
        return from_storage(context, builder, stored, value)

    return stored.arithmetic(storage, types.int64), codegen


@intrinsic
def store_one(typingctx, storage, address, value):
    """Store one number of the arithmetic type."""
    stored = storage.storage

    def codegen(context, builder, sig, args):
        pointer = pointer_to(builder, args[1], storage_llvm(stored))
        builder.store(to_storage(context, builder, stored, args[2]), pointer, align=stored.itemsize)

    return types.none(storage, types.int64, stored.arithmetic), codegen


def _prefetch(locality):
    @intrinsic
    def ask(typingctx, address):
        def codegen(context, builder, sig, args):
            i8_pointer = ir.IntType(8).as_pointer()
            function_type = ir.FunctionType(ir.VoidType(), [i8_pointer, I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
            read, data = ir.Constant(I32, 0), ir.Constant(I32, 1)
            builder.call(function, [builder.inttoptr(args[0], i8_pointer), read, ir.Constant(I32, locality), data])

        return types.none(types.int64), codegen

    return ask


#: ask for the cache line of an address, into the first or the second level, or into the first alone, which does not pass it on once it
#: was read; none faults
prefetch = _prefetch(3)
prefetch_second_level = _prefetch(2)
prefetch_once = _prefetch(0)
