"""cross_entropy_value_and_grad against the reference: gradients, upstream, buffers."""

from __future__ import annotations

import numpy as np
import pytest
from problems import ONLY_WITH_INDICES, OPTIONS, TARGET_KINDS, random_problem, sample_shape
from reference import reference_cross_entropy
from ulp import assert_ulp, same_bits

import fastswl as swl

# What is asked here is the meaning of the options; test_exactness.py holds the bounds.
BOUND = 64

DTYPES = ["float32", "float64"]


def assert_gradient(result, x, targets, axis, options, what=""):
    reference = reference_cross_entropy(x, targets, axis, **options)
    assert result.grad.dtype == x.dtype and result.grad.shape == x.shape
    assert_ulp(result.grad, reference.grad, BOUND, reference.grad_terms, what)
    return reference


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_each_option(option, kind, dtype, reduction):
    if kind != "indices" and option in ONLY_WITH_INDICES:
        return
    for axis, shape in ((-1, (37, 10)), (1, (3, 7, 4)), (0, (130,)), (0, (130, 5))):
        rng = np.random.default_rng(0)
        x = rng.normal(0, 4, shape).astype(dtype)
        targets = TARGET_KINDS[kind](rng, x, axis)
        options = OPTIONS[option](rng, x, axis) | {"reduction": reduction, "upstream": -0.75}
        result = swl.cross_entropy_value_and_grad(x, targets, axis, **options)
        assert_gradient(result, x, targets, axis, options, option)


@pytest.mark.parametrize("seed", range(200, 320))
def test_any_combination_of_options(seed):
    x, targets, axis, options = random_problem(seed, DTYPES[seed % 2])
    rng = np.random.default_rng(seed)
    if options.get("reduction") == "none":
        options["upstream"] = rng.integers(-8, 9, sample_shape(x, axis)) / 4
    else:
        options["upstream"] = float(rng.integers(-8, 9)) / 4
    result = swl.cross_entropy_value_and_grad(x, targets, axis, **options)
    assert_gradient(result, x, targets, axis, options, sorted(options))


@pytest.mark.parametrize("seed", range(40))
def test_loss_is_that_of_cross_entropy(seed):
    """The same number by both functions, to the bounds of the number itself."""
    x, targets, axis, options = random_problem(seed, DTYPES[seed % 2])
    both = swl.cross_entropy_value_and_grad(x, targets, axis, **options)
    alone = swl.cross_entropy(x, targets, axis, **options)
    assert np.shape(both.loss) == np.shape(alone) and type(both.loss) is type(alone)
    reference = reference_cross_entropy(x, targets, axis, **options)
    eps = 2 * BOUND * np.finfo(x.dtype).eps
    floor = eps * float(np.max(reference.rows_terms, initial=0, where=np.isfinite(reference.rows)))
    np.testing.assert_allclose(both.loss, alone, rtol=eps, atol=floor)


def test_result_is_a_named_tuple():
    x, y = np.zeros((2, 3)), np.array([0, 1])
    result = swl.cross_entropy_value_and_grad(x, y)
    loss, grad = result
    assert result._fields == ("loss", "grad")
    assert result.loss is loss and result.grad is grad
    assert type(result) is swl.LossAndGrad and type(loss) is np.float64


def test_gradient_is_softmax_minus_one_hot():
    x = np.log(np.array([[1.0, 2, 5], [4, 4, 8]]))
    y = np.array([2, 0])
    grad = swl.cross_entropy_value_and_grad(x, y, reduction="sum").grad
    np.testing.assert_allclose(grad, [[0.125, 0.25, -0.375], [-0.75, 0.25, 0.5]], rtol=1e-15)


def test_gradient_at_a_confident_target_is_minus_the_others():
    """p_y - 1 would be 0: 1 - 2e-18 is 1 in float64. exp(-41) and exp(-42) over S = 1."""
    for dtype in DTYPES:
        x = np.array([[41, 0, -1]], dtype)
        grad = swl.cross_entropy_value_and_grad(x, np.array([0]), reduction="sum").grad
        exact = np.exp(np.array([-41, -42], np.longdouble))
        exact = exact / (1 + exact.sum())
        assert_ulp(grad, np.array([[-exact.sum(), *exact]]), 3)


def test_upstream_per_sample():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (4, 5, 6))
    y = rng.integers(0, 5, (4, 6))
    upstream = rng.integers(-4, 5, (4, 6)) / 2
    options = {"reduction": "none", "upstream": upstream}
    result = swl.cross_entropy_value_and_grad(x, y, 1, **options)
    assert_gradient(result, x, y, 1, options)
    assert same_bits(result.loss, swl.cross_entropy_value_and_grad(x, y, 1, reduction="none").loss)
    assert np.all(result.grad[np.broadcast_to((upstream == 0)[:, None], x.shape)] == 0)


def test_upstream_scales_the_gradient_and_not_the_loss():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    for reduction in ("none", "sum", "mean"):
        one = swl.cross_entropy_value_and_grad(x, y, reduction=reduction)
        four = swl.cross_entropy_value_and_grad(x, y, reduction=reduction, upstream=4)
        assert same_bits(four.loss, one.loss)
        assert same_bits(four.grad, 4 * one.grad)  # a power of two rounds nothing


