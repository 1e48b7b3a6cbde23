"""Vectors as Numba values: the one module that knows LLVM.

A `Vector` is an LLVM vector of 64 bytes' worth of the arithmetic type (16 float32, 8 float64), or its companions of the
same number of lanes (int32, float64, masks). It has operators, so kernels read like their formulas. The width is the same
on every target, so the order of every summation, and with it every bit, is the same wherever there is a fused multiply-add;
LLVM splits a vector over two or four registers where the machine's are narrower.

A `Storage` names how numbers lie in memory (float32, bfloat16, int8, ...), and in what arithmetic they are worked on.
Memory is addressed by integers: array arguments would cost an atomic reference count in every block.
"""

import operator

import llvmlite.ir as ir
from numba.core import cgutils, types
from numba.core.imputils import lower_cast, lower_constant, lower_getattr_generic
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    models,
    register_model,
    typeof_impl,
    unbox,
)

VECTOR_BYTES = 64
_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_LLVM = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: _I32,
    types.int64: _I64,
    types.boolean: _I1,
}


class Vector(types.Type):
    """Numba type of `lanes` numbers of type `element` in vector registers."""

    def __init__(self, element, lanes):
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"vector({element}, {lanes})")

    def of(self, element):
        """The vector type with the same number of lanes and another element."""
        return Vector(element, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        llvm = ir.VectorType(_LLVM[vector.element], vector.lanes)
        super().__init__(manager, vector, llvm)


# --- storage: how numbers lie in memory -------------------------------------------------------------------------------


class Storage:
    """How one number lies in memory, and the float type it is worked on in.

    An instance is a value in kernels (an argument or a global); each name is a Numba type of its own, so that one kernel
    body is specialised by it.
    """

    def __init__(self, name, element_bits, arithmetic):
        self.name = name
        self.element_bits = element_bits
        self.arithmetic = arithmetic

    @property
    def itemsize(self):
        return self.element_bits // 8

    @property
    def lanes(self):
        """Numbers in a vector."""
        return VECTOR_BYTES * 8 // self.arithmetic.bitwidth

    def __repr__(self):
        return f"Storage({self.name})"


def _all_storages():
    yield Storage("float32", 32, types.float32)
    yield Storage("float64", 64, types.float64)
    yield Storage("float16", 16, types.float32)
    yield Storage("bfloat16", 16, types.float32)
    yield Storage("bool", 8, types.float64)
    for bits in (8, 16, 32, 64):
        yield Storage(f"int{bits}", bits, types.float64)
        yield Storage(f"uint{bits}", bits, types.float64)


STORAGES = {storage.name: storage for storage in _all_storages()}
FLOAT32, FLOAT64 = STORAGES["float32"], STORAGES["float64"]


class StorageType(types.Dummy):
    """Numba type of a `Storage`."""

    def __init__(self, storage):
        self.storage = storage
        super().__init__(name=f"storage({storage.name})")

    @property
    def vector(self):
        return Vector(self.storage.arithmetic, self.storage.lanes)


register_model(StorageType)(models.OpaqueModel)
STORAGE_TYPES = {name: StorageType(storage) for name, storage in STORAGES.items()}


@typeof_impl.register(Storage)
def _typeof_storage(value, context):
    return STORAGE_TYPES[value.name]


def _register_storage_constant():
    @lower_constant(StorageType)
    def constant(context, builder, ty, value):
        return context.get_dummy_value()


_register_storage_constant()


@intrinsic
def arithmetic_of(typingctx, storage):
    """The storage of the numbers that `storage` is worked on in (float32 or float64)."""
    result = STORAGE_TYPES[storage.storage.arithmetic.name]
    return result(storage), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic
def same_arithmetic(typingctx, storage, other):
    """Whether two storages are worked on in the same type (a constant of the compilation)."""
    same = int(storage.storage.arithmetic == other.storage.arithmetic)
    return types.boolean(storage, other), lambda context, builder, sig, args: ir.Constant(_I1, same)


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
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(_I64, size)


@intrinsic
def lanes(typingctx, storage):
    """Numbers in one vector of this storage's arithmetic."""
    count = storage.storage.lanes
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(_I64, count)


# --- targets ------------------------------------------------------------------------------------------------------------


def target_has(context, feature):
    """Whether the CPU that is compiled for has an x86 feature ("fma", "f16c"); other families have both natively."""
    codegen = context.codegen()
    triple, _, features = codegen.magic_tuple()
    if not triple.startswith(("x86", "i386", "i686", "amd64")):
        return True
    return f"+{feature}" in features.split(",")


# --- operators ----------------------------------------------------------------------------------------------------------


def _lower_scalar_to_vector(context, builder, fromty, toty, value):
    scalar = context.cast(builder, value, fromty, toty.element)
    return splat(builder, scalar, toty.lanes)


def splat(builder, scalar, count):
    vector_type = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, count), [0] * count))


