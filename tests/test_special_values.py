"""The table of special values: every function, every walk, next to ordinary rows."""

from __future__ import annotations

import numpy as np
import pytest
from reference import (
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import CLASS_COUNTS, assert_ulp, same_bits

import fastswl as swl

NAN, INF = np.nan, np.inf
BOUND = 16  # the table is the matter here; test_exactness.py holds the bounds

DTYPES = ["float32", "float64"]


def special_rows(classes, dtype):
    """Ordinary rows with one special row between any two, the odd value at several places."""
    rng = np.random.default_rng(classes)
    places = sorted({0, classes // 3, classes // 2, classes - 1})
    rows = []
    for value in (NAN, INF, -INF):
        for place in places:
            row = rng.normal(0, 3, classes)
            row[place] = value
            rows.append(row)
    for values in ([-INF] * classes, [INF] * classes, [NAN] * classes):
        rows.append(np.array(values))
    for a, b in ((INF, -INF), (INF, NAN), (-INF, NAN), (-INF, -INF)):
        row = rng.normal(0, 3, classes)
        row[places[0]], row[places[-1]] = a, b
        rows.append(row)
    late = np.full(classes, -INF)  # one finite logit at the end of a row of -inf
    late[-1] = 2.5
    rows.append(late)
    early = np.full(classes, -INF)
    early[0] = -300.0
    rows.append(early)
    ordinary = rng.normal(0, 3, (len(rows), classes))
    return np.stack([ordinary, np.array(rows)], axis=1).reshape(-1, classes).astype(dtype)


@pytest.fixture(params=["rows", "columns", "one_by_one"])
def arrange(request):
    """The same rows as one batch, with the class axis first, or each a call of its own."""
    return request.param


def apply(function, x, arrange, *per_row):
    """Call function(logits, axis, *arrays of a row each); the results as (n, C) or (n,)."""
    if arrange == "rows":
        return function(x, -1, *per_row)
    if arrange == "columns":
        result = function(np.ascontiguousarray(x.T), 0, *per_row)
        return _turn(result)
    # a fifth of the rows is enough here: large C are slow one by one
    parts = [function(x[i : i + 1], -1, *(a[i : i + 1] for a in per_row)) for i in range(len(x))]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)


def _turn(result):
    if isinstance(result, tuple):
        return tuple(_turn(part) for part in result)
    return result.T


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_family(classes, dtype, arrange):
    x = special_rows(classes, dtype)
    assert_ulp(apply(swl.softmax, x, arrange), reference_softmax(x), BOUND, what="softmax")
    got = apply(swl.log_softmax, x, arrange)
    assert_ulp(got, reference_log_softmax(x), BOUND, what="log_softmax")
    got = apply(swl.logsumexp, x, arrange)
    exact = reference_logsumexp(x)
    assert_ulp(got, exact, BOUND, np.maximum(np.abs(exact), 1), what="logsumexp")


def call_loss(**options):
    def function(x, axis, targets, *samples):
        if targets.ndim == 2 and axis == 0:
            targets = np.ascontiguousarray(targets.T)
        named = dict(zip(("sample_weight",), samples, strict=False))
        return tuple(swl.cross_entropy_value_and_grad(x, targets, axis, reduction="none", **named, **options))

    return function


def check_loss(x, arrange, targets, **options):
    loss, grad = apply(call_loss(**options), x, arrange, targets)
    reference = reference_cross_entropy(x, targets, reduction="none", **options)
    assert_ulp(loss, reference.rows, BOUND, reference.rows_terms, f"loss {list(options)}")
    assert_ulp(grad, reference.grad, BOUND, reference.grad_terms, f"gradient {list(options)}")


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_of_class_indices(classes, dtype, arrange):
    x = special_rows(classes, dtype)
    n = len(x)
    for y in (np.zeros(n, int), np.full(n, classes - 1), np.full(n, classes // 3)):
        check_loss(x, arrange, y)


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_of_probabilities(classes, dtype, arrange):
    x = special_rows(classes, dtype)
    t = np.random.default_rng(0).random(x.shape).astype(dtype)
    check_loss(x, arrange, t)
    t[~np.isfinite(x)] = 0  # no mass where the logit is -inf: a finite loss
    check_loss(x, arrange, t)


@pytest.mark.parametrize("option", ["smoothing", "weight", "z_loss", "softcap", "scale", "mask"])
@pytest.mark.parametrize("classes", [3, 10, 100, 1000, 5000])
def test_loss_with_options(classes, option):
    x = special_rows(classes, "float32")
    y = np.arange(len(x)) % classes
    rng = np.random.default_rng(1)
    options = {
        "smoothing": {"label_smoothing": 0.125},
        "weight": {"weight": np.arange(classes) % 3 / 2},
        "z_loss": {"z_loss": 0.25},
        "softcap": {"softcap": 4.0},
        "scale": {"logit_scale": 0.5},
        "mask": {"class_mask": rng.random(classes) < 0.7},
    }[option]
    check_loss(x, "rows", y, **options)
    check_loss(x, "columns", y, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_table_in_full(dtype):
    """The rows of the table by hand, so that this does not hang on the reference."""
    x = np.array([[0, -INF, 0], [-INF] * 3, [INF, 0, 0], [NAN, 0, 0]], dtype)
    log_2 = np.log(2.0)
    some, none, infinite, nan = range(4)
    p, log_p, lse = swl.softmax(x), swl.log_softmax(x), swl.logsumexp(x)
    close = {"rtol": 1e-6}
    np.testing.assert_allclose(p[some], [0.5, 0, 0.5], **close)
    np.testing.assert_allclose(log_p[some], [-log_2, -INF, -log_2], **close)
    np.testing.assert_allclose(lse[some], log_2, **close)
    assert np.isnan(p[none]).all() and np.isnan(log_p[none]).all() and lse[none] == -INF
    assert np.isnan(p[infinite]).all() and lse[infinite] == INF
    np.testing.assert_array_equal(log_p[infinite], [NAN, -INF, -INF])
    assert np.isnan(p[nan]).all() and np.isnan(log_p[nan]).all() and np.isnan(lse[nan])

    def loss_and_grad(targets):
        return swl.cross_entropy_value_and_grad(x, targets, reduction="none")

    loss, grad = loss_and_grad(np.array([0, 0, 0, 0]))
    np.testing.assert_allclose(loss, [log_2, NAN, NAN, NAN], **close)
    np.testing.assert_allclose(grad, [[-0.5, 0, 0.5], [0] * 3, [NAN] * 3, [NAN] * 3], **close)
    loss, grad = loss_and_grad(np.array([1, 1, 1, 1]))
    np.testing.assert_array_equal(loss, [INF, NAN, NAN, NAN])
    np.testing.assert_allclose(grad[some], [0.5, 0, 0.5], **close)
    loss, grad = loss_and_grad(np.tile(np.array([0.25, 0, 0.75]), (4, 1)))
    np.testing.assert_allclose(loss, [log_2, NAN, NAN, NAN], **close)
    np.testing.assert_allclose(grad[some], [0.25, 0, -0.25], **close)
    loss, grad = loss_and_grad(np.tile(np.array([0.25, 0.25, 0.5]), (4, 1)))
    np.testing.assert_array_equal(loss, [INF, NAN, NAN, NAN])
    np.testing.assert_allclose(grad[some], [0.25, 0, 0], **close)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 3000, 20000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_ignored_rows_are_never_read(classes, dtype, axis):
    rng = np.random.default_rng(2)
    n = 20
    x = rng.normal(0, 3, (n, classes) if axis else (classes, n)).astype(dtype)
    y = rng.integers(0, classes, n)
    y[::3] = -100
    rows = np.arange(n) % 3 == 0
    hostile = x.copy()
    (hostile if axis else hostile.T)[rows] = np.resize([NAN, INF, -INF], classes)
    weights = np.where(rows, 0.0, 1.0)
    ordinary_y = np.where(rows, 0, y)
    for logits in (x, hostile):
        by_index = swl.cross_entropy_value_and_grad(logits, y, axis)
        by_weight = swl.cross_entropy_value_and_grad(logits, ordinary_y, axis, sample_weight=weights)
        smoothed = swl.cross_entropy_value_and_grad(logits, y, axis, label_smoothing=0.125)
        capped = swl.cross_entropy_value_and_grad(logits, y, axis, softcap=20.0)
        alone = swl.cross_entropy(logits, y, axis)
        with_grad = by_index, by_weight, smoothed, capped
        if logits is x:
            expected = with_grad, alone
            continue
        for result, clean in zip(with_grad, expected[0], strict=True):
            assert same_bits(result.loss, clean.loss) and np.isfinite(result.loss)
            assert same_bits(result.grad, clean.grad)
            assert np.all((result.grad if axis else result.grad.T)[rows] == 0)
        assert same_bits(alone, expected[1])


@pytest.mark.parametrize("classes", [2, 10, 100, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_probabilities_of_rows_that_weigh_nothing_are_never_read(classes, dtype, axis):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(20, classes)).astype(dtype)
    targets = rng.random((20, classes)).astype(dtype)
    weights = np.arange(20) % 3 != 0
    hostile = np.where(weights[:, np.newaxis], targets, np.resize([NAN, INF, -INF], classes)).astype(dtype)
    clean, result = (
        swl.cross_entropy_value_and_grad(x if axis else x.T, t if axis else t.T, axis, sample_weight=weights)
        for t in (targets, hostile)
    )
    assert same_bits(result.loss, clean.loss) and np.isfinite(result.loss)
    # (what lies beside a NaN may be computed in another order)
    np.testing.assert_allclose(
        result.grad.astype(float), clean.grad.astype(float), rtol=1e-2 if "16" in dtype else 1e-5, atol=1e-7
    )
    assert np.all((result.grad if axis else result.grad.T)[~weights] == 0)


@pytest.mark.parametrize("softcap", [1e39, 1e300])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_softcap_that_no_logit_comes_near_is_none(dtype, softcap):
    x = np.array([[-INF, 0, 1], [2, 3, 5]], dtype)
    for y in ([1, 0], [[0, 0.5, 0.5], [1, 0, 0]]):
        plain, capped = (swl.cross_entropy_value_and_grad(x, y, softcap=cap) for cap in (None, softcap))
        assert same_bits(capped.loss, plain.loss) and same_bits(capped.grad, plain.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_of_zero_at_minus_infinity_adds_nothing(dtype):
    x = np.array([[0, -INF, 0]], dtype)
    weight = np.array([1.0, 0, 1])
    loss, grad = swl.cross_entropy_value_and_grad(x, [1], weight=weight, reduction="none")
    assert loss[0] == 0 and np.all(grad == 0)
    # smoothing spreads 1/3 of weight 1 over each of the two classes that count
    loss = swl.cross_entropy(x, [1], weight=weight, label_smoothing=1.0, reduction="none")
    np.testing.assert_allclose(loss, 2 / 3 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 10, 100, 1000])
@pytest.mark.parametrize("per_row", [False, True])
def test_class_mask_hides_whatever_the_logit_is(classes, per_row):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 3, (17, classes)).astype(np.float32)
    mask = rng.random(x.shape if per_row else classes) < 0.6
    mask[..., 0] = True
    full = np.broadcast_to(mask, x.shape)
    hostile = np.where(full, x, np.resize(np.array([NAN, INF, -INF, 1e30], x.dtype), x.shape))
    y = np.zeros(17, int)
    clean = swl.cross_entropy_value_and_grad(x, y, class_mask=mask, label_smoothing=0.125)
    dirty = swl.cross_entropy_value_and_grad(hostile, y, class_mask=mask, label_smoothing=0.125)
    assert same_bits(clean.loss, dirty.loss) and same_bits(clean.grad, dirty.grad)
    assert np.all(dirty.grad[~full] == 0) and np.isfinite(dirty.loss)


@pytest.mark.parametrize("classes", [10, 100, 681, 1000])
@pytest.mark.parametrize("shape", ["all alike", "by image", "by row", "one class alike", "turned", "every other"])
def test_a_mask_may_have_any_shape_and_strides(classes, shape, by_tiles):
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (3, 37, classes)).astype(np.float32)
    targets = rng.integers(0, classes, x.shape[:2])
    mask = {
        "all alike": rng.random(classes) < 0.7,
        "by image": rng.random((3, 1, classes)) < 0.7,
        "by row": rng.random((3, 37, classes)) < 0.7,
        "one class alike": rng.random((3, 37, 1)) < 0.7,
        "turned": (rng.random((3, 37, classes)) < 0.7)[:, ::-1, ::-1],
        "every other": (rng.random((3, 37, 2 * classes)) < 0.7)[..., ::2],
    }[shape]
    full = np.broadcast_to(mask, x.shape)
    loss, grad = swl.cross_entropy_value_and_grad(x, targets, class_mask=mask, reduction="none")
    hidden = np.where(full, x, np.float32(-np.inf))
    expected = by_tiles(lambda: swl.cross_entropy_value_and_grad(hidden, targets, reduction="none"))
    np.testing.assert_array_equal(loss, expected.loss)
    np.testing.assert_array_equal(grad, expected.grad)
    assert (grad[~full] == 0).all()


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"logit_scale": 2.0}, {"softcap": 2.0, "label_smoothing": 0.25}])
@pytest.mark.parametrize("classes", [4, 200, 700])
def test_class_mask_hides_logits_that_are_changed(classes, options):
    x = np.random.default_rng(4).normal(0, 3, (17, classes)).astype(np.float32)
    mask = np.arange(classes) % 4 != 2
    hostile = x.copy()
    hostile[:, ~mask] = np.resize(np.array([NAN, INF, -INF], x.dtype), (17, np.sum(~mask)))
    y = np.zeros(17, int)
    for targets in (y, np.where(mask, x, 0) ** 2):
        clean = swl.cross_entropy_value_and_grad(x, targets, class_mask=mask, **options)
        dirty = swl.cross_entropy_value_and_grad(hostile, targets, class_mask=mask, **options)
        assert same_bits(clean.loss, dirty.loss) and same_bits(np.abs(clean.grad), np.abs(dirty.grad))
        assert np.isfinite(dirty.loss) and np.all(dirty.grad[:, ~mask] == 0)


def test_class_mask_on_targets_and_on_whole_rows():
    x = np.array([[0.0, NAN, 0], [0, NAN, 0]])
    mask = np.array([[True, False, True], [False, False, False]])
    loss, grad = swl.cross_entropy_value_and_grad(x, [1, 0], class_mask=mask, reduction="none")
    np.testing.assert_array_equal(loss, [INF, NAN])
    np.testing.assert_allclose(grad, [[0.5, 0, 0.5], [0, 0, 0]], rtol=1e-15)
    t = np.array([[0.5, 0.25, 0.25], [1, 0, 0]])
    loss, grad = swl.cross_entropy_value_and_grad(x, t, class_mask=mask, reduction="none")
    np.testing.assert_array_equal(loss, [INF, NAN])
    np.testing.assert_allclose(grad, [[0, 0, 0.25], [0, 0, 0]], atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("softcap", [0.001, 6.0, 30.0])
def test_the_slope_of_a_softcap_goes_to_zero_through_the_subnormals(dtype, softcap):
    """Its derivative is 4 exp(-2 |x| / softcap), far beyond the softcap."""
    far = np.linspace(0, 400, 999) * softcap
    x = np.stack([far, -far, 0 * far], axis=1).astype(dtype)
    targets = np.arange(999) % 3
    result = swl.cross_entropy_value_and_grad(x, targets, softcap=softcap, reduction="sum")
    exact = reference_cross_entropy(x, targets, softcap=softcap, reduction="sum")
    assert_ulp(result.grad, exact.grad, 6, exact.grad_terms)
    assert (result.grad[-1, :2] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [4, 200, 700])
@pytest.mark.parametrize("softcap", [1e-35, 1e-25, 1e-12, 1e-3, 1e12, 1e15, 1e25, 1e35])
def test_a_softcap_of_any_size(dtype, n_classes, softcap):
    """Logits that are small beside it, near it, and far beyond."""
    parts = np.resize([0.0, 1e-4, 0.3, -0.2, 0.49, 0.51, -0.9, 2.0], (8, n_classes))
    x = (parts * np.linspace(0.1, 1.5, 8)[:, None] * softcap).astype(dtype)
    # scaled to where softmax tells logits apart; gradients of less than 1e-26 have no digits left in float32
    options = {"softcap": softcap, "logit_scale": max(5.0 / softcap, 1e-20)}
    targets = np.arange(8) % n_classes
    result = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
    exact = reference_cross_entropy(x, targets, reduction="none", **options)
    assert_ulp(result.loss, exact.rows, 6, exact.rows_terms)
    assert_ulp(result.grad, exact.grad, 8, exact.grad_terms)


@pytest.mark.parametrize("options", [{"logit_scale": 1.1}, {"softcap": 3.0}, {"softcap": 0.7, "label_smoothing": 0.1}])
@pytest.mark.parametrize("n_classes", [6, 200, 700, 5000])
@pytest.mark.parametrize("offset", [1e3, 1e5, 1e7, -1e7, 1e8, 3e9])
def test_changed_logits_far_from_zero(options, n_classes, offset):
    """A scale and a softcap (here in units of the offset) round nothing off, however large the logits."""
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 5, (16, n_classes)) + offset).astype(np.float32)
    targets = rng.integers(0, n_classes, 16)
    options = {**options, "softcap": options["softcap"] * abs(offset)} if "softcap" in options else options
    result = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
    exact = reference_cross_entropy(x, targets, reduction="none", **options)
    assert_ulp(result.loss, exact.rows, 3, exact.rows_terms)
    assert_ulp(result.grad, exact.grad, 6 if "softcap" in options else 3, exact.grad_terms)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [4, 200, 700])
