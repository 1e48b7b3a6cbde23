"""Formulas: functions of vectors and numbers that write their LLVM code by being run.

Numba puts a small function in place by copying its statements into the caller, where each is typed and lowered anew: 8 ms for
two_sum, and kernels are made of hundreds. A `formula` is run in Python instead, with a `Symbol` for each value; operators and
intrinsics of symbols write instructions, and what does not hang on a symbol (`if has_fma():`, the coefficients of a type, a loop over
halves) is Python's, and done when the code is written. (First calls: 8.2 to 1.4 s, with kernels of their own for calls without
options.)

What hangs on a number is for `select` (both sides are worked out) or `choose` and `when` (one is); `steps` is a loop, in which
`Running` values go from one round to the next. All else, walks over blocks above all, is Numba's.
"""

import functools
import inspect
import operator

import llvmlite.ir as ir
from numba.core import cgutils, types
from numba.core.extending import _Intrinsic
from numba.core.registry import cpu_target
from numba.core.typing.typeof import typeof

from fastswl.simd.operators import EMITTERS, emit_negation, splat
from fastswl.simd.types import I64, LLVM, Storage, Vector


class _Writer:
    """Where instructions go at the moment; Numba compiles under one lock."""

    context = None
    builder = None


def _at(context, builder, function, *args):
    """Run `function` while instructions go to `builder`."""
    before = _Writer.context, _Writer.builder
    _Writer.context, _Writer.builder = context, builder
    try:
        return function(*args)
    finally:
        _Writer.context, _Writer.builder = before


class Symbol:
    """A number or a vector that is known when the kernel runs: its Numba type, and what LLVM calls it."""

    def __init__(self, type_, llvm):
        self.type = type_
        self.llvm = llvm

    def __bool__(self):
        raise TypeError("a formula can't branch on a value: use `select` or `choose`")

    def __neg__(self):
        return Symbol(self.type, emit_negation(_Writer.builder, self.type, self.llvm))

    def __invert__(self):
        return Symbol(self.type, _Writer.builder.not_(self.llvm))

    def __getattr__(self, name):
        words = self.type
        if name.startswith("__") or name not in getattr(words, "fields", ()):
            raise AttributeError(name)
        return Symbol(words.fields[name][1], words.read(_Writer.builder, self.llvm, name))


def _operation(function):
    emit, result_element = EMITTERS[function]

    def forward(a, b):
        if isinstance(b, SideBySide):
            # its own operator is for this
            return NotImplemented
        type_ = _common_type(a, b)
        element = getattr(type_, "element", type_)
        value = emit(_Writer.builder, element, _as_type(a, type_), _as_type(b, type_))
        if result_element is not None:
            type_ = type_.of(result_element) if isinstance(type_, Vector) else result_element
        return Symbol(type_, value)

    return forward


class SideBySide:
    """Several vectors that go through the same steps: each is written for one after the other, so that no instruction stands right
    behind the one whose result it waits for (exponentials of four vectors: 8.1 to 6.5 cycles each)."""

    def __init__(self, *each):
        self.each = each

    def __iter__(self):
        return iter(self.each)

    def __neg__(self):
        return SideBySide(*(-one for one in self.each))

    def __invert__(self):
        return SideBySide(*(~one for one in self.each))


def _side_by_side(function, args):
    """`function` of arguments of which some are several vectors."""
    count = next(len(arg.each) for arg in args if isinstance(arg, SideBySide))
    columns = (arg.each if isinstance(arg, SideBySide) else (arg,) * count for arg in args)
    return SideBySide(*(function(*each) for each in zip(*columns, strict=True)))


def joined(groups):
    """For formulas: several groups of vectors side by side as one."""
    return SideBySide(*(one for group in groups for one in group))


def parted(whole, n_groups):
    """The reverse."""
    size = len(whole.each) // n_groups
    return [SideBySide(*whole.each[size * i : size * (i + 1)]) for i in range(n_groups)]