for _scalar in (types.Integer, types.Float, types.IntegerLiteral):
    lower_cast(_scalar, Vector)(_lower_scalar_to_vector)


def _vector_operands(args):
    """The common vector type of two operands of which at least one is a vector, or None."""
    if len(args) != 2:
        return None
    vectors = [ty for ty in args if isinstance(ty, Vector)]
    scalars = [ty for ty in args if isinstance(ty, types.Number | types.Literal)]
    if not vectors or len(vectors) + len(scalars) != 2 or vectors[0] != vectors[-1]:
        return None
    return vectors[0]


def _binary_operator(function, emit, result_element=None):
    @infer_global(function)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            vector = _vector_operands(args)
            if vector is None:
                return None
            result = vector.of(result_element) if result_element else vector
            return signature(result, vector, vector)

    @lower_builtin(function, Vector, Vector)
    def lower(context, builder, sig, args):
        return emit(builder, sig.args[0].element, *args)

    return VectorOperator


def _is_float(element):
    return isinstance(element, types.Float)


def _arithmetic(float_name, int_name):
    def emit(builder, element, a, b):
        return getattr(builder, float_name if _is_float(element) else int_name)(a, b)

    return emit


def _integer(name):
    return lambda builder, element, a, b: getattr(builder, name)(a, b)


def _comparison(sign):
    def emit(builder, element, a, b):
        if _is_float(element):
            # NaN compares false, but for != which is true
            return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, a, b)
        return builder.icmp_signed(sign, a, b)

    return emit


for _function, _emit in (
    (operator.add, _arithmetic("fadd", "add")),
    (operator.sub, _arithmetic("fsub", "sub")),
    (operator.mul, _arithmetic("fmul", "mul")),
    (operator.truediv, _arithmetic("fdiv", "sdiv")),
    (operator.and_, _integer("and_")),
    (operator.or_, _integer("or_")),
    (operator.xor, _integer("xor")),
    (operator.lshift, _integer("shl")),
    (operator.rshift, _integer("lshr")),
):
    _binary_operator(_function, _emit)
for _function, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _binary_operator(_function, _comparison(_sign), types.boolean)


@infer_global(operator.neg)
class _VectorNegation(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], Vector):
            return signature(args[0], args[0])
        return None


@lower_builtin(operator.neg, Vector)
def _lower_negation(context, builder, sig, args):
    return builder.fneg(args[0])


@infer_global(operator.invert)
class _MaskInversion(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], Vector):
            return signature(args[0], args[0])
        return None


@lower_builtin(operator.invert, Vector)
def _lower_inversion(context, builder, sig, args):
    return builder.not_(args[0])


# --- arithmetic beyond the operators ------------------------------------------------------------------------------------


@intrinsic
def broadcast(typingctx, storage, scalar):
    """A vector with `scalar` in every lane."""
    vector = storage.vector
    return vector(storage, vector), lambda context, builder, sig, args: args[1]


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


@intrinsic
def by_type(typingctx, storage, for_float32, for_float64):
    """The first or the second value, by the arithmetic type of `storage` (a choice of the compilation)."""
    index = 1 if storage.storage.arithmetic == types.float32 else 2
    args = (storage, types.unliteral(for_float32), types.unliteral(for_float64))
    return args[index](*args), lambda context, builder, sig, values: values[index]


