"""cross_entropy against the reference: options, target kinds, reductions, divisors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from problems import (
    ONLY_WITH_INDICES,
    OPTIONS,
    TARGET_KINDS,
    class_indices,
    one_hot,
    random_problem,
    soft_targets,
)
from reference import reference_cross_entropy
from ulp import assert_ulp, same_bits

import fastswl as swl

# What is asked here is the meaning of the options; test_exactness.py holds the bounds.
BOUND = 64

DTYPES = ["float32", "float64"]
REDUCTIONS = ["none", "sum", "mean"]


def assert_loss(got, reference, dtype, reduction, what=""):
    """Per-sample losses in ulp; the scalar in ulp of dtype, as that is what its rows have."""
    if reduction == "none":
        assert got.dtype == dtype
        assert_ulp(got, reference.rows, BOUND, reference.rows_terms, what)
        return
    assert type(got) is np.float64
    if not np.isfinite(reference.loss) or reference.loss == 0:
        np.testing.assert_array_equal(got, np.float64(reference.loss), str(what))
        return
    relative = float(abs(got - reference.loss) / abs(reference.loss))
    slack = float(reference.rows_terms.sum() / max(abs(reference.rows.sum()), 1e-300))
    error = relative / float(np.finfo(dtype).eps)
    assert error <= BOUND * max(slack, 1), f"{error} eps: {what}"


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_each_option(option, kind, dtype, reduction):
    if kind != "indices" and option in ONLY_WITH_INDICES:
        return
    for axis, shape in ((-1, (37, 10)), (1, (3, 7, 4)), (0, (130,))):
        rng = np.random.default_rng(0)
        x = rng.normal(0, 4, shape).astype(dtype)
        targets = TARGET_KINDS[kind](rng, x, axis)
        options = OPTIONS[option](rng, x, axis) | {"reduction": reduction}
        got = swl.cross_entropy(x, targets, axis, **options)
        assert_loss(got, reference_cross_entropy(x, targets, axis, **options), x.dtype, reduction, option)


@pytest.mark.parametrize("seed", range(120))
def test_any_combination_of_options(seed):
    problem = random_problem(seed, DTYPES[seed % 2])
    x, targets, axis, options = problem
    got = swl.cross_entropy(x, targets, axis, **options)
    assert_loss(
        got,
        reference_cross_entropy(x, targets, axis, **options),
        x.dtype,
        options.get("reduction"),
        sorted(options),
    )


def test_loss_of_known_values():
    """mpmath: log1p(9 * exp(-20)); PyTorch and JAX give 0 for this row in float32."""
    exact = np.longdouble("1.85503824298886752402161948417e-8")
    for dtype in DTYPES:
        row = np.zeros((1, 10), dtype)
        row[0, 0] = 20
        loss = swl.cross_entropy(row, np.array([0]), reduction="none")
        assert_ulp(loss, np.array([exact]), 3)


def test_per_sample_shape_and_type():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    for axis in (0, 1, 2, -1, -2, -3):
        loss = swl.cross_entropy(x, class_indices(rng, x, axis), axis, reduction="none")
        assert loss.shape == tuple(np.delete(x.shape, axis)) and loss.dtype == np.float32
    single = swl.cross_entropy(x[0, 0], 2, reduction="none")
    assert type(single) is np.float32
    assert type(swl.cross_entropy(x[0, 0], np.int8(2))) is np.float64


def test_default_is_the_mean_over_the_last_axis():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.integers(0, 3, 8)
    assert swl.cross_entropy(x, y) == swl.cross_entropy(x, y, axis=1, reduction="mean")


@pytest.mark.parametrize(
    "dtype",
    ["bool", "float32", "float64", *(pytest.param(d, marks=pytest.mark.slow) for d in ("int8", "uint64", "float16"))],
)
def test_one_hot_equals_indices(dtype):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 5, (20, 12))
    y = rng.integers(0, 12, 20)
    exact = reference_cross_entropy(x, y, reduction="none").rows
    got = swl.cross_entropy(x, one_hot(y, 12, dtype=dtype), reduction="none")
    assert_ulp(got, exact, 4)


def test_square_logits_with_targets_of_the_same_shape_are_probabilities():
    """(3, 3) integers are counts of target mass, never indices of a third axis."""
    x = np.arange(9.0).reshape(3, 3)
    counts = np.array([[2, 0, 1], [0, 0, 0], [1, 1, 1]])
    got = swl.cross_entropy(x, counts, reduction="none")
    exact = reference_cross_entropy(x, counts, reduction="none")
    assert_ulp(got, exact.rows, 4, exact.rows_terms)
    assert got[1] == 0


def test_rows_of_probabilities_need_not_sum_to_one():
    rng = np.random.default_rng(2)
    x = rng.normal(0, 3, (6, 5))
    t = rng.exponential(3, (6, 5))
    exact = reference_cross_entropy(x, t, reduction="none")
    assert_ulp(swl.cross_entropy(x, t, reduction="none"), exact.rows, 4, exact.rows_terms)


def test_mean_divides_by_weights_of_the_targets_or_by_rows():
    x = np.zeros((3, 2))
    y = np.array([0, 1, 1])
    weight = np.array([1.0, 3.0])
    log_2 = np.log(2.0)
    # index targets: (1 + 3 + 3) log 2 / (1 + 3 + 3); probabilities: the same sum / 3
    assert swl.cross_entropy(x, y, weight=weight) == pytest.approx(log_2, rel=1e-15)
    by_rows = swl.cross_entropy(x, one_hot(y, 2), weight=weight)
    assert by_rows == pytest.approx(7 * log_2 / 3, rel=1e-15)


def test_sample_weight_counts_in_the_divisor_too():
    x = np.array([[0.0, 0.0], [0.0, np.log(3.0)]])
    y = np.array([0, 0])  # losses log 2 and log 4
    mean = swl.cross_entropy(x, y, sample_weight=np.array([1.0, 3.0]))
    assert mean == pytest.approx(7 * np.log(2.0) / 4, rel=1e-15)


@pytest.mark.parametrize("n_classes", [5, 100, 200, 700, 3000])
@pytest.mark.parametrize("ignored", [0.0, np.nan], ids=["numbers", "NaN"])
def test_a_small_sample_weight_is_not_none(n_classes, ignored):
    """A row of weight 1e-60, less than float32 holds, beside an ignored one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 2, (16, n_classes)).astype(np.float32), rng.integers(0, n_classes, 16)
    x[5] += ignored
    weight = np.ones(16)
    weight[3], weight[5] = 1e-60, 0.0
    # weighed up again by what arrives from above
    upstream = 1.0 / np.maximum(weight, 1e-60)
    grad = swl.cross_entropy_value_and_grad(x, y, sample_weight=weight, reduction="none", upstream=upstream).grad
    plain = swl.cross_entropy_value_and_grad(x, y, reduction="none").grad
    assert_ulp(grad[3], plain[3], 2)
    assert (grad[5] == 0).all()


