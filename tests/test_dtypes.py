"""Every dtype through every function: arithmetic, result dtypes, native byte order."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import INTEGER_DTYPES
from problems import class_indices, soft_targets
from reference import (
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import assert_ulp, same_bits

import fastswl as swl

BOUND = 4
#: (a kernel each; rows of 700 and 2,200 classes have the most in common, so the longest are left to the long tests)
LONG_ROWS = pytest.param((4, 2200), 1, marks=pytest.mark.slow)
SHAPES = (((9, 10), 1), ((4, 130), 1), ((4, 700), 1), LONG_ROWS, ((10, 9), 0))


def is_half(dtype) -> bool:
    return dtype.itemsize == 2 and dtype.kind not in "iub"


def arithmetic(dtype):
    """The dtype in which the library computes, by the table of the contract."""
    if is_half(dtype):
        return np.dtype(np.float32)
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype


def logits_of(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 4, shape)
    if dtype.kind == "u":
        x = np.abs(x)
    return (x > 0) if dtype.kind == "b" else x.astype(dtype)


def expected(result, dtype):
    """What a computation in the arithmetic dtype looks like in the dtype of the input."""
    return result.astype(dtype) if is_half(dtype) else result


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_softmax_family(any_dtype, shape, axis):
    """Half precision is the rounded float32 result, integers the float64 result: bit for bit."""
    x = logits_of(any_dtype, shape)
    wide = x.astype(arithmetic(any_dtype))
    for function, reference in (
        (swl.softmax, reference_softmax),
        (swl.log_softmax, reference_log_softmax),
        (swl.logsumexp, reference_logsumexp),
    ):
        got, exact = function(x, axis), function(wide, axis)
        assert got.dtype == (any_dtype if is_half(any_dtype) else exact.dtype)
        assert same_bits(got, expected(exact, any_dtype))
        assert_ulp(exact, reference(x, axis), BOUND)


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_loss_and_gradient(any_dtype, shape, axis, kind):
    x = logits_of(any_dtype, shape)
    compute = arithmetic(any_dtype)
    rng = np.random.default_rng(1)
    make = class_indices if kind == "indices" else soft_targets
    targets = make(rng, x.astype(compute), axis)
    for reduction in ("none", "mean"):
        got = swl.cross_entropy_value_and_grad(x, targets, axis, reduction=reduction)
        wide = swl.cross_entropy_value_and_grad(x.astype(compute), targets, axis, reduction=reduction)
        assert got.grad.dtype == (any_dtype if is_half(any_dtype) else np.dtype(compute))
        assert same_bits(got.grad, expected(wide.grad, any_dtype))
        assert same_bits(got.loss, wide.loss)
        alone = swl.cross_entropy(x, targets, axis, reduction=reduction)
        wide_alone = swl.cross_entropy(x.astype(compute), targets, axis, reduction=reduction)
        assert same_bits(alone, wide_alone)
        assert np.asarray(alone).dtype == (compute if reduction == "none" else np.float64)
    exact = reference_cross_entropy(x, targets, axis)
    assert_ulp(wide.grad, exact.grad, BOUND, exact.grad_terms)


def test_out_in_the_dtype_of_the_result(any_dtype):
    x = logits_of(any_dtype, (5, 6))
    result = any_dtype if is_half(any_dtype) else arithmetic(any_dtype)
    out = np.zeros(x.shape, result)
    assert swl.softmax(x, out=out) is out and same_bits(out, swl.softmax(x))
    y = np.zeros(5, int)
    plain = swl.cross_entropy_value_and_grad(x, y)
    assert same_bits(swl.cross_entropy_value_and_grad(x, y, grad_out=out).grad, plain.grad)
    losses = np.zeros(5, arithmetic(any_dtype))
    assert swl.cross_entropy(x, y, reduction="none", out=losses) is losses


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_integer_targets_of_every_width(dtype):
    x = np.random.default_rng(2).normal(size=(7, 5))
    y = np.array([0, 4, 2, 1, 3, 3, 0])
    expected = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    result = swl.cross_entropy_value_and_grad(x, y.astype(dtype), reduction="none")
    assert same_bits(result.loss, expected.loss) and same_bits(result.grad, expected.grad)
    swapped = y.astype(dtype).astype(np.dtype(dtype).newbyteorder("S"))
    assert same_bits(swl.cross_entropy(x, swapped, reduction="none"), expected.loss)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_the_upper_half_of_unsigned_targets(dtype):
    """Indices that would be negative, were they signed: in whole vectors of rows, and one at a time."""
    rng = np.random.default_rng(5)
    for classes, n in ((128, 40), (250, 40), (250, 3), (700, 40), (3000, 20), (50_000, 2)):
        if classes > np.iinfo(dtype).max:
            continue
        x = rng.normal(size=(n, classes)).astype(np.float32)
        y = classes - 1 - rng.integers(0, classes // 4, n)
        expected = swl.cross_entropy_value_and_grad(x, y, reduction="none")
        result = swl.cross_entropy_value_and_grad(x, y.astype(dtype), reduction="none")
        assert same_bits(result.loss, expected.loss) and same_bits(result.grad, expected.grad)
        top = np.iinfo(dtype).max if dtype.itemsize < 8 else 2**62
        ignored = np.full(n, top, dtype)
        ignored[0] = y[0]
        result = swl.cross_entropy(x, ignored, reduction="none", ignore_index=int(top))
        assert same_bits(result[:1], expected.loss[:1]) and np.all(result[1:] == 0)


#: (each pair compiles a kernel of its own)
@pytest.mark.parametrize(
    "logits", ["float32", *(pytest.param(s, marks=pytest.mark.slow) for s in ("float64", "float16"))]
)
def test_probability_targets_of_every_dtype(any_dtype, logits):
    """Targets of another precision than the logits; the logits decide the result."""
    x = np.random.default_rng(3).normal(0, 2, (7, 5)).astype(logits)
    t = np.random.default_rng(4).integers(0, 2, (7, 5)).astype(any_dtype)
    exact = reference_cross_entropy(x, t, reduction="none")
    got = swl.cross_entropy_value_and_grad(x, t, reduction="none")
    assert_ulp(got.loss, exact.rows, BOUND, exact.rows_terms)
    assert_ulp(got.grad, exact.grad, BOUND, exact.grad_terms)
    assert got.grad.dtype == x.dtype


def test_float64_targets_keep_their_precision_with_float64_logits():
    x = np.array([[0.0, 1.0]])
    t = np.array([[1 / 3, 2 / 3]])
    exact = reference_cross_entropy(x, t, reduction="none")
    assert_ulp(swl.cross_entropy(x, t, reduction="none"), exact.rows, BOUND, exact.rows_terms)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_results_are_in_native_byte_order(dtype):
    x = logits_of(np.dtype(dtype), (3, 4))
    swapped = x.astype(x.dtype.newbyteorder("S"))
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        assert function(swapped).dtype.isnative
        assert same_bits(function(swapped), function(x))
    y = np.array([0, 1, 2])
    got = swl.cross_entropy_value_and_grad(swapped, y, reduction="none")
    plain = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    assert got.grad.dtype.isnative and got.loss.dtype.isnative
    assert same_bits(got.grad, plain.grad) and same_bits(got.loss, plain.loss)


def test_large_integers_are_read_as_float64():
    x = np.array([[2**62, 2**62 - 2**40]], np.int64)
    assert same_bits(swl.logsumexp(x), swl.logsumexp(x.astype(np.float64)))
    top = np.array([[2**64 - 1, 0]], np.uint64)
    assert swl.logsumexp(top)[0] == 2.0**64


def test_half_precision_over_its_whole_range():
    """All finite float16 values as logits of two classes against zero."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    x = np.stack([values, np.zeros_like(values)], axis=1)
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        assert same_bits(function(x), function(x.astype(np.float32)).astype(np.float16))


def test_bfloat16_over_its_whole_range():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    values = np.arange(2**16, dtype=np.uint16).view(bfloat16)
    values = values[np.isfinite(values.astype(np.float32))]
    x = np.stack([values, np.zeros_like(values)], axis=1)
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        with np.errstate(over="ignore"):
            assert same_bits(function(x), function(x.astype(np.float32)).astype(bfloat16))


def test_half_precision_scalars():
    x = np.array([1, 2, 3], np.float16)
    assert type(swl.logsumexp(x)) is np.float16
    assert type(swl.cross_entropy(x, 0, reduction="none")) is np.float32
    assert type(swl.cross_entropy(x, 0)) is np.float64