def test_single_sample_without_a_batch():
    x = np.array([1.0, 3.0, 2.0], np.float32)
    result = swl.cross_entropy_value_and_grad(x, 1, reduction="none")
    assert type(result.loss) is np.float32
    assert_gradient(result, x, np.array(1), 0, {"reduction": "none"})


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_gradient_of_nothing_has_the_shape_of_the_logits(kind, empty):
    x = np.ones((0, 3), np.float32)
    targets = np.ones((0,), int) if kind == "indices" else np.ones((0, 3))
    loss, grad = swl.cross_entropy_value_and_grad(x, targets, empty=empty)
    assert grad.shape == (0, 3) and grad.dtype == np.float32
    np.testing.assert_array_equal(loss, {"nan": np.nan, "zero": 0}[empty])


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_ignored_rows_have_a_gradient_of_exactly_zero(empty):
    x = np.random.default_rng(3).normal(size=(5, 3))
    grad = swl.cross_entropy_value_and_grad(x, np.full(5, -100), empty=empty).grad
    assert same_bits(np.abs(grad), np.zeros((5, 3)))
    some = np.array([0, -100, 2, -100, 1])
    for upstream in (1.0, np.inf, np.nan):
        grad = swl.cross_entropy_value_and_grad(x, some, upstream=upstream, empty=empty).grad
        assert np.all(grad[[1, 3]] == 0)
    weights = np.array([1.0, 0, 1, 0, 1])
    y = np.array([0, 1, 2, 0, 1])
    grad = swl.cross_entropy_value_and_grad(x, y, sample_weight=weights, empty=empty).grad
    assert np.all(grad[[1, 3]] == 0) and np.all(grad[[0, 2, 4]] != 0)


def test_divisor_of_zero():
    """PyTorch's 0/0: NaN for rows that count, 0 for the others; "zero" makes all of it 0."""
    x = np.random.default_rng(4).normal(size=(3, 4))
    y = np.array([0, -100, 1])
    for options in ({"weight": np.zeros(4)}, {"normalizer": 0}):
        loss, grad = swl.cross_entropy_value_and_grad(x, y, **options)
        assert np.isnan(loss) and np.all(np.isnan(grad[[0, 2]])) and np.all(grad[1] == 0)
        loss, grad = swl.cross_entropy_value_and_grad(x, y, empty="zero", **options)
        assert loss == 0 and np.all(grad == 0)


def test_grad_out_is_filled_and_returned():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    expected = swl.cross_entropy_value_and_grad(x, y)
    buffer = np.full_like(x, 7)
    result = swl.cross_entropy_value_and_grad(x, y, grad_out=buffer)
    assert result.grad is buffer and same_bits(buffer, expected.grad)
    assert result.loss == expected.loss
    turned = np.full((5, 6), 7.0).T
    result = swl.cross_entropy_value_and_grad(x, y, grad_out=turned)
    assert result.grad is turned
    assert_gradient(result, x, y, -1, {})


def test_out_and_grad_out_together():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    expected = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    losses, buffer = np.full(6, 7.0), np.full_like(x, 7)
    result = swl.cross_entropy_value_and_grad(x, y, reduction="none", out=losses, grad_out=buffer)
    assert result.loss is losses and result.grad is buffer
    assert same_bits(losses, expected.loss) and same_bits(buffer, expected.grad)


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_gradient_in_place(dtype):
    rng = np.random.default_rng(7)
    for shape, axis in (
        ((40, 10), 1),
        ((9, 100), 1),
        ((9, 300), 1),
        ((9, 700), 1),
        ((5, 2200), 1),
        ((2, 6000), 1),
        ((10, 33), 0),
    ):
        x = rng.normal(0, 3, shape).astype(dtype)
        y = rng.integers(0, shape[axis], shape[1 - axis])
        expected = swl.cross_entropy_value_and_grad(x, y, axis)
        result = swl.cross_entropy_value_and_grad(x, y, axis, grad_out=x)
        assert result.grad is x
        assert same_bits(x, expected.grad) and same_bits(result.loss, expected.loss)


def test_results_are_new_arrays_each_time():
    x, y = np.zeros((3, 4)), np.array([0, 1, 2])
    first = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    second = swl.cross_entropy_value_and_grad(x + 1, y, reduction="none")
    assert not np.shares_memory(first.grad, second.grad)
    assert not np.shares_memory(first.loss, second.loss)
    assert not np.shares_memory(first.grad, x)


LEFT_BEHIND = {
    "label_smoothing": 0.25,
    "z_loss": 0.5,
    "logit_scale": 2.0,
    "softcap": 3.0,
    "ignore_index": 1,
    "normalizer": 7,
    "upstream": 2.0,
    "weight": np.array([1.0, 2, 3, 4]),
    "sample_weight": np.array([1.0, 2, 3]),
    "class_mask": np.array([True, True, True, False]),
}


@pytest.mark.parametrize("option", LEFT_BEHIND)
def test_an_option_leaves_nothing_behind(option):
    """Small calls without options are kept ready by their shapes, those with one must not be."""
    for n_classes in (4, 4 * (2 + list(LEFT_BEHIND).index(option))):  # the latter a shape of this test alone
        x = np.random.default_rng(8).normal(0, 3, (3, n_classes))
        y = np.array([0, 1, 2])
        value = LEFT_BEHIND[option]
        if option in ("weight", "class_mask"):
            value = np.resize(value, n_classes)
        first = swl.cross_entropy_value_and_grad(x, y, **{option: value})
        plain = swl.cross_entropy_value_and_grad(x, y)
        again = swl.cross_entropy_value_and_grad(x, y, **{option: value})
        if option != "upstream":
            for _ in range(2):
                assert swl.cross_entropy(x, y) == pytest.approx(plain.loss, rel=1e-14)
                assert swl.cross_entropy(x, y, **{option: value}) == pytest.approx(first.loss, rel=1e-14)
        assert_gradient(plain, x, y, -1, {})
        assert plain.loss == pytest.approx(float(reference_cross_entropy(x, y).loss), rel=1e-14)
        assert same_bits(first.loss, again.loss) and same_bits(first.grad, again.grad)
