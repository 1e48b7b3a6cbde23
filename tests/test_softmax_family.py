"""softmax, log_softmax and logsumexp: axes, shapes, factors and results."""

from __future__ import annotations

import numpy as np
import pytest
from reference import (
    logsumexp_terms,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import assert_ulp, same_bits

import fastswl as swl

BOUND = 4

AXES = [-1, 0, 1, 2, -2, (0, 1), (0, 2), (1, 2), (2, 0), (-1, -3), (0, 1, 2), None]


@pytest.fixture(params=["float32", "float64"])
def x(request):
    return np.random.default_rng(0).normal(0, 5, (4, 5, 6)).astype(request.param)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_any_axis_or_axes(x, axis):
    assert_ulp(swl.softmax(x, axis), reference_softmax(x, axis), BOUND)
    assert_ulp(swl.log_softmax(x, axis), reference_log_softmax(x, axis), BOUND)
    got, terms = swl.logsumexp(x, axis), logsumexp_terms(x, axis)
    assert_ulp(got, reference_logsumexp(x, axis), BOUND, terms)
    kept = swl.logsumexp(x, axis, keepdims=True)
    assert same_bits(kept.ravel(), np.ravel(got))
    assert kept.shape == reference_logsumexp(x, axis, keepdims=True).shape


def test_default_axis_is_the_last(x):
    assert same_bits(swl.softmax(x), swl.softmax(x, axis=2))
    assert same_bits(swl.log_softmax(x), swl.log_softmax(x, axis=-1))
    assert same_bits(swl.logsumexp(x), swl.logsumexp(x, axis=2))


def test_softmax_of_known_values():
    """exp(k) / (1 + e + e^2), from mpmath.mp.dps = 30: exp(k) / sum(exp(j) for j in range(3))."""
    exact = np.array(
        ["0.0900305731703804579980221014845", "0.244728471054797652472959618341"],
        dtype=np.longdouble,
    )
    p = swl.softmax([0.0, 1.0, 2.0])
    assert_ulp(p[:2], exact, 2)
    # mpmath: log(1 + e + e**2)
    lse = swl.logsumexp([0.0, 1.0, 2.0])
    assert_ulp(lse, np.longdouble("2.40760596444438030448291990455"), 2)


@pytest.mark.parametrize("function", [swl.softmax, swl.log_softmax])
def test_out_is_filled_and_returned(x, function):
    out = np.full_like(x, 7)
    assert function(x, out=out) is out
    assert same_bits(out, function(x))
    strided = np.full((6, 4, 10), 7, x.dtype).transpose(1, 2, 0)[:, ::2]
    assert function(x, axis=1, out=strided) is strided
    assert_ulp(strided, _reference_of(function)(x, 1), BOUND)


def _reference_of(function):
    return {"softmax": reference_softmax, "log_softmax": reference_log_softmax}[function.__name__]


@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_out_is_filled_and_returned(x, keepdims):
    expected = swl.logsumexp(x, 1, keepdims=keepdims)
    out = np.full_like(expected, 7)
    assert swl.logsumexp(x, 1, keepdims=keepdims, out=out) is out
    assert same_bits(out, expected)


def test_logsumexp_without_axes_is_a_numpy_scalar(x):
    for axis in (None, (0, 1, 2)):
        result = swl.logsumexp(x, axis)
        assert type(result) is x.dtype.type
    assert type(swl.logsumexp(x[0, 0])) is x.dtype.type
    for part in swl.logsumexp(x, None, return_sign=True):
        assert type(part) is x.dtype.type
    assert swl.logsumexp(x, None, keepdims=True).shape == (1, 1, 1)


def test_zero_dimensional_input_has_only_the_axis_none():
    for value in (np.float32(3), 3.0, np.array(3.0)):
        assert swl.softmax(value, axis=None) == 1
        assert swl.log_softmax(value, axis=None) == 0
        assert swl.logsumexp(value, axis=None) == 3
    assert type(swl.softmax(np.float32(3), axis=None)) is np.float32


def test_logsumexp_factors(x):
    rng = np.random.default_rng(1)
    b = (rng.integers(0, 9, (5, 1)) / 4).astype(x.dtype)
    for axis in (0, 1, (1, 2), None):
        got = swl.logsumexp(x, axis, b=b)
        exact = reference_logsumexp(x, axis, b=b)
        assert_ulp(got, exact, BOUND, np.maximum(np.abs(exact), 1))
        assert np.asarray(got).dtype == x.dtype


def test_logsumexp_sign(x):
    b = np.random.default_rng(2).normal(0, 1, x.shape).astype(x.dtype)
    value, sign = swl.logsumexp(x, 1, b=b, return_sign=True)
    exact, exact_sign = reference_logsumexp(x, 1, b=b, return_sign=True)
    assert np.array_equal(sign, exact_sign) and (sign < 0).any() and (sign > 0).any()
    assert sign.shape == value.shape
    assert value.dtype == x.dtype
    # the sum itself cancels, so its error is measured by the sum of absolute values
    size = np.exp(reference_logsumexp(x, 1, b=np.abs(b)) - exact)
    assert_ulp(value, exact, 8, np.maximum(size, np.abs(exact)))
    plain = swl.logsumexp(x, 1, b=b)
    assert np.array_equal(np.isnan(plain), sign < 0)
    assert same_bits(plain[sign > 0], value[sign > 0])
    ones = swl.logsumexp(x, 1, return_sign=True)
    assert same_bits(ones[0], swl.logsumexp(x, 1)) and np.all(ones[1] == 1)


@pytest.mark.parametrize(
    ("x", "b", "value", "sign"),
    [
        ([np.nan, 1.0], [0, 1], 1, 1),
        ([np.inf, 1.0], [0, 1], 1, 1),
        ([1.0, 2.0], [0, 0], -np.inf, 0),
        ([3.0, 3.0], [1, -1], -np.inf, 0),
        ([np.inf, 0.0], [-1, 1], np.inf, -1),
        ([np.inf, np.inf], [-1, 1], np.nan, np.nan),
        ([0.0, -np.inf], [-1, 2], 0, -1),
        ([-np.inf, -np.inf], [1, 2], -np.inf, 0),
    ],
)
def test_logsumexp_factors_at_special_values(x, b, value, sign):
    got = swl.logsumexp(x, b=np.array(b, float), return_sign=True)
    np.testing.assert_array_equal(got, (value, sign))


def test_logsumexp_promotes_with_the_factors(x):
    for dtype in (np.float32, np.float64):
        b = np.ones(6, dtype)
        expected = np.promote_types(x.dtype, dtype)
        assert swl.logsumexp(x, b=b).dtype == expected
        assert_ulp(swl.logsumexp(x, b=b), reference_logsumexp(x), BOUND)
    half = np.ones((2, 3), np.float16)
    assert swl.logsumexp(half, b=half).dtype == np.float16
    assert swl.logsumexp(half, b=half.astype(np.float32)).dtype == np.float32
    # a Python number counts as no dtype
    assert swl.logsumexp(half, b=2).dtype == swl.logsumexp(half, b=2.0).dtype == np.float16


def test_logsumexp_promotes_bfloat16():
    """NumPy has no common dtype of bfloat16 and some others."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = np.ones((2, 3), bfloat16)
    for dtype, common in ((bfloat16, bfloat16), ("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i8", "f8")):
        assert swl.logsumexp(x, b=np.ones((2, 3), dtype)).dtype == common


@pytest.mark.parametrize("keepdims", [False, True])
def test_signs_without_factors(keepdims):
    x = np.array([[0.0, 1], [-np.inf, -np.inf], [np.nan, 0], [np.inf, 0], [-5, -np.inf]])
    value, sign = swl.logsumexp(x, return_sign=True, keepdims=keepdims)
    assert same_bits(value, swl.logsumexp(x, keepdims=keepdims))
    np.testing.assert_array_equal(sign.ravel(), [1, 0, np.nan, 1, 1])
    assert sign.shape == value.shape == ((5, 1) if keepdims else (5,))
    value, sign = swl.logsumexp(np.empty((3, 0)), return_sign=True)
    np.testing.assert_array_equal(value, [-np.inf] * 3)
    np.testing.assert_array_equal(sign, [0.0] * 3)


def test_factors_broadcast_against_the_input():
    """SciPy lets b widen x, too: a row of logits with two sets of factors."""
    x = np.array([0.0, 1, 2])
    b = np.array([[1.0, 1, 1], [1, 0, 2]])
    got = swl.logsumexp(x, axis=-1, b=b)
    assert_ulp(got, reference_logsumexp(x, -1, b=b), BOUND)
    assert got.shape == (2,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_empty_arrays(dtype):
    no_classes = np.empty((3, 0), dtype)
    for function in (swl.softmax, swl.log_softmax):
        assert function(no_classes).shape == (3, 0)
        assert function(no_classes).dtype == dtype
        assert function(np.empty((0, 4), dtype)).shape == (0, 4)
        assert function(np.empty((0, 4), dtype), axis=0).shape == (0, 4)
    got = swl.logsumexp(no_classes)
    assert got.dtype == dtype and np.array_equal(got, [-np.inf] * 3)
    assert swl.logsumexp(np.empty((0, 4), dtype)).shape == (0,)
    assert np.array_equal(swl.logsumexp(np.empty((0, 4), dtype), axis=0), [-np.inf] * 4)
    assert swl.logsumexp(no_classes, axis=None) == -np.inf


def test_many_equal_half_precision_logits_do_not_overflow():
    """70,000 zeros: a sum kept in float16 would be inf."""
    x = np.zeros(70_000, np.float16)
    assert swl.logsumexp(x) == np.float16(np.log(70_000))
    assert np.all(swl.softmax(x) == np.float16(1 / 70_000))


def test_log_softmax_keeps_the_tail():
    """-log1p(exp(-40)), from mpmath.mp.dps = 30; SciPy gives 0."""
    got = swl.log_softmax([0.0, -40.0])[0]
    assert_ulp(got, np.longdouble("-4.24835425529158898630497784363e-18"), 4)


def test_logsumexp_terms_of_the_reference_bound_the_result(x):
    exact = reference_logsumexp(x)
    assert np.all(np.abs(exact) <= 2 * logsumexp_terms(x))


def test_out_without_axes_is_returned():
    x, out = np.array([0.0, 1.0]), np.array(7.0)
    assert swl.logsumexp(x, out=out) is out and out == swl.logsumexp(x)
    assert swl.softmax(np.array(3.0), axis=None, out=out) is out and out == 1
    assert swl.log_softmax(np.array(3.0), axis=None, out=out) is out and out == 0


@pytest.mark.parametrize("special", [None, "far", "half", np.inf, -np.inf, np.nan])
def test_axes_that_do_not_merge_and_are_longer_than_a_block(special):
    """Classes on two axes that strides do not allow to be one, 2.8 MB and more of them."""
    x = np.random.default_rng(3).normal(0, 5, (600, 2, 601))
    if special == "far":
        x[500:] -= 300.3
    elif special == "half":
        x[300:, 0] = -np.inf  # nothing else in the second piece of a row, and in all of the other row
        x[:, 1] = -np.inf
    elif special is not None:
        x[300, 0, 7] = special
    view = x[:, :, :-1]
    flat = np.ascontiguousarray(view.transpose(1, 0, 2)).reshape(2, -1)
    for function, reference in ((swl.softmax, reference_softmax), (swl.log_softmax, reference_log_softmax)):
        got = function(view, (0, 2)).transpose(1, 0, 2).reshape(2, -1)
        assert_ulp(got, reference(flat), 8, what=function.__name__)
    assert_ulp(swl.logsumexp(view, (0, 2)), reference_logsumexp(flat), BOUND)
