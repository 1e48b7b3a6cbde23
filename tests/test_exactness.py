"""Errors in ulp: float32 at most 3, float64 at most 4, on every kind of row and number of classes.

The exact values come from the longdouble reference, which test_reference.py holds to 0.01 ulp of
float64 against mpmath. Where an entry is a true difference (probability targets, smoothing) the unit
is that of the larger term. A logsumexp near zero has a test of its own, against mpmath.
"""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.special
from problems import class_indices, soft_targets
from reference import (
    logsumexp_terms,
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import CLASS_COUNTS, EXTENDED, KINDS, assert_ulp, row_count, to_longdouble

import fastswl as swl
from fastswl import walks

BOUNDS = {"float32": 3, "float64": 4}
# Where longdouble has no more digits than float64, it is a reference for float32 alone.
DTYPES = ["float32", "float64"] if EXTENDED else ["float32"]
WIDE = (32_768, 131_072, 1_000_000)


def placed(x, axis):
    """The rows of x with the classes along `axis` of C-ordered memory."""
    return x if axis == 1 else np.ascontiguousarray(x.T)


def rows_and_targets(kind, classes, dtype, n=None):
    rng = np.random.default_rng(classes)
    x = kind(rng, (n or row_count(classes), classes), np.dtype(dtype))
    y = class_indices(rng, x, 1)
    # the confident right answers, where the loss is small, and random ones
    y[::2] = x.argmax(axis=1)[::2]
    return x, y


def check_family(x, axis, bound):
    z = placed(x, axis)
    assert_ulp(swl.softmax(z, axis), placed(reference_softmax(x), axis), bound, what="softmax")
    exact = placed(reference_log_softmax(x), axis)
    assert_ulp(swl.log_softmax(z, axis), exact, bound, what="log_softmax")
    exact = reference_logsumexp(x)
    terms = exact
    if x.dtype == np.float64:
        # where the reference has too few digits
        terms = np.where(np.abs(exact) < 0.125, logsumexp_terms(x), exact)
    assert_ulp(swl.logsumexp(z, axis), exact, bound, terms, "logsumexp")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-7])
@pytest.mark.parametrize("classes", [2, 3, 33, 300, 5000])
def test_logsumexp_near_zero_keeps_its_relative_accuracy(classes, distance, dtype, monkeypatch):
    """Rows whose largest logit and log of the sum cancel: log-probabilities, and what is near them."""
    rng = np.random.default_rng(classes)
    n = max(4, 3000 // classes)
    x = rng.normal(0, 2, (n, classes))
    x -= scipy.special.logsumexp(x, axis=1, keepdims=True) + distance * rng.normal(0, 0.1, (n, 1))
    x = x.astype(dtype)
    with mpmath.workdps(60):
        exact = [mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(a))) for a in row)) for row in x]
        # beyond 2**-16 float64 has an absolute error, of 2**-66 at most
        least = 0.0 if dtype == "float32" else 2.0**-16
        unit = [np.spacing(np.abs(x.dtype.type(max(abs(e), least)))) for e in exact]
        ways = {
            "rows": swl.logsumexp(x),
            "columns": swl.logsumexp(np.ascontiguousarray(x.T), 0),
            "steps": swl.logsumexp(np.repeat(x, 2, axis=1)[:, ::2]),
        }
        monkeypatch.setattr(walks, "SPLIT_CLASSES", 100)
        walks.find_route.cache_clear()
        ways["split"] = swl.logsumexp(x)
        walks.find_route.cache_clear()
        for name, got in ways.items():
            error = [abs(mpmath.mpf(float(g)) - e) / u for g, e, u in zip(got, exact, unit, strict=True)]
            assert max(error) <= BOUNDS[dtype], (name, float(max(error)))