@intrinsic
def polynomial(typingctx, x, coefficients):
    """Horner's rule with `fma`; coefficients (a tuple of float64) from the highest power down to the constant."""

    def codegen(context, builder, sig, args):
        x_value, packed = args
        fused = target_has(context, "fma")
        result = None
        for i in range(coefficients.count):
            scalar = context.cast(builder, builder.extract_value(packed, i), types.float64, x.element)
            term = splat(builder, scalar, x.lanes)
            if result is None:
                result = term
            elif fused:
                result = _call_intrinsic(builder, "llvm.fma", term.type, [result, x_value, term])
            else:
                result = builder.fadd(builder.fmul(result, x_value), term)
        return result

    return x(x, coefficients), codegen


@intrinsic
def has_fma(typingctx):
    """Whether `fma` rounds once on the target (a constant of the compilation)."""

    def codegen(context, builder, sig, args):
        return ir.Constant(_I1, int(target_has(context, "fma")))

    return types.boolean(), codegen


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
def as_bits(typingctx, a):
    """The bits of floats as integers of the same width."""
    result = a.of(types.int32 if a.element == types.float32 else types.int64)
    return result(a), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(sig.return_type))


@intrinsic
def as_floats(typingctx, a):
    """Integers as the floats that have these bits."""
    result = a.of(types.float32 if a.element == types.int32 else types.float64)
    return result(a), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(sig.return_type))


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


@intrinsic(prefer_literal=True)
def swap_halves(typingctx, a, distance):
    """Lane i takes lane i XOR `distance` (a literal power of two): the step of a reduction in tree order."""
    if not isinstance(distance, types.IntegerLiteral):
        return None
    step = distance.literal_value

    def codegen(context, builder, sig, args):
        order = [i ^ step for i in range(a.lanes)]
        return builder.shuffle_vector(args[0], args[0], ir.Constant(ir.VectorType(_I32, a.lanes), order))

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


# --- memory -------------------------------------------------------------------------------------------------------------


def _pointer(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def _storage_llvm(storage, count=None):
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


def _from_storage(context, builder, storage, value):
    """Stored numbers (a vector or one) to the arithmetic type."""
    name, like = storage.name, value.type
    i32, f32, f64 = (_like(like, t) for t in (_I32, ir.FloatType(), ir.DoubleType()))
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


def _to_storage(context, builder, storage, value):
    """Numbers of the arithmetic type to what is stored, rounded to nearest even. Results are never bool or integers."""
    name, like = storage.name, value.type
    i16, i32 = _like(like, ir.IntType(16)), _like(like, _I32)
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
        pointer = _pointer(builder, args[1], _storage_llvm(stored, vector.lanes))
        value = builder.load(pointer, align=stored.itemsize)
        return _from_storage(context, builder, stored, value)

    return vector(storage, types.int64), codegen


@intrinsic
def store(typingctx, storage, address, value):
    """Store a vector from `address` on."""
    stored, vector = storage.storage, storage.vector

    def codegen(context, builder, sig, args):
        pointer = _pointer(builder, args[1], _storage_llvm(stored, vector.lanes))
        builder.store(_to_storage(context, builder, stored, args[2]), pointer, align=stored.itemsize)

    return types.none(storage, types.int64, vector), codegen


@intrinsic
def store_streaming(typingctx, storage, address, value):
    """Store a vector past the caches; `address` must be a multiple of the vector's stored size."""
    stored, vector = storage.storage, storage.vector

    def codegen(context, builder, sig, args):
        pointer = _pointer(builder, args[1], _storage_llvm(stored, vector.lanes))
        size = vector.lanes * stored.itemsize
        instruction = builder.store(_to_storage(context, builder, stored, args[2]), pointer, align=size)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))

    return types.none(storage, types.int64, vector), codegen


@intrinsic
def load_wide(typingctx, storage, address):
    """As many float64 as a vector of `storage` has lanes."""
    result = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        return builder.load(_pointer(builder, args[1], context.get_value_type(result)), align=8)

    return result(storage, types.int64), codegen


@intrinsic
def store_wide(typingctx, storage, address, value):
    """The reverse of `load_wide`."""
    wide = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        builder.store(args[2], _pointer(builder, args[1], args[2].type), align=8)

    return types.none(storage, types.int64, wide), codegen


