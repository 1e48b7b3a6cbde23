"""The reference itself: against mpmath, SciPy, PyTorch, central differences and the table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import OPTIONS, TARGET_KINDS, class_indices, one_hot, soft_targets
from reference import (
    logsumexp_terms,
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import EXTENDED, FINITE_KINDS, assert_ulp, mp_rows, spacing, ulp_error

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", FINITE_KINDS, ids=lambda kind: kind.__name__)
def test_reference_is_exact_to_a_fraction_of_an_ulp(kind, dtype):
    rng = np.random.default_rng(1)
    x = kind(rng, (10, 7), dtype)
    y = np.where(np.arange(10) % 2, x.argmax(axis=1), rng.integers(0, 7, 10))
    p, log_p, lse, loss, grad = mp_rows(x, y)
    # With a longdouble that is float64 only float32 can be served; that is still enough there.
    unit = np.float64 if EXTENDED else np.float32
    bound = 0.01

    def check(ours, exact, size=None):
        size = exact if size is None else size
        assert np.all(np.abs(ours - exact) <= bound * spacing(size, unit))

    reference = reference_cross_entropy(x, y, reduction="none")
    check(reference_softmax(x), p)
    check(reference_log_softmax(x), log_p)
    check(reference_logsumexp(x), lse, logsumexp_terms(x))
    check(reference.rows, loss)
    check(reference.grad, grad)


def test_reference_keeps_losses_down_to_the_smallest():
    x = np.array([[700.0, 0, -1], [80, 0, 0]])
    _, _, _, loss, grad = mp_rows(x, [0, 0])
    reference = reference_cross_entropy(x, [0, 0], reduction="none")
    assert_ulp(reference.rows.astype(np.float64), loss, 0.51)
    assert_ulp(reference.grad.astype(np.float64), grad, 0.51)


def test_special_rows_are_those_of_the_table():
    x = np.array([[0, -INF, 0], [-INF] * 3, [INF, 0, -INF], [NAN, 0, -INF]])
    half, log_half = 0.5, np.log(np.longdouble(0.5))
    expected_softmax = [[half, 0, half], [NAN] * 3, [NAN] * 3, [NAN] * 3]
    expected_log = [[log_half, -INF, log_half], [NAN] * 3, [NAN, -INF, -INF], [NAN] * 3]
    np.testing.assert_array_equal(reference_softmax(x), expected_softmax)
    np.testing.assert_allclose(reference_log_softmax(x), expected_log, rtol=1e-15)
    np.testing.assert_allclose(reference_logsumexp(x), [-log_half, -INF, INF, NAN], rtol=1e-15)

    reference = reference_cross_entropy(x, [0, 0, 0, 0], reduction="none")
    np.testing.assert_allclose(reference.rows, [-log_half, NAN, NAN, NAN], rtol=1e-15)
    expected_grad = [[-half, 0, half], [0] * 3, [NAN] * 3, [NAN] * 3]
    np.testing.assert_allclose(reference.grad, expected_grad, rtol=1e-15)

    at_infinity = reference_cross_entropy(x[:1], [1], reduction="none")
    assert at_infinity.rows[0] == INF
    np.testing.assert_array_equal(at_infinity.grad, [[half, 0, half]])

    nothing_there = reference_cross_entropy(x[:1], [[1.0, 0, 0]], reduction="none")
    np.testing.assert_allclose(nothing_there.rows, [-log_half], rtol=1e-15)


def test_ulp_counts_steps_of_the_dtype():
    one = np.float32(1)
    got = np.array([np.nextafter(one, one * 2), 0, 3 * np.float32(1e-45), NAN, INF], np.float32)
    exact = np.array([1, 0, 1e-45, NAN, 1e300], np.longdouble)
    error = ulp_error(got, exact)
    assert error[0] == 1 and error[1] == 0 and error[3] == 0 and error[4] == 0
    assert 2 <= error[2] <= 3
    assert ulp_error(np.float32(NAN), np.longdouble(1)) == INF


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None])
def test_softmax_family_against_scipy(axis):
    special = pytest.importorskip("scipy.special")
    x = np.random.default_rng(0).normal(0, 3, (3, 4, 5))
    b = np.random.default_rng(1).normal(0, 1, (3, 1, 5))
    b[0, 0, 2] = 0
    np.testing.assert_allclose(reference_softmax(x, axis), special.softmax(x, axis), rtol=1e-13)
    np.testing.assert_allclose(reference_log_softmax(x, axis), special.log_softmax(x, axis), rtol=1e-13)
    for options in ({}, {"keepdims": True}, {"b": b}, {"b": b, "return_sign": True}):
        ours = reference_logsumexp(x, axis, **options)
        theirs = special.logsumexp(x, axis, **options)
        for a, c in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "b"),
    [
        ([-INF, -INF], [1, 1]),
        ([INF, 0], [-1, 1]),
        ([INF, INF], [-1, 1]),
        ([0, 0], [1, -1]),
        ([NAN, 1], [0, 1]),
        ([1, 2], [0, 0]),
        ([0, -INF], [-1.0, 2]),
    ],
)
def test_logsumexp_with_factors_against_scipy(x, b):
    special = pytest.importorskip("scipy.special")
    with np.errstate(all="ignore"):
        theirs = special.logsumexp(np.array(x), b=np.array(b), return_sign=True)
        plain = special.logsumexp(np.array(x), b=np.array(b))
    np.testing.assert_array_equal(reference_logsumexp(x, b=b, return_sign=True), theirs)
    np.testing.assert_array_equal(reference_logsumexp(x, b=b), plain)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_loss_and_gradient_against_torch(kind, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (6, 4, 2))
    targets = TARGET_KINDS[kind](rng, x, 1)
    weight = np.array([0.5, 0, 2, 1.5])
    ignored = [-100, -1, 2] if kind == "indices" else [-100, -1]
    for w, ignore_index, smoothing in itertools.product([None, weight], ignored, [0, 0.1, 1.0]):
        if kind == "indices":
            targets[:2] = ignore_index
        logits = torch.tensor(x, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(
            logits,
            torch.tensor(targets),
            weight=None if w is None else torch.tensor(w),
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        loss.sum().backward()
        ours = reference_cross_entropy(
            x,
            targets,
            1,
            weight=w,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        np.testing.assert_allclose(ours.loss.astype(float), loss.detach().numpy(), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(ours.grad.astype(float), logits.grad.numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_gradient_is_the_derivative_of_the_loss(option, kind):
    """Options that PyTorch does not have included; longdouble differences, so h may be small."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 2, (3, 5)).astype(np.longdouble)
    targets = TARGET_KINDS[kind](rng, x.astype(float), 1)
    options = OPTIONS[option](rng, x, 1)
    if kind != "indices":
        options.pop("ignore_index", None)
    h = np.longdouble(1e-3)
    upstream = np.array([1.0, -0.5, 2.0])

    def total(logits):
        losses = reference_cross_entropy(logits, targets, reduction="none", **options).rows
        return (upstream * losses).sum() if np.all(np.isfinite(losses)) else np.longdouble(0)

    if "class_mask" in options:  # no target on a class that is not there
        mask = np.broadcast_to(options["class_mask"], x.shape).copy()
        if kind == "indices":
            mask[np.arange(3), targets] = True
        else:
            targets = np.where(mask, targets, 0)
        options["class_mask"] = mask
    ours = reference_cross_entropy(x, targets, reduction="none", upstream=upstream, **options).grad
    numeric = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        near, far = total(x + step) - total(x - step), total(x + 2 * step) - total(x - 2 * step)
        numeric[i] = (8 * near - far) / (12 * h)
    np.testing.assert_allclose(ours.astype(float), numeric.astype(float), atol=2e-11)