def check_loss(x, targets, axis, bound, what, **options):
    z = placed(x, axis)
    exact = reference_cross_entropy(x, targets, reduction="none", **options)
    t = placed(targets, axis) if targets.ndim == 2 else targets
    options = options | {"reduction": "none"}
    loss, grad = swl.cross_entropy_value_and_grad(z, t, axis, **options)
    assert_ulp(loss, exact.rows, bound, exact.rows_terms, f"{what}: loss")
    grad_terms = placed(exact.grad_terms, axis)
    assert_ulp(grad, placed(exact.grad, axis), bound, grad_terms, f"{what}: gradient")
    alone = swl.cross_entropy(z, t, axis, **options)
    assert_ulp(alone, exact.rows, bound, exact.rows_terms, f"{what}: loss alone")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [33, 100, 300, 700, 3000, 9000])
def test_logsumexp_of_many_classes_that_is_small(classes, dtype):
    """From sums of all classes, and around where these are added up with more digits."""
    rng = np.random.default_rng(classes)
    goal = np.concatenate([np.linspace(-2, 2, 60), np.nextafter([-1.0, 1.0], 0), [-1.0, 1.0]])
    x = rng.normal(0, 3, (len(goal), classes))
    # of some rows one class is nearly all of the sum
    x[::3, 5] += 25.0
    x += (goal - scipy.special.logsumexp(x, axis=1))[:, None]
    x = x.astype(dtype)
    bound = 3 if dtype is np.float32 else 4
    assert_ulp(swl.logsumexp(x), reference_logsumexp(x), bound, np.abs(goal) / 4, "logsumexp")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [700, 3000, 9000])