def test_sample_weight_broadcasts_to_the_samples():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 5, 6))
    y = rng.integers(0, 5, (4, 6))
    for shape in ((), (1,), (6,), (4, 1), (4, 6)):
        s = rng.integers(1, 9, shape) / 4
        for reduction in REDUCTIONS:
            got = swl.cross_entropy(x, y, 1, sample_weight=s, reduction=reduction)
            exact = reference_cross_entropy(x, y, 1, sample_weight=s, reduction=reduction)
            assert_loss(got, exact, x.dtype, reduction)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint32", "int64", "uint64"])
def test_ignore_index_is_compared_by_value(dtype):
    """uint8 156 and uint64 2**64 - 100 have the bits of -100, but are other numbers."""
    x = np.random.default_rng(4).normal(size=(3, 200))
    ignored = -100 if dtype.startswith("i") else 100
    y = np.array([0, 100, 5], dtype)
    if ignored < 0:
        y[1] = ignored
    got = swl.cross_entropy(x, y, ignore_index=ignored, reduction="none")
    assert got[1] == 0 and np.all(got[[0, 2]] > 0)
    if dtype == "uint8":
        y[1] = 156
        assert swl.cross_entropy(x, y, reduction="none")[1] > 0
    if dtype == "uint16":
        y[1] = 65436
        with pytest.raises(IndexError, match="65436"):
            swl.cross_entropy(x, y)
        assert swl.cross_entropy(x, y, ignore_index=65436, reduction="none")[1] == 0
    if dtype == "uint32":
        y[1] = 2**32 - 100
        with pytest.raises(IndexError, match=str(2**32 - 100)):
            swl.cross_entropy(x, y)
        assert swl.cross_entropy(x, y, ignore_index=2**32 - 100, reduction="none")[1] == 0
    if dtype == "uint64":
        x, y = np.tile(x, (10, 1)), np.tile(y, 10)
        for wrong in (2**64 - 100, 2**63, 2**63 + 1):
            y[1] = wrong
            for ignored in (-100, -(2**63), 5):
                with pytest.raises(IndexError, match=str(wrong)):
                    swl.cross_entropy(x, y, ignore_index=ignored)