def test_sample_weight_normalizer_and_empty():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 3))
    y = np.array([0, 1, 2, -100])
    rows = reference_cross_entropy(x, y, reduction="none").rows
    weights = np.array([1.0, 0, 3, 5])
    mean = reference_cross_entropy(x, y, sample_weight=weights)
    np.testing.assert_allclose(float(mean.loss), float((weights * rows).sum() / 4), rtol=1e-15)
    assert np.all(mean.grad[[1, 3]] == 0)
    by_ten = reference_cross_entropy(x, y, normalizer=10)
    np.testing.assert_allclose(float(by_ten.loss), float(rows.sum() / 10), rtol=1e-15)

    nothing = np.full(4, -100)
    assert np.isnan(reference_cross_entropy(x, nothing).loss)
    assert np.all(reference_cross_entropy(x, nothing).grad == 0)
    assert reference_cross_entropy(x, nothing, empty="zero").loss == 0
    with pytest.raises(ValueError, match="no samples"):
        reference_cross_entropy(x, nothing, empty="raise")
    assert np.isnan(reference_cross_entropy(x, y, normalizer=0).grad[0]).all()
    assert np.all(reference_cross_entropy(x, y, normalizer=0, empty="zero").grad == 0)


def test_masked_class_is_a_class_that_is_not_there():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(5, 4))
    x[:, 1] = NAN
    kept = np.array([True, False, True, True])
    y = np.array([0, 2, 3, 2, 0])
    options = {"label_smoothing": 0.2, "z_loss": 0.1, "reduction": "none"}
    w = np.array([1.0, 2, 3, 4])
    masked = reference_cross_entropy(x, y, class_mask=kept, weight=w, **options)
    without = reference_cross_entropy(x[:, kept], np.array([0, 1, 2, 1, 0]), weight=w[kept], **options)
    np.testing.assert_array_equal(masked.rows, without.rows)
    np.testing.assert_allclose(masked.grad[:, kept], without.grad, rtol=1e-17, atol=1e-19)
    assert np.all(masked.grad[:, 1] == 0)
    on_mask = reference_cross_entropy(x, [1] * 5, class_mask=kept, reduction="none")
    assert np.all(np.isposinf(on_mask.rows)) and np.all(np.isfinite(on_mask.grad))
    nothing_left = reference_cross_entropy(x, y, class_mask=np.zeros(4, bool), reduction="none")
    assert np.all(np.isnan(nothing_left.rows)) and np.all(nothing_left.grad == 0)


def test_one_hot_equals_indices_without_weights():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 4, 2))
    y = class_indices(rng, x, 1)
    a = reference_cross_entropy(x, y, 1)
    b = reference_cross_entropy(x, one_hot(y, 4, 1), 1)
    assert a.loss == b.loss
    np.testing.assert_array_equal(a.grad, b.grad)
    assert soft_targets(rng, x, 1).shape == x.shape
