"""Parity with scipy.special: names, meaning, options, and the ways in which we differ."""

from __future__ import annotations

import numpy as np
import pytest

import fastswl as swl

special = pytest.importorskip("scipy.special")

# Of SciPy: it rounds x - m, and its log_softmax loses the tail near 0.
TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-15}}
AXES = [-1, 0, 1, (0, 1), (0, 2), (2, 0), (0, 1, 2), None]


@pytest.fixture(params=TOLERANCE)
def x(request):
    return np.random.default_rng(0).normal(0, 5, (4, 5, 6)).astype(request.param)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_axes(x, axis, name):
    ours, theirs = getattr(swl, name)(x, axis=axis), getattr(special, name)(x, axis=axis)
    assert np.shape(ours) == np.shape(theirs)
    assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    np.testing.assert_allclose(ours, theirs, **TOLERANCE[str(x.dtype)])


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("factors", ["none", "row", "full", "signed"])
def test_logsumexp_options(x, axis, keepdims, factors):
    rng = np.random.default_rng(1)
    b = {
        "none": None,
        "row": rng.integers(0, 5, 6).astype(x.dtype),
        "full": rng.integers(0, 5, x.shape).astype(x.dtype),
        "signed": rng.integers(-2, 5, x.shape).astype(x.dtype),
    }[factors]
    options = {"axis": axis, "keepdims": keepdims, "b": b}
    ours, theirs = swl.logsumexp(x, **options), special.logsumexp(x, **options)
    assert np.shape(ours) == np.shape(theirs)
    tolerance = dict(TOLERANCE[str(x.dtype)])
    if factors == "signed":  # both cancel
        tolerance["atol"] = 100 * np.finfo(x.dtype).eps
    np.testing.assert_allclose(ours, theirs, **tolerance)
    ours = swl.logsumexp(x, return_sign=True, **options)
    theirs = special.logsumexp(x, return_sign=True, **options)
    np.testing.assert_allclose(ours[0], theirs[0], **tolerance)
    np.testing.assert_array_equal(ours[1], theirs[1])


SPECIAL_ROWS = [
    [0.0, -np.inf],
    [-np.inf, -np.inf],
    [np.inf, 0],
    [np.inf, -np.inf],
    [np.inf, np.inf],
    [np.nan, 0],
    [np.nan, np.inf],
    [np.nan, -np.inf],
]


@pytest.mark.parametrize("row", SPECIAL_ROWS, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_special_rows(row, name):
    with np.errstate(all="ignore"):
        theirs = getattr(special, name)(np.array(row))
    ours = getattr(swl, name)(row)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool"])
def test_integers(dtype):
    x = np.array([[0, 1, 0], [1, 1, 0]], dtype)
    wide = x.astype(float)
    for name in ("softmax", "log_softmax", "logsumexp"):
        ours = getattr(swl, name)(x)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, getattr(special, name)(wide, axis=-1), rtol=1e-14)


def test_default_axis_is_the_last_and_not_the_whole_array():
    x = np.zeros((2, 4))
    assert swl.softmax(x)[0, 0] == 0.25
    assert special.softmax(x)[0, 0] == 0.125
    assert swl.logsumexp(x).shape == (2,)


def test_empty_class_axis():
    x = np.empty((3, 0))
    np.testing.assert_array_equal(swl.logsumexp(x), special.logsumexp(x, axis=-1))
    assert swl.softmax(x).shape == (3, 0)  # where SciPy raises ValueError