#: whole numbers that vectors of float64 hold, and that become NaN, others of the same size or one that is 2**51 off
FAR_INDICES = [-(2**63), 2**63 - 1, 2**62, (0x7FF8 - 0x4338) << 48, 2**53, 2**52, 2**51, -(2**51), 2**51 - 1, 10**6, -1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 4, 40, 300])
@pytest.mark.parametrize("ignored", FAR_INDICES)
def test_ignore_index_may_be_any_integer(ignored, n_classes, dtype):
    x = np.random.default_rng(5).normal(size=(48, n_classes)).astype(dtype)
    y = np.tile(np.array([1, ignored, 0], np.int64), 16)
    got = swl.cross_entropy(x, y, ignore_index=ignored, reduction="none")
    assert np.all(got[1::3] == 0) and np.all(got[::3] > 0) and np.all(got[2::3] > 0)
    result = swl.cross_entropy_value_and_grad(x, y, ignore_index=ignored)
    np.testing.assert_allclose(result.loss, got.sum(dtype=np.float64) / 32, rtol=1e-6)
    assert not result.grad[1::3].any() and result.grad[::3].all()
    small = np.tile(np.array([1, 0, 0], np.int8), 16)  # where no target can have that value
    assert np.all(swl.cross_entropy(x, small, ignore_index=ignored, reduction="none") > 0)


@pytest.mark.parametrize("wrong", FAR_INDICES)
@pytest.mark.parametrize("row", [0, 13, 47])
def test_no_index_far_away_is_a_class(wrong, row):
    y = np.zeros(48, np.int64)
    y[row] = wrong
    for n_classes, ignored in itertools.product([2, 40], [-100, 2**52 + 2, -(2**63) + 1]):
        with pytest.raises(IndexError, match=rf"{wrong}"):
            swl.cross_entropy(np.zeros((48, n_classes), np.float32), y, ignore_index=ignored)


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_empty_means(kind):
    x = np.ones((0, 3), np.float32)
    targets = np.ones((0,), int) if kind == "indices" else np.ones((0, 3))
    assert np.isnan(swl.cross_entropy(x, targets))
    assert swl.cross_entropy(x, targets, reduction="sum") == 0
    assert swl.cross_entropy(x, targets, reduction="none").shape == (0,)
    zero = swl.cross_entropy(x, targets, empty="zero")
    assert zero == 0 and type(zero) is np.float64
    with pytest.raises(ValueError, match=r"."):
        swl.cross_entropy(x, targets, empty="raise")
    assert swl.cross_entropy(x, targets, normalizer=12) == 0


def test_rows_without_classes():
    """No index can be right; without target mass the sum has no terms."""
    x = np.ones((2, 0))
    with pytest.raises(IndexError, match=r"targets\[1\] is 0.*0 classes"):
        swl.cross_entropy(x, np.array([-100, 0]))
    assert np.isnan(swl.cross_entropy(x, np.array([-100, -100])))
    assert swl.cross_entropy(x, np.ones((2, 0)), reduction="sum") == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_index": 1},
        {"weight": np.array([1.0, 0, 1])},
        {"sample_weight": np.zeros(4)},
        {"normalizer": 0},
    ],
    ids=str,
)
def test_means_with_a_divisor_of_zero(options):
    x, y = np.random.default_rng(6).normal(size=(4, 3)), np.ones(4, int)
    assert np.isnan(swl.cross_entropy(x, y, **options))
    assert swl.cross_entropy(x, y, empty="zero", **options) == 0
    with pytest.raises(ValueError, match=r"."):
        swl.cross_entropy(x, y, empty="raise", **options)
    other = {name: value for name, value in options.items() if name != "normalizer"}
    assert np.isfinite(swl.cross_entropy(x, y, reduction="sum", empty="raise", **other))


