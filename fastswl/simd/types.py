"""Numba types: vectors of 64 bytes' worth of numbers, and the ways in which numbers lie in memory."""

import llvmlite.ir as ir
from numba.core import types
from numba.core.imputils import lower_constant
from numba.extending import (
    models,
    register_model,
    typeof_impl,
)

VECTOR_BYTES = 64
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
LLVM = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: I32,
    types.int64: I64,
    types.boolean: I1,
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
        llvm = ir.VectorType(LLVM[vector.element], vector.lanes)
        super().__init__(manager, vector, llvm)


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


def target_family(context):
    """The family of the CPU that is compiled for: "x86", "aarch64", or another by its name in the target triple."""
    architecture = context.codegen().magic_tuple()[0].split("-")[0]
    families = {"x86": ("x86", "i386", "i686", "amd64"), "aarch64": ("aarch64", "arm64")}
    return next((family for family, names in families.items() if architecture.startswith(names)), architecture)


def target_has(context, feature):
    """Whether the CPU that is compiled for has an x86 feature ("fma", "f16c"); other families have both natively."""
    if target_family(context) != "x86":
        return True
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")