# beside one in the other vector of its pair, behind one, and with none there
@pytest.mark.parametrize("largest", [7, -1, -15])
def test_log_softmax_of_rows_whose_largest_is_about_half_of_the_sum(largest, classes, dtype, monkeypatch):
    """Around where the largest is left out of it: log(S / e_m) is small, and S - e_m must not be a difference."""
    rng = np.random.default_rng(classes)
    others = np.concatenate([np.linspace(0.4, 2.5, 40), np.geomspace(1e-12, 0.4, 40)])
    x = rng.normal(0, 2, (len(others), classes))
    x[:, largest] = -np.inf
    x[:, largest] = scipy.special.logsumexp(x, axis=1) - np.log(others)
    x[::2] += rng.uniform(-60, 20, (len(others) // 2, 1))
    x = x.astype(dtype)
    exact = reference_log_softmax(x)
    bound = BOUNDS[np.dtype(dtype).name]
    assert_ulp(swl.log_softmax(x), exact, bound, what="whole rows")
    # of one level, and slowly on: powers of two are guessed right
    slowly = np.repeat(np.arange(len(x))[::-2], 3)
    assert_ulp(swl.log_softmax(x[slowly]), exact[slowly], bound, what="rows of one level")
    assert_ulp(swl.log_softmax(np.repeat(x, 2, axis=1)[:, ::2]), exact, bound, what="steps")
    monkeypatch.setattr(walks, "SPLIT_CLASSES", 100)
    walks.find_route.cache_clear()
    assert_ulp(swl.log_softmax(x), exact, bound, what="rows in parts")
    walks.find_route.cache_clear()


@pytest.mark.parametrize(
    ("classes", "spread", "seed"), [(10, 20, 14), (10, 10, 19), (60, 10, 14), (60, 10, 11), (60, 5, 28)]
)
def test_softmax_where_errors_of_two_exponentials_meet(classes, spread, seed):
    """Of 30 seeds those that have 2.98 to 3.1 ulp where the largest exponential is summed up as float32 rounds it; 2.1 to 2.2 now."""
    x = np.random.default_rng(seed).normal(0, spread, (5000, classes)).astype(np.float32)
    assert_ulp(swl.softmax(x), reference_softmax(x), 2.5)


@pytest.mark.parametrize("axis", [1, 0], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestBounds:
    def test_softmax_family(self, kind, classes, dtype, axis):
        check_family(rows_and_targets(kind, classes, dtype)[0], axis, BOUNDS[dtype])

    def test_class_indices(self, kind, classes, dtype, axis):
        x, y = rows_and_targets(kind, classes, dtype)
        check_loss(x, y, axis, BOUNDS[dtype], "indices")

    def test_probabilities(self, kind, classes, dtype, axis):
        x, _ = rows_and_targets(kind, classes, dtype)
        t = soft_targets(np.random.default_rng(1), x, 1)
        t[np.isneginf(x)] = 0
        check_loss(x, t, axis, BOUNDS[dtype], "probabilities")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", WIDE)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_bounds_of_wide_rows(kind, classes, dtype):
    x, y = rows_and_targets(kind, classes, dtype, n=2)
    check_family(x, 1, BOUNDS[dtype])
    check_loss(x, y, 1, BOUNDS[dtype], "indices")
    t = soft_targets(np.random.default_rng(1), x, 1)
    t[np.isneginf(x)] = 0
    check_loss(x, t, 1, BOUNDS[dtype], "probabilities")


OPTIONS = {
    "weight": lambda rng, n, classes: {"weight": rng.integers(1, 17, classes) / 8},
    "sample_weight": lambda rng, n, classes: {"sample_weight": rng.integers(1, 17, n) / 8},
    "smoothing": lambda rng, n, classes: {"label_smoothing": 0.125},
    "z_loss": lambda rng, n, classes: {"z_loss": 0.0625},
    "logit_scale": lambda rng, n, classes: {"logit_scale": 1.25},
    "class_mask": lambda rng, n, classes: {"class_mask": rng.random(classes) < 0.75},
    "upstream": lambda rng, n, classes: {"upstream": rng.integers(-8, 9, n) / 8},
    "softcap": lambda rng, n, classes: {"softcap": 30.0},
    "smoothing, weight": lambda rng, n, classes: {"label_smoothing": 0.125, "weight": rng.integers(1, 17, classes) / 8},
    "softcap, logit_scale": lambda rng, n, classes: {"softcap": 8.0, "logit_scale": 2.0},
}


@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 200, 1000, 3000, 5000])
@pytest.mark.parametrize("option", OPTIONS)
def test_bounds_hold_with_every_option(option, classes, dtype, targets):
    """Softcap has 6 ulp: tanh comes on top."""
    bound = 6 if option.startswith("softcap") else BOUNDS[dtype]
    for kind in KINDS[:5]:
        x, y = rows_and_targets(kind, classes, dtype)
        rng = np.random.default_rng(2)
        options = OPTIONS[option](rng, *x.shape)
        t = y if targets == "indices" else soft_targets(rng, x, 1)
        if option == "upstream":
            exact = reference_cross_entropy(x, t, reduction="none", **options)
            grad = swl.cross_entropy_value_and_grad(x, t, reduction="none", **options).grad
            assert_ulp(grad, exact.grad, bound, exact.grad_terms, kind.__name__)
            continue
        for axis in (1, 0):
            z, s = placed(x, axis), placed(t, axis) if t.ndim == 2 else t
            exact = reference_cross_entropy(x, t, reduction="none", **options)
            loss, grad = swl.cross_entropy_value_and_grad(z, s, axis, reduction="none", **options)
            what = f"{kind.__name__}, axis {axis}"
            assert_ulp(loss, exact.rows, bound, exact.rows_terms, f"{what}: loss")
            terms = placed(exact.grad_terms, axis)
            assert_ulp(grad, placed(exact.grad, axis), bound, terms, f"{what}: gradient")


@pytest.mark.parametrize("targets", ["indices", "one_hot"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000, 5000])
def test_small_losses_keep_their_relative_accuracy(classes, dtype, targets):
    """A loss of 1e-30 is 1e-30, by mpmath: log1p((C - 1) exp(-gap))."""
    import mpmath

    top = 87 if dtype == "float32" else 700
    gaps = np.array([1, 5, 20, 40, 69, 80, top], dtype)
    for axis in (1, 0):
        for offset in (0, 64):  # what matters is the gap, not the size of the logits
            x = np.full((len(gaps), classes), offset, dtype)
            x[:, classes // 2] += gaps
            gap_there = x[:, classes // 2] - offset
            with mpmath.workdps(400):
                exact = [
                    to_longdouble(mpmath.log1p((classes - 1) * mpmath.exp(-mpmath.mpf(float(g))))) for g in gap_there
                ]
            y = np.full(len(gaps), classes // 2)
            t = y if targets == "indices" else placed(np.eye(classes)[y], axis)
            result = swl.cross_entropy_value_and_grad(placed(x, axis), t, axis, reduction="none")
            assert_ulp(result.loss, np.array(exact), BOUNDS[dtype], what=f"axis {axis}")
            at_target = np.take(result.grad, classes // 2, axis)
            p_others = -np.expm1(-np.array(exact))
            # from probabilities it is Q p - q, a true difference of numbers near 1
            terms = None if targets == "indices" else np.ones(len(gaps))
            assert_ulp(at_target, -p_others, BOUNDS[dtype], terms, what=f"axis {axis}")


def exact_sum(values) -> Fraction:
    return sum((Fraction(float(v)) for v in values), Fraction(0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "size", [(1, 10), (7, 3), (100, 10), (5000, 10), (3000, 100), (300, 2000), (50_000, 3)], ids=str
)
def test_sum_is_the_sum_of_the_losses(size, dtype):
    """`sum` is within 1 ulp of math.fsum over reduction="none"."""
    n, classes = size
    rng = np.random.default_rng(3)
    x = rng.normal(0, 10, size).astype(dtype)
    y = np.where(rng.random(n) < 0.5, x.argmax(axis=1), rng.integers(0, classes, n))
    rows = swl.cross_entropy(x, y, reduction="none")
    exact = math.fsum(rows.astype(float))
    got = swl.cross_entropy(x, y, reduction="sum")
    assert abs(got - exact) <= np.spacing(exact)
    both = swl.cross_entropy_value_and_grad(x, y, reduction="sum").loss
    assert both == got


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(7, 3), (100, 10), (3001, 100), (50_000, 3)], ids=str)
def test_mean_is_the_mean_of_the_losses(size, dtype):
    n, classes = size
    rng = np.random.default_rng(4)
    x = rng.normal(0, 10, size).astype(dtype)
    y = rng.integers(0, classes, n)
    y[::7] = -100
    rows = swl.cross_entropy(x, y, reduction="none")
    exact = float(exact_sum(rows) / int(np.sum(y >= 0)))
    assert abs(swl.cross_entropy(x, y) - exact) <= np.spacing(exact)
    by_number = float(exact_sum(rows) / 1000)
    got = swl.cross_entropy(x, y, normalizer=1000)
    assert abs(got - by_number) <= np.spacing(by_number)


def test_sum_of_losses_of_very_different_size():
    """One loss of 1e5 and many of 1e-9 and less: a plain running sum would lose these."""
    n = 20_001
    x = np.zeros((n, 2))
    x[:, 0] = 20 + np.arange(n) / n
    x[n // 2, 0] = -1e5
    y = np.zeros(n, int)
    rows = swl.cross_entropy(x, y, reduction="none")
    exact = math.fsum(rows)
    assert exact != float(np.cumsum(rows)[-1])
    assert abs(swl.cross_entropy(x, y, reduction="sum") - exact) <= np.spacing(exact)


def test_large_batch_is_not_summed_in_float32():
    """The mean over many rows, where float32 sums drift: every loss is log 2."""
    x = np.zeros((3_000_000, 2), np.float32)
    got = swl.cross_entropy(x, np.zeros(len(x), np.int8))
    row = float(swl.cross_entropy(x[:1], [0], reduction="none")[0])
    assert got == pytest.approx(row, rel=1e-7)
    assert got == pytest.approx(math.log(2), rel=1e-7)
