"""Every error of the contract: its class, the words in it, and that nothing was written."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest

import fastswl as swl

NAN, INF = np.nan, np.inf


def call(name, changes):
    """Call a public function on ordinary arguments, some of them changed; give arguments, error."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    arguments = {"x": x} if name in FAMILY else {"logits": x, "targets": np.array([0, 2, 1, 0])}
    if name == "value_and_grad":
        arguments["grad_out"] = np.full((4, 3), 7.0)
    # an ordinary call first: what it leaves behind (a plan, a buffer) must not let errors pass
    FUNCTIONS[name](**arguments)
    for key, value in changes.items():
        arguments[key] = value(arguments) if callable(value) else value
    held = [value for value in arguments.values() if isinstance(value, np.ndarray)]
    held += [array.base for array in held if isinstance(array.base, np.ndarray)]
    before = [_bits(array) for array in held]
    with np.errstate(all="ignore"), pytest.raises(Exception) as caught:
        FUNCTIONS[name](**arguments)
    assert [_bits(array) for array in held] == before, "a caller's array was changed"
    return caught.value


def _bits(array):
    # objects by identity and text: their bytes are addresses
    return (repr(array.tolist()) if array.dtype.hasobject else array.tobytes()), array.strides


FAMILY = ("softmax", "log_softmax", "logsumexp")
FUNCTIONS = {
    "softmax": swl.softmax,
    "log_softmax": swl.log_softmax,
    "logsumexp": swl.logsumexp,
    "cross_entropy": swl.cross_entropy,
    "value_and_grad": swl.cross_entropy_value_and_grad,
}
LOSSES = ("cross_entropy", "value_and_grad")


class Case(NamedTuple):
    names: tuple[str, ...]
    changes: dict
    error: type[Exception] | tuple[type[Exception], ...]
    words: tuple[str, ...]  # regular expressions, each found in the message


def cast(argument, dtype):
    return {argument: lambda arguments: np.asarray(arguments[argument]).astype(dtype)}


def refused_dtypes(names, argument, array=None):
    """complex, longdouble, object, datetime, strings: TypeError with the name and the dtype."""
    longdouble = np.dtype(np.longdouble).name
    for dtype, word in (
        ("complex64", "complex64"),
        ("complex128", "complex128"),
        (np.longdouble, f"{longdouble}|longdouble"),
        (object, "object"),
        ("datetime64[s]", "datetime64"),
        ("timedelta64[s]", "timedelta64"),
        ("U3", "U3|str"),
        ("S3", "S3|bytes"),
    ):
        if array is None:
            if dtype == "datetime64[s]" or dtype == "timedelta64[s]":
                changes = {argument: np.zeros((4, 3), np.int64).astype(dtype)}
            else:
                changes = cast(argument, dtype)
        else:
            changes = {argument: array.astype(dtype)}
        yield Case(names, changes, TypeError, (rf"\b{argument}\b", word))


def read_only(shape, dtype=np.float64):
    array = np.full(shape, 7, dtype)
    array.flags.writeable = False
    return array


def softmax_cases():
    yield from refused_dtypes(FAMILY, "x")
    for axis in (2, -3, (0, 2)):
        yield Case(FAMILY, {"axis": axis}, np.exceptions.AxisError, ("2|-3",))
    yield Case(FAMILY, {"axis": (0, 0)}, ValueError, ("axis",))
    yield Case(FAMILY, {"axis": (1, -1)}, ValueError, ("axis",))
    for axis in ("rows", 1.5):
        yield Case(FAMILY, {"axis": axis}, TypeError, ())
    for n in (0, -1):
        yield Case(FAMILY, {"n_threads": n}, ValueError, ("n_threads", str(n)))
    for n in (1.5, "two"):
        yield Case(FAMILY, {"n_threads": n}, TypeError, ("n_threads",))
    like = FAMILY[:2]
    for shape in ((4,), (3, 4), (4, 3, 1), (1, 3)):
        words = (r"\bout\b", re.escape(str(shape)))
        yield Case(like, {"out": np.full(shape, 7.0)}, ValueError, words)
    for dtype in ("float32", "int64", "complex128"):
        yield Case(like, {"out": np.full((4, 3), 7, dtype)}, TypeError, (r"\bout\b", dtype))
    yield Case(like, {"out": read_only((4, 3))}, ValueError, (r"\bout\b",))
    yield Case(like, {"out": [[0.0] * 3] * 4}, TypeError, (r"\bout\b",))
    lse = FAMILY[2:]
    yield Case(lse, {"out": np.full((4, 3), 7.0)}, ValueError, (r"\bout\b", re.escape("(4, 3)")))
    yield Case(lse, {"out": np.full(4, 7.0), "keepdims": True}, ValueError, (r"\bout\b",))
    yield Case(lse, {"out": np.full(4, 7, "float32")}, TypeError, (r"\bout\b", "float32"))
    yield Case(lse, {"out": read_only(4)}, ValueError, (r"\bout\b",))
    yield Case(lse, {"b": np.ones((4, 2))}, ValueError, (r"\bb\b", re.escape("(4, 2)")))
    yield from refused_dtypes(lse, "b", np.ones((4, 3), np.int64))