def _install_operators():
    """Python's operators on symbols, by what writes them for Numba."""
    comparisons = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
    for function in EMITTERS:
        forward = _operation(function)
        name = function.__name__.strip("_")
        setattr(Symbol, f"__{name}__", forward)
        setattr(SideBySide, f"__{name}__", lambda a, b, function=function: _side_by_side(function, (a, b)))
        if function not in comparisons:
            setattr(Symbol, f"__r{name}__", lambda a, b, forward=forward: forward(b, a))
            setattr(SideBySide, f"__r{name}__", lambda a, b, function=function: _side_by_side(function, (b, a)))
    # (a class that has == and no hash can't be a key)
    Symbol.__hash__ = SideBySide.__hash__ = object.__hash__


_install_operators()


def _common_type(a, b):
    """The type in which two operands meet: a vector's, else the larger of two numbers'."""
    kinds = [x.type for x in (a, b) if isinstance(x, Symbol)]
    for kind in kinds:
        if isinstance(kind, Vector):
            return kind
    if not all(isinstance(x, Symbol) for x in (a, b)):
        constant = b if isinstance(a, Symbol) else a
        if isinstance(constant, float) and not isinstance(kinds[0], types.Float):
            return types.float64
        return kinds[0]
    if kinds[0] == kinds[1]:
        return kinds[0]
    return types.float64 if any(isinstance(kind, types.Float) for kind in kinds) else types.int64


def _as_type(value, type_):
    """What LLVM calls `value` once it is of a type: a number beside a vector stands in every lane."""
    if not isinstance(value, Symbol):
        number = type_.element if isinstance(type_, Vector) else type_
        value = float(value) if isinstance(number, types.Float) else value
        if isinstance(type_, Vector):
            return ir.Constant(ir.VectorType(LLVM[number], type_.lanes), [value] * type_.lanes)
        if type_ in LLVM:
            return ir.Constant(LLVM[type_], value)
        value = as_symbol(value)
    if value.type == type_:
        return value.llvm
    if isinstance(type_, Vector):
        return splat(_Writer.builder, _as_type(value, type_.element), type_.lanes)
    return _Writer.context.cast(_Writer.builder, value.llvm, value.type, type_)


def as_symbol(value):
    """What is known while the code is written, as a symbol: a number, a storage, a tuple."""
    if isinstance(value, Symbol):
        return value
    if value is None:
        return Symbol(types.none, _Writer.context.get_dummy_value())
    if isinstance(value, Storage):
        return Symbol(typeof(value), _Writer.context.get_dummy_value())
    if isinstance(value, bool):
        return Symbol(types.literal(value), ir.Constant(LLVM[types.boolean], int(value)))
    if isinstance(value, int):
        return Symbol(types.literal(value), ir.Constant(I64, value))
    if isinstance(value, float):
        return Symbol(types.float64, ir.Constant(ir.DoubleType(), value))
    parts = [as_symbol(part) for part in value]
    kinds = [types.unliteral(part.type) for part in parts]
    tuple_type = types.BaseTuple.from_types(kinds, type(value) if hasattr(value, "_fields") else None)
    return Symbol(tuple_type, _Writer.context.make_tuple(_Writer.builder, tuple_type, [part.llvm for part in parts]))


def _unpacked(symbol):
    """A symbol, or the tuple of symbols that it stands for."""
    if isinstance(symbol.type, types.NoneType):
        return None
    if not isinstance(symbol.type, types.BaseTuple):
        return symbol
    parts = [
        _unpacked(Symbol(kind, _Writer.builder.extract_value(symbol.llvm, i))) for i, kind in enumerate(symbol.type)
    ]
    return symbol.type.instance_class(*parts) if isinstance(symbol.type, types.BaseNamedTuple) else tuple(parts)