def test_the_least_number_serves_as_a_mask_of_changed_logits(dtype, n_classes):
    """As -inf does: what the other classes give is what they give without it."""
    x = np.zeros((2, n_classes), dtype)
    x[:, 2] = 1
    x[:, 1] = np.finfo(dtype).min
    left = np.delete(x, 1, axis=1)
    got = swl.cross_entropy_value_and_grad(x, [0, 2], reduction="none", logit_scale=0.7)
    plain = swl.cross_entropy_value_and_grad(left, [0, 1], reduction="none", logit_scale=0.7)
    assert_ulp(got.loss, plain.loss, 1)
    assert_ulp(np.delete(got.grad, 1, axis=1), plain.grad, 1)
    assert (got.grad[:, 1] == 0).all()


def test_softcap_tames_infinities():
    """The table speaks of c * tanh(x / c), and that is +-c for +-inf."""
    x = np.array([[INF, -INF, 0.0]])
    loss, grad = swl.cross_entropy_value_and_grad(x, [0], softcap=2.0, reduction="none")
    exact = np.log(np.exp(2.0) + np.exp(-2.0) + 1) - 2
    np.testing.assert_allclose(loss, [exact], rtol=1e-14)
    assert np.all(np.abs(grad[0, :2]) < 1e-300) and grad[0, 2] > 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_largest_finite_logits(dtype):
    top = np.finfo(dtype).max
    x = np.array([[top, -top, top / 2], [-top, -top, -top], [top, top, 0]], dtype)
    assert_ulp(swl.softmax(x), reference_softmax(x), 4)
    assert_ulp(swl.logsumexp(x), reference_logsumexp(x), 4)
    loss = swl.cross_entropy(x, [0, 1, 0], reduction="none")
    exact = reference_cross_entropy(x, [0, 1, 0], reduction="none")
    assert_ulp(loss, exact.rows, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_logits_and_results(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([[tiny, -tiny, 0], [5 * tiny, 0, 0]], dtype)
    assert_ulp(swl.softmax(x), reference_softmax(x), 4)
    gap = -float(np.log(np.finfo(dtype).tiny)) + 5  # p is subnormal
    x = np.array([[gap, 0, -1], [0, gap, -3]], dtype)
    assert_ulp(swl.softmax(x), reference_softmax(x), 4)
    loss, grad = swl.cross_entropy_value_and_grad(x, [0, 1], reduction="none")
    exact = reference_cross_entropy(x, [0, 1], reduction="none")
    assert_ulp(loss, exact.rows, 4)
    assert_ulp(grad, exact.grad, 4)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 1.0}])
def test_a_mean_of_weights_0_is_zero_beside_nan(options):
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    x[[3, 7], 1] = np.nan
    result = swl.cross_entropy_value_and_grad(x, np.zeros(20, int), weight=np.zeros(3), empty="zero", **options)
    assert result.loss == 0.0
    np.testing.assert_array_equal(result.grad, 0.0)