def target_cases():
    yield from refused_dtypes(LOSSES, "logits")
    longdouble = f"{np.dtype(np.longdouble).name}|longdouble"
    refused = (("complex64", "complex64"), (np.longdouble, longdouble), (object, "object"))
    for dtype, word in refused:
        yield Case(LOSSES, cast("targets", dtype), TypeError, (r"\btargets\b", word))
        full = np.ones((4, 3), np.int64).astype(dtype)
        yield Case(LOSSES, {"targets": full}, TypeError, (r"\btargets\b", word))
    both = (re.escape("(4, 3)"),)
    for targets in (
        np.array([0, 1, 2]),
        np.array(1),
        np.zeros((4, 1), int),
        np.zeros((4, 2)),
        np.zeros((3, 4)),
        np.zeros((1, 3)),
        np.zeros((4, 3, 1)),
    ):
        shape = re.escape(str(targets.shape))
        yield Case(LOSSES, {"targets": targets}, ValueError, ("targets", shape, *both))
    for dtype in ("float32", "float64", "float16", "bool"):  # not told apart by guessing
        yield Case(LOSSES, cast("targets", dtype), ValueError, (re.escape("(4,)"), *both))
    outside = {"int8": 3, "int64": -1, "int16": -3, "uint8": 200, "uint64": 2**64 - 1}
    for dtype, value in outside.items():
        targets = np.array([0, 2, 1, 0], dtype)
        targets[2] = value
        words = (r"\b2\b", rf"(?<!\d){value}\b", r"\b3\b")
        yield Case(LOSSES, {"targets": targets}, IndexError, words)
    some = np.array([0, -100, 9, -7])  # the first one that is not ignored
    yield Case(LOSSES, {"targets": some}, IndexError, (r"\b2\b", r"\b9\b"))
    yield Case(LOSSES, {"targets": some, "ignore_index": 9}, IndexError, (r"\b1\b", "-100"))