@intrinsic(prefer_literal=True)
def load_integers(typingctx, storage, address, bits, signed):
    """As many integers of `bits` bits as a vector of `storage` has lanes, as float64 (literals: bits, signed)."""
    width, is_signed = bits.literal_value, signed.literal_value
    result = storage.vector.of(types.float64)

    def codegen(context, builder, sig, args):
        pointer = _pointer(builder, args[1], ir.VectorType(ir.IntType(width), result.lanes))
        value = builder.load(pointer, align=width // 8)
        return (builder.sitofp if is_signed else builder.uitofp)(value, context.get_value_type(result))

    return result(storage, types.int64, bits, signed), codegen


@intrinsic
def load_double(typingctx, address):
    """The float64 at `address`."""

    def codegen(context, builder, sig, args):
        return builder.load(_pointer(builder, args[0], ir.DoubleType()), align=8)

    return types.float64(types.int64), codegen


@intrinsic
def store_double(typingctx, address, value):
    """Store a float64 at `address`."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], _pointer(builder, args[0], ir.DoubleType()), align=8)

    return types.none(types.int64, types.float64), codegen


@intrinsic
def word(typingctx, value):
    """A constant as a plain int64: Numba would compile a routine anew for each literal it is called with."""
    return types.int64(types.int64), lambda context, builder, sig, args: args[0]


@intrinsic
def load_int64(typingctx, address):
    """The int64 at `address`."""

    def codegen(context, builder, sig, args):
        return builder.load(_pointer(builder, args[0], _I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def store_int64(typingctx, address, value):
    """Store an int64 at `address`."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], _pointer(builder, args[0], _I64), align=8)

    return types.none(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_integer(typingctx, address, bits, signed):
    """The integer of `bits` bits at `address` as int64 (literals: bits, signed)."""
    width, is_signed = bits.literal_value, signed.literal_value

    def codegen(context, builder, sig, args):
        stored = ir.IntType(width)
        value = builder.load(_pointer(builder, args[0], stored), align=width // 8)
        if width == 64:
            return value
        return (builder.sext if is_signed else builder.zext)(value, _I64)

    return types.int64(types.int64, bits, signed), codegen


@intrinsic
def load_one(typingctx, storage, address):
    """One number in the arithmetic type."""
    stored = storage.storage

    def codegen(context, builder, sig, args):
        value = builder.load(_pointer(builder, args[1], _storage_llvm(stored)), align=stored.itemsize)
        return _from_storage(context, builder, stored, value)

    return stored.arithmetic(storage, types.int64), codegen


@intrinsic
def store_one(typingctx, storage, address, value):
    """Store one number of the arithmetic type."""
    stored = storage.storage

    def codegen(context, builder, sig, args):
        pointer = _pointer(builder, args[1], _storage_llvm(stored))
        builder.store(_to_storage(context, builder, stored, args[2]), pointer, align=stored.itemsize)

    return types.none(storage, types.int64, stored.arithmetic), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line of `address`; never faults."""

    def codegen(context, builder, sig, args):
        i8_pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [i8_pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(_I32, n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], i8_pointer), read, keep, data])

    return types.none(types.int64), codegen


# --- columns of row-major tiles -----------------------------------------------------------------------------------------
# A tile is `lanes` rows; a group of its columns is 16 bytes of arithmetic numbers of each row (4 float32, 2 float64). Row r
# of the tile becomes lane r. The first load of a vector takes 16 bytes of rows 0, g, 2g, ... so that the transposition
# stays inside 16-byte lanes, which is what the machine does in one instruction.


def _group(storage):
    return 16 * 8 // storage.arithmetic.bitwidth


@intrinsic
def columns_in_group(typingctx, storage):
    """Columns that `transpose_in` brings at once."""
    group = _group(storage.storage)
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(_I64, group)


def _shuffle(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))


def _concatenate(builder, parts):
    """The vectors end to end, by halves."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        parts = [_shuffle(builder, a, b, range(count)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _transpose_groups(builder, vectors):
    """Transpose g vectors seen as rows of g x g matrices lying side by side: vector j, lane g*k + i <-> i, g*k + j."""
    group, count = len(vectors), vectors[0].type.count
    step = 1
    while step < group:
        order_low = [i + (count - step if i & step else 0) for i in range(count)]
        order_high = [i + (count if i & step else step) for i in range(count)]
        result = list(vectors)
        for i in range(group):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                result[i] = _shuffle(builder, a, b, order_low)
                result[i + step] = _shuffle(builder, a, b, order_high)
        vectors, step = result, 2 * step
    return vectors


def _pick(builder, vectors, order):
    """Lanes of several vectors end to end, in the given order."""
    count = len(order)
    result = None
    for number, vector in enumerate(vectors):
        here = [i - number * count if number * count <= i < (number + 1) * count else None for i in order]
        if result is None:
            picks = [i if i is not None else 0 for i in here]
            result = _shuffle(builder, vector, vector, picks)
        else:
            picks = [count + i if i is not None else lane for lane, i in enumerate(here)]
            result = _shuffle(builder, result, vector, picks)
    return result


@intrinsic(prefer_literal=True)
def separate(typingctx, storage, source, tile, n_classes):
    """`lanes` rows of `n_classes` (a literal, below a group) end to end, into `tile`: a vector a class."""
    stored, vector, count = storage.storage, storage.vector, n_classes.literal_value

    def codegen(context, builder, sig, args):
        _, source, tile, _ = args
        vectors = []
        for i in range(count):
            address = builder.add(source, ir.Constant(_I64, i * vector.lanes * stored.itemsize))
            value = builder.load(
                _pointer(builder, address, _storage_llvm(stored, vector.lanes)), align=stored.itemsize
            )
            vectors.append(_from_storage(context, builder, stored, value))
        for c in range(count):
            column = _pick(builder, vectors, [count * row + c for row in range(vector.lanes)])
            address = builder.add(tile, ir.Constant(_I64, VECTOR_BYTES * c))
            builder.store(column, _pointer(builder, address, column.type), align=stored.arithmetic.bitwidth // 8)

    return types.none(storage, types.int64, types.int64, n_classes), codegen


@intrinsic(prefer_literal=True)
def interleave(typingctx, storage, tile, target, n_classes):
    """The reverse of `separate`."""
    stored, vector, count = storage.storage, storage.vector, n_classes.literal_value

    def codegen(context, builder, sig, args):
        _, tile, target, _ = args
        llvm = context.get_value_type(vector)
        columns = []
        for c in range(count):
            address = builder.add(tile, ir.Constant(_I64, VECTOR_BYTES * c))
            columns.append(builder.load(_pointer(builder, address, llvm), align=stored.arithmetic.bitwidth // 8))
        lanes = vector.lanes
        for i in range(count):
            places = [i * lanes + lane for lane in range(lanes)]
            whole = _pick(builder, columns, [place % count * lanes + place // count for place in places])
            value = _to_storage(context, builder, stored, whole)
            address = builder.add(target, ir.Constant(_I64, i * lanes * stored.itemsize))
            builder.store(value, _pointer(builder, address, value.type), align=stored.itemsize)

    return types.none(storage, types.int64, types.int64, n_classes), codegen


@intrinsic
def transpose_in(typingctx, storage, source, row_stride, tile):
    """A group of columns of `lanes` rows that lie `row_stride` bytes apart, into `tile`: a vector a column, end to end."""
    stored, vector = storage.storage, storage.vector
    group = _group(stored)

    def codegen(context, builder, sig, args):
        _, source, row_stride, tile = args
        rows = [
            builder.load(
                _pointer(
                    builder,
                    builder.add(source, builder.mul(row_stride, ir.Constant(_I64, row))),
                    _storage_llvm(stored, group),
                ),
                align=stored.itemsize,
            )
            for row in range(vector.lanes)
        ]
        vectors = [
            _from_storage(context, builder, stored, _concatenate(builder, rows[first::group])) for first in range(group)
        ]
        for i, column in enumerate(_transpose_groups(builder, vectors)):
            address = builder.add(tile, ir.Constant(_I64, VECTOR_BYTES * i))
            builder.store(column, _pointer(builder, address, column.type), align=stored.arithmetic.bitwidth // 8)

    return types.none(storage, types.int64, types.int64, types.int64), codegen


@intrinsic
def transpose_out(typingctx, storage, tile, target, row_stride):
    """The reverse of `transpose_in`."""
    stored, vector = storage.storage, storage.vector
    group = _group(stored)

    def codegen(context, builder, sig, args):
        _, tile, target, row_stride = args
        llvm = context.get_value_type(vector)
        columns = []
        for i in range(group):
            address = builder.add(tile, ir.Constant(_I64, VECTOR_BYTES * i))
            columns.append(builder.load(_pointer(builder, address, llvm), align=stored.arithmetic.bitwidth // 8))
        for first, value in enumerate(_transpose_groups(builder, columns)):
            whole = _to_storage(context, builder, stored, value)
            for k in range(vector.lanes // group):
                row = group * k + first
                part = _shuffle(builder, whole, whole, range(group * k, group * k + group))
                row_address = builder.add(target, builder.mul(row_stride, ir.Constant(_I64, row)))
                builder.store(part, _pointer(builder, row_address, part.type), align=stored.itemsize)

    return types.none(storage, types.int64, types.int64, types.int64), codegen


# --- plain words in memory, calls by address ----------------------------------------------------------------------------


class ArrayObject(types.Type):
    """Numba type of a NumPy array seen as a Python object: what its C structure says, without unpacking it.

    Numba's own array arguments cost a compilation for each rank, layout and mutability; this one costs none, and 20 ns a call.
    """

    def __init__(self):
        super().__init__(name="array_object")


ARRAY_OBJECT = ArrayObject()
register_model(ArrayObject)(lambda manager, ty: models.PrimitiveModel(manager, ty, _I64))
#: PyArrayObject_fields: the object's head, then data, nd (padded), dimensions, strides, base, descr, flags
_ARRAY_DATA = object.__basicsize__
_ARRAY_FLAGS = object.__basicsize__ + 6 * 8


@unbox(ArrayObject)
def _unbox_array_object(typ, obj, c):
    return NativeValue(c.builder.ptrtoint(obj, _I64))


def _array_field(offset, llvm_type):
    @intrinsic
    def field(typingctx, array):
        def codegen(context, builder, sig, args):
            address = builder.add(args[0], ir.Constant(_I64, offset))
            value = builder.load(_pointer(builder, address, llvm_type), align=llvm_type.width // 8)
            return value if llvm_type.width == 64 else builder.zext(value, _I64)

        return types.int64(array), codegen

    return field


#: address of an array's first element; its NPY_ARRAY_* flags
array_data = _array_field(_ARRAY_DATA, _I64)
array_flags = _array_field(_ARRAY_FLAGS, _I32)
ARRAY_ALIGNED, ARRAY_WRITEABLE = 0x100, 0x400


class Words(types.Type):
    """Numba type of the address of 8-byte words with names; a name is read as an attribute."""

    def __init__(self, name, fields):
        self.fields = fields  # name -> (number of the word, its Numba type)
        super().__init__(name=f"words({name})")


register_model(Words)(lambda manager, ty: models.PrimitiveModel(manager, ty, _I64))


@infer_getattr
class _WordsAttribute(AttributeTemplate):
    key = Words

    def generic_resolve(self, words, name):
        return words.fields[name][1] if name in words.fields else None


@lower_getattr_generic(Words)
def _lower_word(context, builder, words, value, name):
    number, type_ = words.fields[name]
    address = builder.add(value, ir.Constant(_I64, 8 * number))
    loaded = builder.load(_pointer(builder, address, _LLVM[type_]), align=8)
    # nobody writes them while a kernel runs: LLVM may read them once
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


def words_at(words):
    """The function for kernels that takes an address for that of `words`."""

    @intrinsic
    def at(typingctx, address):
        return words(types.int64), lambda context, builder, sig, args: args[0]

    return at


_OPAQUE = ir.IntType(8).as_pointer()


@intrinsic
def call_kernel(typingctx, function, plan, scratch, first, last):
    """Call the compiled kernel `(storage, storage, plan, scratch, first, last) -> int64` that lies at address `function`."""
    five = (types.int64,) * 5

    def codegen(context, builder, sig, args):
        function_type = ir.FunctionType(_I64, [_OPAQUE, _OPAQUE] + [_I64] * 4)
        nothing = ir.Constant(_OPAQUE, None)
        return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), [nothing, nothing, *args[1:]])

    return types.int64(*five), codegen


@intrinsic
def fetch_and_add(typingctx, address, step):
    """Atomically add to the int64 at `address`; what stood there before."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0], _I64), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen
