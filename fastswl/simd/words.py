"""Plans as words in memory, arrays as Python objects, calls by address."""

import llvmlite.ir as ir
from numba.core import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import (
    AttributeTemplate,
    infer_getattr,
)
from numba.extending import (
    NativeValue,
    models,
    register_model,
    unbox,
)

from fastswl.simd.memory import pointer_to
from fastswl.simd.symbols import intrinsic
from fastswl.simd.types import I32, I64, LLVM


class ArrayObject(types.Type):
    """Numba type of a NumPy array seen as a Python object: what its C structure says, without unpacking it.

    Numba's own array arguments cost a compilation for each rank, layout and mutability; this one costs none, and 20 ns a call.
    """

    def __init__(self):
        super().__init__(name="array_object")


ARRAY_OBJECT = ArrayObject()
register_model(ArrayObject)(lambda manager, ty: models.PrimitiveModel(manager, ty, I64))
#: PyArrayObject_fields: the object's head, then data, nd (padded), dimensions, strides, base, descr, flags
_ARRAY_DATA = object.__basicsize__
_ARRAY_FLAGS = object.__basicsize__ + 6 * 8


@unbox(ArrayObject)
def _unbox_array_object(typ, obj, c):
    return NativeValue(c.builder.ptrtoint(obj, I64))


def _array_field(offset, llvm_type):
    @intrinsic
    def field(typingctx, array):
        def codegen(context, builder, sig, args):
            address = builder.add(args[0], ir.Constant(I64, offset))
            value = builder.load(pointer_to(builder, address, llvm_type), align=llvm_type.width // 8)
            return value if llvm_type.width == 64 else builder.zext(value, I64)

        return types.int64(array), codegen

    return field


#: address of an array's first element; its NPY_ARRAY_* flags
array_data = _array_field(_ARRAY_DATA, I64)
array_flags = _array_field(_ARRAY_FLAGS, I32)
ARRAY_C_CONTIGUOUS, ARRAY_ALIGNED, ARRAY_WRITEABLE = 0x1, 0x100, 0x400


class Words(types.Type):
    """Numba type of the address of 8-byte words with names; a name is read as an attribute.

    Words that are `fixed` nobody writes while they are read: LLVM may read them once.
    """

    def __init__(self, name, fields, fixed):
        self.fields = fields  # name -> (number of the word, its Numba type)
        self.fixed = fixed
        super().__init__(name=f"words({name}, {fixed})")

    def read(self, builder, address, name):
        """Write the load of the word `name`."""
        number, type_ = self.fields[name]
        place = builder.add(address, ir.Constant(I64, 8 * number))
        loaded = builder.load(pointer_to(builder, place, LLVM[type_]), align=8)
        if self.fixed:
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded


register_model(Words)(lambda manager, ty: models.PrimitiveModel(manager, ty, I64))


@infer_getattr
class _WordsAttribute(AttributeTemplate):
    key = Words

    def generic_resolve(self, words, name):
        return words.fields[name][1] if name in words.fields else None


@lower_getattr_generic(Words)
def _lower_word(context, builder, words, value, name):
    return words.read(builder, value, name)


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
        function_type = ir.FunctionType(I64, [_OPAQUE, _OPAQUE] + [I64] * 4)
        nothing = ir.Constant(_OPAQUE, None)
        return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), [nothing, nothing, *args[1:]])

    return types.int64(*five), codegen


@intrinsic
def call_function(typingctx, function, first, second, third, fourth, fifth):
    """Call the C function at an address with words, of which it takes as many as it has; what it returns is an int, if anything."""

    def codegen(context, builder, sig, args):
        function_type = ir.FunctionType(I32, [I64] * 5)
        return builder.sext(builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:]), I64)

    return types.int64(*(types.int64,) * 6), codegen


@intrinsic
def fetch_and_add(typingctx, address, step):
    """Atomically add to the int64 at `address`; what stood there before."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", pointer_to(builder, args[0], I64), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen
