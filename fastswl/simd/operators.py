"""Python's operators on vectors; a number beside a vector stands in every lane."""

import operator
from types import MappingProxyType

import llvmlite.ir as ir
from numba.core import types
from numba.core.imputils import lower_cast
from numba.core.typing.templates import (
    AbstractTemplate,
    infer_global,
    signature,
)
from numba.extending import (
    lower_builtin,
)

from fastswl.simd.types import I32, Vector


def _lower_scalar_to_vector(context, builder, fromty, toty, value):
    scalar = context.cast(builder, value, fromty, toty.element)
    return splat(builder, scalar, toty.lanes)


def splat(builder, scalar, count):
    vector_type = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, count), [0] * count))


for _scalar in (types.Integer, types.Float, types.IntegerLiteral):
    lower_cast(_scalar, Vector)(_lower_scalar_to_vector)


#: Numba tries templates for a target before those for any, of which an operator has dozens (a cold start: 7.9 to 7.4 s)
_TRIED_FIRST = MappingProxyType({"target": "cpu"})


def _vector_operands(args):
    """The common vector type of two operands of which at least one is a vector, or None."""
    if len(args) != 2:
        return None
    vectors = [ty for ty in args if isinstance(ty, Vector)]
    scalars = [ty for ty in args if isinstance(ty, types.Number | types.Literal)]
    if not vectors or len(vectors) + len(scalars) != 2 or vectors[0] != vectors[-1]:
        return None
    return vectors[0]


#: for each operator: what writes it for two values of an element, and the element of its result where that is another
EMITTERS = {}


def _binary_operator(function, emit, result_element=None):
    EMITTERS[function] = emit, result_element

    @infer_global(function)
    class VectorOperator(AbstractTemplate):
        metadata = _TRIED_FIRST

        def generic(self, args, kws):
            vector = _vector_operands(args)
            if vector is None:
                return None
            result = vector.of(result_element) if result_element else vector
            return signature(result, vector, vector)

    @lower_builtin(function, Vector, Vector)
    def lower(context, builder, sig, args):
        return emit(builder, sig.args[0].element, *args)


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
    metadata = _TRIED_FIRST

    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], Vector):
            return signature(args[0], args[0])
        return None


@lower_builtin(operator.neg, Vector)
def _lower_negation(context, builder, sig, args):
    return emit_negation(builder, sig.args[0], args[0])


def emit_negation(builder, type_, value):
    return builder.fneg(value) if _is_float(getattr(type_, "element", type_)) else builder.neg(value)