def option_cases():
    def each(argument, values, error=ValueError):
        for value in values:
            # NumPy prints arrays and numbers in several ways: look for the number alone
            text = re.escape(str(value)) if np.ndim(value) == 0 else ""
            yield Case(LOSSES, {argument: value}, error, (rf"\b{argument}\b", text))

    yield from each("label_smoothing", [-0.25, 1.5, NAN, INF])
    yield from each("reduction", ["avg", "batchmean", ""])
    yield from each("reduction", [None, 1], (ValueError, TypeError))
    yield from each("empty", ["never", "NaN"])
    yield from each("z_loss", [-0.5, NAN, INF])
    yield from each("logit_scale", [0, 0.0, -2.0, NAN, INF])
    yield from each("softcap", [0, 0.0, -30.0, NAN])
    yield from each("normalizer", [-1, -0.5, NAN, INF])
    for reduction in ("none", "sum"):
        changes = {"normalizer": 2.0, "reduction": reduction}
        yield Case(LOSSES, changes, ValueError, ("normalizer", reduction))
    yield from each("n_threads", [0, -3])
    yield from each("n_threads", [2.5], TypeError)
    for argument in ("label_smoothing", "z_loss", "logit_scale", "softcap", "normalizer"):
        yield from each(argument, ["much"], TypeError)
        yield from each(argument, [np.ones(3)], (ValueError, TypeError))
    yield from each("ignore_index", [1.5, "no"], (ValueError, TypeError))
    yield from each("axis", [2, -3], np.exceptions.AxisError)

    bad = ([1.0, -0.5, 1], [1.0, NAN, 1], [1.0, 1, INF])
    for values, word in zip(bad, ("-0.5", "nan", "inf"), strict=True):
        yield Case(LOSSES, {"weight": np.array(values)}, ValueError, (r"\bweight\b", word))
        samples = np.array([*values, 1.0])
        yield Case(LOSSES, {"sample_weight": samples}, ValueError, ("sample_weight", word))
    for shape in ((2,), (4,), (1,), (), (4, 3), (1, 3)):
        words = (r"\bweight\b", re.escape(str(shape)))
        yield Case(LOSSES, {"weight": np.ones(shape)}, ValueError, words)
    for shape in ((3,), (2,), (4, 3), (1, 4)):
        words = ("sample_weight", re.escape(str(shape)))
        yield Case(LOSSES, {"sample_weight": np.ones(shape)}, ValueError, words)
    for dtype in ("complex128", object, "U3"):
        word = "U3|str" if dtype == "U3" else str(np.dtype(dtype))
        yield Case(LOSSES, {"weight": np.ones(3).astype(dtype)}, TypeError, (r"\bweight\b", word))
        samples = np.ones(4).astype(dtype)
        yield Case(LOSSES, {"sample_weight": samples}, TypeError, ("sample_weight", word))

    for shape in ((2,), (4,), (3, 3), (2, 4, 3)):
        words = ("class_mask", re.escape(str(shape)))
        yield Case(LOSSES, {"class_mask": np.ones(shape, bool)}, ValueError, words)
    for dtype in ("int64", "float64", "uint8"):
        words = ("class_mask", dtype)
        yield Case(LOSSES, {"class_mask": np.ones(3, dtype)}, TypeError, words)

    soft = np.full((4, 3), 1 / 3)
    for index in (0, 2, 100):
        words = ("ignore_index", str(index))
        yield Case(LOSSES, {"targets": soft, "ignore_index": index}, ValueError, words)


def empty_cases():
    nothing = {"empty": "raise"}
    yield Case(LOSSES, nothing | {"targets": np.full(4, -100)}, ValueError, ())
    yield Case(LOSSES, nothing | {"normalizer": 0}, ValueError, ())
    yield Case(LOSSES, nothing | {"weight": np.zeros(3)}, ValueError, ())
    yield Case(LOSSES, nothing | {"sample_weight": np.zeros(4)}, ValueError, ())


def output_cases():
    for reduction in ("mean", "sum"):
        changes = {"out": np.full(4, 7.0), "reduction": reduction}
        yield Case(LOSSES, changes, ValueError, (r"\bout\b", reduction))
    none = {"reduction": "none"}
    for shape in ((3,), (4, 1), (4, 3), ()):
        words = (r"\bout\b", re.escape(str(shape)))
        yield Case(LOSSES, none | {"out": np.full(shape, 7.0)}, ValueError, words)
    yield Case(LOSSES, none | {"out": np.full(4, 7, "f4")}, TypeError, (r"\bout\b", "float32"))
    yield Case(LOSSES, none | {"out": read_only(4)}, ValueError, (r"\bout\b",))
    yield Case(LOSSES, none | {"out": [0.0] * 4}, TypeError, (r"\bout\b",))
    grad = LOSSES[1:]
    for shape in ((4,), (3, 4), (4, 3, 1)):
        words = ("grad_out", re.escape(str(shape)))
        yield Case(grad, {"grad_out": np.full(shape, 7.0)}, ValueError, words)
    for dtype in ("float32", "int64"):
        words = ("grad_out", dtype)
        yield Case(grad, {"grad_out": np.full((4, 3), 7, dtype)}, TypeError, words)
    yield Case(grad, {"grad_out": read_only((4, 3))}, ValueError, ("grad_out",))
    yield Case(grad, {"grad_out": [[0.0] * 3] * 4}, TypeError, ("grad_out",))
    for reduction in ("mean", "sum"):
        changes = {"upstream": np.ones(4), "reduction": reduction}
        yield Case(grad, changes, ValueError, ("upstream", re.escape("(4,)")))
    for shape in ((3,), (4, 3)):
        words = ("upstream", re.escape(str(shape)))
        yield Case(grad, none | {"upstream": np.ones(shape)}, ValueError, words)
    yield Case(grad, {"upstream": 1j}, TypeError, ("upstream",))
    yield Case(grad, {"upstream": "one"}, TypeError, ("upstream",))