def test_normalizer_replaces_the_divisor():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 5, 12)
    whole = swl.cross_entropy(x, y)
    parts = [swl.cross_entropy(x[i : i + 4], y[i : i + 4], normalizer=12) for i in (0, 4, 8)]
    assert sum(parts) == pytest.approx(whole, rel=1e-15)


def test_out_is_filled_and_returned():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(7, 5)), rng.integers(0, 5, 7)
    expected = swl.cross_entropy(x, y, reduction="none")
    out = np.full(7, 9.0)
    assert swl.cross_entropy(x, y, reduction="none", out=out) is out
    assert same_bits(out, expected)
    strided = np.full(14, 9.0)[::-2]
    assert swl.cross_entropy(x, y, reduction="none", out=strided) is strided
    assert same_bits(strided, expected)


def test_probabilities_ignore_a_negative_ignore_index():
    rng = np.random.default_rng(9)
    x = rng.normal(size=(4, 3))
    t = soft_targets(rng, x, -1)
    assert swl.cross_entropy(x, t, ignore_index=-5) == swl.cross_entropy(x, t)


def test_million_classes():
    x = np.zeros((1, 1_000_000), np.float32)
    got = swl.cross_entropy(x, np.array([123_456]), reduction="none")
    assert_ulp(got, np.array([np.log(np.longdouble(1_000_000))]), 3)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40, 1000])
@pytest.mark.parametrize("kind", ["classes", "rows", "both"])
@pytest.mark.parametrize("layout", ["side by side", "in steps", "broadcast"])
@pytest.mark.parametrize("n_classes", [2, 10, 700])
def test_the_mean_divides_by_weights_a_vector_at_a_time_and_one_by_one(n, kind, layout, n_classes):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, n_classes)).astype(np.float32)
    targets = rng.integers(0, n_classes, n)
    targets[n // 3 :: 5] = -100
    weight = rng.uniform(0, 3, n_classes) if kind != "rows" else np.ones(n_classes)
    samples = rng.uniform(0, 3, n) if kind != "classes" else np.ones(n)
    samples[n // 2 :: 7] = 0.0
    if layout == "broadcast":
        samples[...] = 0.75
    given = {"side by side": samples, "in steps": np.repeat(samples, 2)[::2], "broadcast": np.float64(0.75)}[layout]
    options = {"weight": weight if kind != "rows" else None, "sample_weight": given if kind != "classes" else None}
    if kind == "classes":
        samples[...] = 1.0
    each = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
    counts = targets != -100
    divisor = math.fsum(np.where(counts, weight[targets * counts] * samples, 0.0))
    if divisor == 0.0:
        assert np.isnan(swl.cross_entropy(x, targets, **options))
        return
    mean = swl.cross_entropy_value_and_grad(x, targets, **options)
    np.testing.assert_allclose(mean.loss, math.fsum(each.loss) / divisor, rtol=1e-15)
    np.testing.assert_allclose(mean.grad, each.grad / divisor, rtol=5e-7, atol=1e-40)
    for row in range(n):
        one = swl.cross_entropy(
            x[row : row + 1], targets[row : row + 1], weight=weight, sample_weight=samples[row], reduction="sum"
        )
        assert np.float32(one) == each.loss[row]


@pytest.mark.parametrize("bad", [-1, 10, 10**15, -(10**15)])
@pytest.mark.parametrize("place", [0, 7, 500, 519, 520])
def test_a_bad_index_is_found_before_its_weight_is_looked_for(bad, place):
    x = np.zeros((521, 10), np.float32)
    targets = np.arange(521) % 10
    targets[place] = bad
    for options in ({"weight": np.ones(10)}, {"sample_weight": np.ones(521)}):
        with pytest.raises(IndexError, match=str(bad)):
            swl.cross_entropy(x, targets, **options)