def choose(which, *alternatives):
    """What one of several functions without arguments gives, the `which`-th of them: the others are not run. Of a condition the first
    is for false. They may give tuples, and several vectors side by side."""
    if not isinstance(which, Symbol):
        return alternatives[int(which)]()
    builder = _Writer.builder
    blocks = [builder.append_basic_block() for _ in alternatives]
    after = builder.append_basic_block()
    if which.type == types.boolean:
        when_false, when_true = blocks
        builder.cbranch(which.llvm, when_true, when_false)
    else:
        switch = builder.switch(_as_type(which, types.int64), blocks[-1])
        for i, block in enumerate(blocks[:-1]):
            switch.add_case(ir.Constant(I64, i), block)
    results = []
    for block, alternative in zip(blocks, alternatives, strict=True):
        builder.position_at_end(block)
        results.append((alternative(), builder.block))
    shape = functools.reduce(_common_shape, (result for result, _ in results))
    kinds, incoming = [], []
    for result, block in results:
        builder.position_at_end(block)
        symbols = [_result(leaf) for leaf in _leaves(result, shape)]
        kinds = kinds or [symbol.type for symbol in symbols]
        incoming.append([_as_type(symbol, kind) for symbol, kind in zip(symbols, kinds, strict=True)])
        builder.branch(after)
    builder.position_at_end(after)
    phis = [builder.phi(value.type) for value in incoming[0]]
    for values, (_, block) in zip(incoming, results, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)
    leaves = iter([Symbol(kind, phi) for kind, phi in zip(kinds, phis, strict=True)])
    return _rebuilt(shape, leaves)


def _common_shape(a, b):
    """How two values are made of tuples and of several side by side: one beside several counts for each."""
    if isinstance(a, SideBySide) or isinstance(b, SideBySide):
        return a if isinstance(a, SideBySide) else b
    if not isinstance(a, tuple):
        return a
    parts = [_common_shape(*each) for each in zip(a, b, strict=True)]
    return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)


def _leaves(value, shape):
    """The symbols and numbers that a value is made of; none of None."""
    if isinstance(shape, SideBySide):
        return list(value) if isinstance(value, SideBySide) else [value] * len(shape.each)
    if isinstance(shape, tuple):
        return [leaf for each in zip(value, shape, strict=True) for leaf in _leaves(*each)]
    return [] if value is None else [value]


def _rebuilt(shape, leaves):
    """A value of this shape made of other symbols."""
    if isinstance(shape, SideBySide):
        return SideBySide(*(next(leaves) for _ in shape))
    if isinstance(shape, tuple):
        parts = [_rebuilt(part, leaves) for part in shape]
        return type(shape)(*parts) if hasattr(shape, "_fields") else tuple(parts)
    return None if shape is None else next(leaves)


def when(condition, action):
    """Run `action`, a function without arguments, if the condition holds."""
    choose(condition, lambda: None, action)


def _as_it_is_written(module):
    """What tells LLVM not to write the rounds of a loop out, 8 of them and a loop for the rest (a first call 10 % shorter, and kernels
    as fast: where it pays it is done by hand)."""
    disabled = module.add_metadata(["llvm.loop.unroll.runtime.disable"])
    node = ir.MDValue(module, [disabled], name=str(len(module.metadata)))
    # the first of a loop's operands is itself
    node.operands = (node, disabled)
    return node


def steps(first, end, step=1):
    """The numbers of a formula's loop, from `first` to before `end`.

    Nothing but memory and what is `Running` goes from one round to the next, and there is no `break`: the body is run once, to be
    written.
    """
    builder = _Writer.builder
    before = builder.block
    head, body, after = (builder.append_basic_block() for _ in range(3))
    start, stop = _as_type(first, types.int64), _as_type(end, types.int64)
    builder.branch(head)
    builder.position_at_end(head)
    number = builder.phi(I64)
    number.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", number, stop), body, after)
    builder.position_at_end(body)
    yield Symbol(types.int64, number)
    following = builder.add(number, ir.Constant(I64, step), flags=("nsw",))
    number.add_incoming(following, builder.block)
    builder.branch(head).set_metadata("llvm.loop", _as_it_is_written(builder.module))
    builder.position_at_end(after)


class Running:
    """A value that goes from one round of a loop of `steps` to the next, or out of an alternative of `choose`; or several vectors side
    by side."""

    def __init__(self, value):
        self._shape = value
        symbols = [_result(leaf) for leaf in _leaves(value, value)]
        self._kinds = [symbol.type for symbol in symbols]
        self._slots = [cgutils.alloca_once_value(_Writer.builder, symbol.llvm) for symbol in symbols]

    @property
    def value(self):
        loaded = (Symbol(*each) for each in zip(self._kinds, map(_Writer.builder.load, self._slots), strict=True))
        return _rebuilt(self._shape, loaded)

    @value.setter
    def value(self, value):
        for kind, slot, leaf in zip(self._kinds, self._slots, _leaves(value, self._shape), strict=True):
            _Writer.builder.store(_as_type(leaf, kind), slot)


class _SymbolicIntrinsic(_Intrinsic):
    """An intrinsic of Numba that formulas call, too."""

    #: what formulas call instead
    in_formulas = None

    def __call__(self, *args):
        if self.in_formulas is not None:
            return self.in_formulas(*args)
        if any(isinstance(arg, SideBySide) for arg in args):
            return _side_by_side(self, args)
        symbols = [as_symbol(arg) for arg in args]
        kinds = [symbol.type if self._prefer_literal else types.unliteral(symbol.type) for symbol in symbols]
        signature, codegen = self._defn(cpu_target.typing_context, *kinds)
        values = [_as_type(symbol, type_) for symbol, type_ in zip(symbols, signature.args, strict=True)]
        result = codegen(_Writer.context, _Writer.builder, signature, values)
        if signature.return_type == types.none:
            return None
        if isinstance(result, ir.Constant) and isinstance(result.type, ir.IntType):
            # a constant of the compilation
            return bool(result.constant) if result.type.width == 1 else result.constant
        return _unpacked(Symbol(signature.return_type, result))


def intrinsic(function=None, **options):
    """As `numba.extending.intrinsic`, for kernels and for formulas."""
    if function is None:
        return functools.partial(intrinsic, **options)
    made = _SymbolicIntrinsic(function.__name__, function, **options)
    made._register()
    return made


def _result_type(function, kinds):
    """The type of what a formula returns, found by writing it into a function that is thrown away."""
    context = cpu_target.target_context
    parameters = [context.get_value_type(kind) for kind in kinds]
    scrap = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), parameters), "scrap")
    builder = ir.IRBuilder(scrap.append_basic_block())
    return _at(context, builder, _run, function, kinds, scrap.args).type


def _result(result):
    """What a formula returns, as a symbol."""
    symbol = as_symbol(result)
    return Symbol(types.unliteral(symbol.type), symbol.llvm)


def _run(function, kinds, values):
    """Write a formula's instructions."""
    return _result(function(*(_unpacked(Symbol(kind, value)) for kind, value in zip(kinds, values, strict=True))))


def formula(function):
    """Decorate a function that kernels and other formulas call, and that writes its code by being run."""
    result_types = {}

    def definition(typingctx, *kinds):
        if kinds not in result_types:
            result_types[kinds] = _result_type(function, kinds)
        result_type = result_types[kinds]

        def codegen(context, builder, signature, values):
            return _at(context, builder, _run, function, signature.args, values).llvm

        return result_type(*kinds), codegen

    functools.update_wrapper(definition, function)
    own = inspect.signature(function)
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    definition.__signature__ = own.replace(parameters=[context, *own.parameters.values()])
    made = _Formula(function.__name__, definition)
    made.function = function
    made._register()
    return made


class _Formula(_Intrinsic):
    """An intrinsic in kernels; in formulas the function itself."""

    def __call__(self, *args):
        return self.function(*args)