CASES = [
    *softmax_cases(),
    *target_cases(),
    *option_cases(),
    *empty_cases(),
    *output_cases(),
]


def describe(case):
    name = next(iter(case.changes))
    return f"{case.names[0]}-{name}-{case.error}-{'-'.join(case.words)}"


@pytest.mark.parametrize("case", CASES, ids=describe)
def test_error(case):
    for name in case.names:
        error = call(name, case.changes)
        assert isinstance(error, case.error), f"{name}: {error!r}"
        for word in case.words:
            assert re.search(word, str(error)), f"{name}: {word!r} is not in {error}"


@pytest.mark.parametrize("classes", [3, 100, 2000])
@pytest.mark.parametrize("position", ["first", "last"])
def test_bad_target_among_many_rows_is_found_before_the_first_write(classes, position):
    """So many rows that a check in the kernel would come after other threads' writes."""
    n = 400_000 // classes
    x = np.zeros((n, classes), np.float32)
    y = np.zeros(n, np.int64)
    y[-1] = -5
    at = n - 1
    if position == "first":
        y[n // 2], at = classes, n // 2
    grad, losses = np.full_like(x, 7), np.full(n, 7, np.float32)
    with pytest.raises(IndexError) as caught:
        swl.cross_entropy_value_and_grad(x, y, reduction="none", out=losses, grad_out=grad)
    for number in (at, y[at], classes):
        assert re.search(rf"(?<!\d){number}(?!\d)", str(caught.value)), str(caught.value)
    assert np.all(grad == 7) and np.all(losses == 7)
    with pytest.raises(IndexError):
        swl.cross_entropy_value_and_grad(x, y, grad_out=x)
    assert np.all(x == 0)


def test_position_of_a_bad_target_in_several_dimensions():
    x = np.zeros((2, 3, 4, 5))
    y = np.zeros((2, 4, 5), int)
    y[1, 2, 3], y[1, 3, 0] = 17, 18
    with pytest.raises(IndexError, match=r"\(?1, 2, 3\)?") as caught:
        swl.cross_entropy(x, y, axis=1)
    assert "17" in str(caught.value) and "18" not in str(caught.value)
    with pytest.raises(IndexError, match="8"):
        swl.cross_entropy(np.zeros(5), 8)
    y = np.zeros((2, 4), int, order="F")
    y[0, 3], y[1, 0] = 17, 18  # the first by its indices, not in memory
    with pytest.raises(IndexError, match=r"\(0, 3\).*17"):
        swl.cross_entropy(np.zeros((2, 4, 5)), y)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64"])
def test_a_bad_target_in_a_call_that_is_kept_ready(dtype):
    """The second call of the same shapes goes another way."""
    x, y = np.zeros((4, 3), np.float32), np.array([0, 2, 1, 0], dtype)
    swl.cross_entropy(x, y)
    swl.cross_entropy_value_and_grad(x, y)
    grad = np.full_like(x, 7)
    for value in (3, np.iinfo(dtype).max, np.iinfo(dtype).min or 4):
        y[2] = value
        words = rf"targets\[2\] is {value}, .*3"
        with pytest.raises(IndexError, match=words):
            swl.cross_entropy(x, y)
        with pytest.raises(IndexError, match=words):
            swl.cross_entropy_value_and_grad(x, y, grad_out=grad)
    assert np.all(grad == 7)


def unfit_outputs():
    yield "in native byte order", np.full((4, 3), 7.0).astype(">f8" if np.little_endian else "<f8")
    memory = np.zeros(97, np.uint8)
    yield "aligned", memory[1:].view(np.float64).reshape(4, 3)
    yield "share memory", np.lib.stride_tricks.as_strided(np.full(9, 7.0), (4, 3), (16, 8))
    yield "share memory", np.lib.stride_tricks.as_strided(np.full(3, 7.0), (4, 3), (0, 8))


@pytest.mark.parametrize(("words", "out"), list(unfit_outputs()))
def test_outputs_that_no_result_fits(words, out):
    x, y = np.zeros((4, 3)), np.array([0, 2, 1, 0])
    before = out.tobytes()
    for _ in range(2):
        for function in (swl.softmax, swl.log_softmax):
            with pytest.raises(ValueError, match=f"out .*{words}"):
                function(x, out=out)
            function(x)
        with pytest.raises(ValueError, match=f"grad_out .*{words}"):
            swl.cross_entropy_value_and_grad(x, y, grad_out=out)
        swl.cross_entropy_value_and_grad(x, y)
        with pytest.raises(ValueError, match=f"out .*{words}"):
            swl.logsumexp(np.zeros((4, 3, 2)), out=out)
    assert out.tobytes() == before


def test_bad_target_under_a_sample_weight_of_zero_counts_as_ignored_or_is_refused():
    """A row that is not read may hold any target; what it may not do is reach memory."""
    x = np.zeros((2, 3))
    try:
        loss = swl.cross_entropy(x, [0, 10**9], sample_weight=np.array([1.0, 0]))
    except IndexError:
        return
    assert loss == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": "avg"}, "avg"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"weight": np.array([1.0, -1, 1])}, "weight"),
        ({"softcap": -1.0}, "softcap"),
    ],
)
def test_layer_refuses_bad_options(options, words):
    def build_and_run():
        swl.SoftmaxWithLoss(**options).forward(np.zeros((2, 3)), np.array([0, 1]))

    with pytest.raises(ValueError, match=words):
        build_and_run()


