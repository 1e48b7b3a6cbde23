"""SoftmaxWithLoss: forward, backward, what it keeps and whose memory that is."""

from __future__ import annotations

import numpy as np
import pytest
from problems import one_hot
from reference import reference_cross_entropy, reference_softmax
from ulp import assert_ulp, same_bits

import fastswl as swl


def batch(n=8, classes=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (n, classes)).astype(dtype), rng.integers(0, classes, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hot", [False, True])
def test_formulas_of_the_book(dtype, hot):
    x, y = batch(dtype=dtype)
    t = one_hot(y, 5) if hot else y
    layer = swl.SoftmaxWithLoss()
    loss = layer.forward(x, t)
    exact = reference_cross_entropy(x, y)
    assert loss == pytest.approx(float(exact.loss), rel=6 * float(np.finfo(dtype).eps))
    assert type(loss) is np.float64 and layer.loss == loss
    assert_ulp(layer.y, reference_softmax(x), 4)
    assert layer.y.dtype == x.dtype
    np.testing.assert_array_equal(layer.t, t)
    dx = layer.backward()
    assert dx.dtype == x.dtype and dx.shape == x.shape
    assert_ulp(dx, exact.grad, 4)
    np.testing.assert_allclose(dx, (layer.y - one_hot(y, 5)) / 8, atol=8 * np.finfo(dtype).eps)


def test_backward_scales_by_dout():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    one = layer.backward()
    assert same_bits(layer.backward(1), one)
    assert same_bits(layer.backward(dout=-4.0), -4 * one)
    assert_ulp(layer.backward(0.3), reference_cross_entropy(x, y, upstream=0.3).grad, 4)


def test_backward_before_forward():
    layer = swl.SoftmaxWithLoss()
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward()


def test_backward_twice_gives_the_same_and_it_is_the_callers():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    first = layer.backward()
    kept = first.copy()
    first[...] = np.nan
    second = layer.backward()
    assert same_bits(second, kept)
    assert not np.shares_memory(first, second) and not np.shares_memory(second, layer.y)
    layer.forward(*batch(seed=1))
    layer.backward()
    assert same_bits(second, kept)


def test_backward_into_a_buffer():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    expected = layer.backward(2.0)
    buffer = np.full_like(x, 7)
    assert layer.backward(2.0, out=buffer) is buffer
    assert same_bits(buffer, expected)
    assert layer.backward(2.0, out=x) is x  # x is the caller's to give away
    assert same_bits(x, expected)
    assert same_bits(layer.backward(2.0), expected)


def test_layer_neither_keeps_nor_changes_the_callers_arrays():
    x, y = batch()
    weight = np.array([1.0, 2, 3, 4, 5])
    layer = swl.SoftmaxWithLoss(weight=weight)
    kept = x.copy(), y.copy(), weight.copy()
    layer.forward(x, y)
    expected = layer.backward()
    assert all(same_bits(a, b) for a, b in zip((x, y, weight), kept, strict=True))
    assert not np.shares_memory(layer.y, x) and not np.shares_memory(layer.t, y)
    x[...], y[...], weight[...] = np.nan, 0, 0
    assert same_bits(layer.backward(), expected)
    layer.forward(kept[0], kept[1])
    assert same_bits(layer.backward(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": np.array([1.0, 0.5, 2, 0, 3])},
        {"label_smoothing": 0.25},
        {"ignore_index": 2},
        {"z_loss": 0.125},
        {"logit_scale": 0.5},
        {"softcap": 4.0},
        {"class_mask": np.array([True, True, False, True, True])},
        {"normalizer": 5},
        {"reduction": "sum"},
        {
            "weight": np.array([1.0, 0.5, 2, 1, 3]),
            "label_smoothing": 0.25,
            "z_loss": 0.125,
            "softcap": 8.0,
            "logit_scale": 2.0,
            "reduction": "sum",
        },
    ],
    ids=lambda options: "+".join(options),
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_option_of_cross_entropy(options, dtype):
    x, y = batch(dtype=dtype)
    layer = swl.SoftmaxWithLoss(**options)
    loss = layer.forward(x, y)
    exact = reference_cross_entropy(x, y, **options, upstream=0.5)
    np.testing.assert_allclose(loss, float(exact.loss), rtol=64 * np.finfo(dtype).eps)
    # the meaning of the options; test_exactness.py holds the bounds
    assert_ulp(layer.backward(0.5), exact.grad, 64, exact.grad_terms)


def test_y_is_the_softmax_after_softcap_scale_and_mask():
    x, y = batch()
    mask = np.array([True, True, False, True, True])
    layer = swl.SoftmaxWithLoss(softcap=4.0, logit_scale=2.0, class_mask=mask)
    layer.forward(x, np.zeros_like(y))
    z = np.where(mask, 2 * 4 * np.tanh(x.astype(np.longdouble) / 4), -np.inf)
    assert_ulp(layer.y, reference_softmax(z), 64)
    assert np.all(layer.y[:, 2] == 0)


def test_per_sample_losses():
    x, y = batch()
    layer = swl.SoftmaxWithLoss(reduction="none")
    loss = layer.forward(x, y)
    dout = np.arange(8) / 4
    exact = reference_cross_entropy(x, y, reduction="none", upstream=dout)
    assert_ulp(loss, exact.rows, 4)
    assert_ulp(layer.backward(dout), exact.grad, 4)
    assert_ulp(layer.backward(), reference_cross_entropy(x, y, reduction="none").grad, 4)


def test_other_axis():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 2, (2, 5, 3, 4)).astype(np.float32)
    y = rng.integers(0, 5, (2, 3, 4))
    layer = swl.SoftmaxWithLoss(axis=1)
    layer.forward(x, y)
    assert_ulp(layer.y, reference_softmax(x, 1), 4)
    assert_ulp(layer.backward(), reference_cross_entropy(x, y, 1).grad, 4)


def test_batches_of_other_shape_dtype_and_target_kind():
    """The buffers of one call must not leak into the next."""
    layer = swl.SoftmaxWithLoss()
    batches = ((8, 5, "f4"), (8, 5, "f8"), (8, 5, "f4"), (3, 5, "f4"), (8, 7, "f8"), (64, 200, "f4"), (8, 5, "f4"))
    for n, classes, dtype in batches:
        x, y = batch(n, classes, dtype)
        for t in (y, one_hot(y, classes)):
            layer.forward(x, t)
            exact = reference_cross_entropy(x, y)
            assert layer.y.shape == x.shape
            assert_ulp(layer.y, reference_softmax(x), 4)
            assert_ulp(layer.backward(), exact.grad, 4)
            np.testing.assert_array_equal(layer.t, t)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_half_precision_and_integers(dtype):
    x = np.random.default_rng(2).integers(-4, 5, (6, 4)).astype(dtype)
    y = np.array([0, 1, 2, 3, 0, 1])
    layer = swl.SoftmaxWithLoss()
    loss = layer.forward(x, y)
    exact = reference_cross_entropy(x, y)
    assert type(loss) is np.float64
    assert loss == pytest.approx(float(exact.loss), rel=1e-6)
    dx = layer.backward()
    expected = np.dtype(np.float16 if dtype == "float16" else np.float64)
    assert dx.dtype == expected and layer.y.dtype == expected
    assert_ulp(dx, exact.grad, 4)
    assert_ulp(layer.y, reference_softmax(x), 1 if dtype == "float16" else 4)


def test_ignored_and_special_rows():
    x = np.array([[0.0, np.nan, 1], [1, 2, 3], [-np.inf] * 3])
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, np.array([-100, 1, -100]))
    dx = layer.backward()
    assert np.all(dx[[0, 2]] == 0) and np.all(np.isfinite(dx[1]))
    assert np.isnan(layer.forward(x, np.array([-100, 1, 0])))
    assert np.all(layer.backward()[[0, 2]] == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dout", [np.inf, np.nan, -np.inf])
def test_an_infinite_dout_leaves_ignored_rows_alone(dtype, dout):
    """A loss scale that has overflowed."""
    x = np.array([[0.0, 1, 2], [1, 2, 3]], dtype)
    for reduction, factor in (("mean", dout), ("none", np.array([dout, dout]))):
        layer = swl.SoftmaxWithLoss(reduction=reduction)
        layer.forward(x, np.array([-100, 1]))
        dx = layer.backward(factor)
        assert np.all(dx[0] == 0) and not np.isfinite(dx[1]).any()


def test_one_row_of_targets_that_are_y():
    """Of one row there is no stride between rows that would tell how much memory its targets take."""
    x, target = np.array([[0.1, 0.2, 0.3]]), np.array([[0.2, 0.3, 0.5]])
    layer = swl.SoftmaxWithLoss()
    for _ in range(2):  # the second call is one that is kept ready
        layer.forward(x, target)
    given = layer.y.copy()
    layer.forward(x + np.array([0, 1, 5]), layer.y)
    assert same_bits(layer.t, given)


def test_a_gradient_step_lowers_the_loss():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    before = layer.forward(x, y)
    after = layer.forward(x - 0.5 * layer.backward(), y)
    assert after < before


def test_failed_forward_leaves_the_last_one_in_force_or_none():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    expected = layer.backward()
    with pytest.raises(IndexError):
        layer.forward(x + 1, np.full(8, 99))
    try:
        again = layer.backward()
    except RuntimeError:
        return
    assert same_bits(again, expected)


def test_y_as_the_next_input():
    """The layer's own memory given back to it, as logits or as targets, the last row first."""
    x, y = batch(n=200)
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    p = layer.y[::-1].copy()
    loss = layer.forward(layer.y[::-1], y)
    exact = reference_cross_entropy(p, y)
    assert loss == pytest.approx(float(exact.loss), rel=1e-14)
    assert_ulp(layer.y, reference_softmax(p), 4)
    assert_ulp(layer.backward(), exact.grad, 4)
    q = layer.y[::-1].copy()
    loss = layer.forward(x, layer.y[::-1])
    exact = reference_cross_entropy(x, q)
    assert loss == pytest.approx(float(exact.loss), rel=1e-14)
    assert_ulp(layer.y, reference_softmax(x), 4)
    assert_ulp(layer.backward(), exact.grad, 4, exact.grad_terms)


def test_the_memory_of_y_is_used_again():
    x, y = batch()
    layer = swl.SoftmaxWithLoss()
    layer.forward(x, y)
    before = layer.y
    layer.forward(x + 1, y)
    assert np.shares_memory(layer.y, before)


@pytest.mark.parametrize("options", [{}, {"weight": np.arange(1.0, 11.0)}], ids=["kept", "not kept"])
def test_buffers_are_used_again(options):
    rng = np.random.default_rng(8)
    layer = swl.SoftmaxWithLoss(**options)
    places = []
    for _ in range(4):
        x, targets = rng.normal(size=(20, 10)).astype(np.float32), rng.integers(0, 10, 20)
        layer.forward(x, targets)
        places.append(layer.y.ctypes.data)
    assert places[1:] == places[:-1]
