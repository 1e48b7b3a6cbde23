"""Rows into vectors of columns and back: transpositions of tiles that lie row by row."""

import llvmlite.ir as ir
from numba.core import types

from fastswl.simd.memory import from_storage, pointer_to, storage_llvm, to_storage
from fastswl.simd.symbols import intrinsic
from fastswl.simd.types import I32, I64, VECTOR_BYTES

# A tile is `lanes` rows; a group of g of its columns is 16 or 32 bytes of arithmetic numbers of each row. Row r of the tile
# becomes lane r. The first load of a vector takes those of rows 0, g, 2g, ... so that the transposition stays inside pieces of
# 16 or 32 bytes, which is what the machine does in one instruction. (A group of 8 float32 instead of two of 4 has fewer and
# longer loads and stores: 100 and 256 classes, softmax in cache, 0.29 to 0.25 ns.)


@intrinsic
def columns_in_group(typingctx, storage):
    """Columns of a small group; a large one has twice as many."""
    group = 16 * 8 // storage.storage.arithmetic.bitwidth
    return types.int64(storage), lambda context, builder, sig, args: ir.Constant(I64, group)


def shuffle(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def concatenate(builder, parts):
    """The vectors end to end, by halves."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        parts = [shuffle(builder, a, b, range(count)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
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
                result[i] = shuffle(builder, a, b, order_low)
                result[i + step] = shuffle(builder, a, b, order_high)
        vectors, step = result, 2 * step
    return vectors


@intrinsic(prefer_literal=True)
def pair_up(typingctx, a, b, distance):
    """The step of a reduction over the lanes of two vectors at once: of each 2 `distance` lanes (a literal) of either the first half,
    those of `a` before those of `b`, and of each the second half."""
    step = distance.literal_value

    def codegen(context, builder, sig, args):
        halves = []
        for half in (0, step):
            starts = [start + half for first in range(0, a.lanes, 2 * step) for start in (first, a.lanes + first)]
            halves.append(shuffle(builder, *args[:2], [start + i for start in starts for i in range(step)]))
        return context.make_tuple(builder, sig.return_type, halves)

    return types.UniTuple(a, 2)(a, b, distance), codegen


def _pick(builder, vectors, order):
    """Lanes of several vectors end to end, in the given order."""
    count = len(order)
    result = None
    for number, vector in enumerate(vectors):
        here = [i - number * count if number * count <= i < (number + 1) * count else None for i in order]
        if result is None:
            picks = [i if i is not None else 0 for i in here]
            result = shuffle(builder, vector, vector, picks)
        else:
            picks = [count + i if i is not None else lane for lane, i in enumerate(here)]
            result = shuffle(builder, result, vector, picks)
    return result


@intrinsic(prefer_literal=True)
def separate(typingctx, storage, source, tile, n_classes):
    """`lanes` rows of `n_classes` (a literal, below a group) end to end, into `tile`: a vector a class."""
    stored, vector, count = storage.storage, storage.vector, n_classes.literal_value

    def codegen(context, builder, sig, args):
        _, source, tile, _ = args
        vectors = []
        for i in range(count):
            address = builder.add(source, ir.Constant(I64, i * vector.lanes * stored.itemsize))
            value = builder.load(
                pointer_to(builder, address, storage_llvm(stored, vector.lanes)), align=stored.itemsize
            )
            vectors.append(from_storage(context, builder, stored, value))
        for c in range(count):
            column = _pick(builder, vectors, [count * row + c for row in range(vector.lanes)])
            address = builder.add(tile, ir.Constant(I64, VECTOR_BYTES * c))
            builder.store(column, pointer_to(builder, address, column.type), align=stored.arithmetic.bitwidth // 8)

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
            address = builder.add(tile, ir.Constant(I64, VECTOR_BYTES * c))
            columns.append(builder.load(pointer_to(builder, address, llvm), align=stored.arithmetic.bitwidth // 8))
        lanes = vector.lanes
        for i in range(count):
            places = [i * lanes + lane for lane in range(lanes)]
            whole = _pick(builder, columns, [place % count * lanes + place // count for place in places])
            value = to_storage(context, builder, stored, whole)
            address = builder.add(target, ir.Constant(I64, i * lanes * stored.itemsize))
            builder.store(value, pointer_to(builder, address, value.type), align=stored.itemsize)

    return types.none(storage, types.int64, types.int64, n_classes), codegen


def _rows_of_tile(builder, first, row_stride, count, n_rows, elsewhere):
    """The address of each row of a tile; where there is a `count`, of the others `elsewhere`."""
    for row in range(n_rows):
        number = ir.Constant(I64, row)
        address = builder.add(first, builder.mul(row_stride, number))
        if count is not None:
            address = builder.select(builder.icmp_signed("<", number, count), address, elsewhere)
        yield address


@intrinsic(prefer_literal=True)
def transpose_in(typingctx, storage, group, source, row_stride, count):
    """A group of columns (a literal says how many) of `lanes` rows that lie `row_stride` bytes apart, as a tuple of vectors. With a
    `count` that is not None so many rows, and the first of them in the other lanes, too."""
    stored, vector, columns = storage.storage, storage.vector, group.literal_value

    def codegen(context, builder, sig, args):
        _, _, source, row_stride, n_rows = args
        n_rows = None if count == types.none else n_rows
        rows = [
            builder.load(pointer_to(builder, address, storage_llvm(stored, columns)), align=stored.itemsize)
            for address in _rows_of_tile(builder, source, row_stride, n_rows, vector.lanes, source)
        ]
        vectors = [
            from_storage(context, builder, stored, concatenate(builder, rows[first::columns]))
            for first in range(columns)
        ]
        return context.make_tuple(builder, sig.return_type, _transpose_groups(builder, vectors))

    result = types.UniTuple(vector, columns)
    return result(storage, group, types.int64, types.int64, types.unliteral(count)), codegen


@intrinsic(prefer_literal=True)
def transpose_out(typingctx, storage, columns, target, row_stride, count, room):
    """The reverse of `transpose_in`, of a tuple of columns; what is in lanes without a row goes to `room`."""
    stored, vector, n_columns = storage.storage, storage.vector, len(columns)

    def codegen(context, builder, sig, args):
        _, group, target, row_stride, n_rows, room = args
        n_rows = None if count == types.none else n_rows
        rows = list(_rows_of_tile(builder, target, row_stride, n_rows, vector.lanes, room))
        vectors = [builder.extract_value(group, i) for i in range(n_columns)]
        for first, value in enumerate(_transpose_groups(builder, vectors)):
            whole = to_storage(context, builder, stored, value)
            for k in range(vector.lanes // n_columns):
                part = shuffle(builder, whole, whole, range(n_columns * k, n_columns * k + n_columns))
                row = pointer_to(builder, rows[n_columns * k + first], part.type)
                builder.store(part, row, align=stored.itemsize)

    return types.none(storage, columns, types.int64, types.int64, types.unliteral(count), types.int64), codegen