def test_layer_refuses_unknown_options():
    with pytest.raises(TypeError, match="smooth"):
        swl.SoftmaxWithLoss(smooth=0.1).forward(np.zeros((2, 3)), np.array([0, 1]))


def test_layer_refuses_bad_buffers_and_douts():
    layer = swl.SoftmaxWithLoss()
    layer.forward(np.zeros((2, 3)), np.array([0, 1]))
    expected = layer.backward()
    with pytest.raises(ValueError, match="out"):
        layer.backward(out=np.zeros((3, 2)))
    with pytest.raises(TypeError, match="out"):
        layer.backward(out=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="out"):
        layer.backward(out=read_only((2, 3)))
    with pytest.raises(ValueError, match=r"dout|upstream"):
        layer.backward(np.ones(2))
    assert np.array_equal(layer.backward(), expected)


def test_new_kinds_of_dtypes_are_named():
    x = np.array([["a"]], np.dtypes.StringDType())
    for name, argument in (("softmax", "x"), ("cross_entropy", "logits"), ("cross_entropy", "targets")):
        error = call(name, {argument: x})
        assert isinstance(error, TypeError) and argument in str(error) and "StringDType" in str(error)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_bad_sample_weight_beside_no_rows(weight):
    with pytest.raises(ValueError, match=f"sample_weight.*{weight}"):
        swl.cross_entropy(np.zeros((0, 3)), np.zeros(0, int), sample_weight=[weight])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("options", [{"logit_scale": 1e39}, {"logit_scale": 1e-46}, {"softcap": 1e-100}])
def test_changes_of_logits_that_float32_has_no_room_for(dtype, options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"{name}.*{re.escape(str(value))}"):
        swl.cross_entropy(np.zeros((1, 2), dtype), [0], **options)
    assert np.isfinite(swl.cross_entropy(np.zeros((1, 2)), [0], **options))


@pytest.mark.parametrize("weight", [1e39, 1e-46])
def test_weights_that_float32_has_no_room_for(weight):
    x, weights = np.zeros((2, 3), np.float32), [1, weight, 1]
    targets = np.full((2, 3), 1 / 3)
    for y, options in (([1, 2], {"label_smoothing": 0.125}), (targets, {})):
        with pytest.raises(ValueError, match=rf"weight.*{re.escape(str(weight))} at index 1"):
            swl.cross_entropy(x, y, weight=weights, **options)
        assert np.isfinite(swl.cross_entropy(x.astype(float), y, weight=weights, **options))
    # without mass on every class they are multiplied in float64
    assert swl.cross_entropy(x, [0, 2], weight=weights) == pytest.approx(np.log(3))


@pytest.mark.parametrize("n", [0, -1])
def test_thread_counts_below_one(n):
    before = swl.get_num_threads()
    with pytest.raises(ValueError, match=str(n)):
        swl.set_num_threads(n)
    assert swl.get_num_threads() == before
