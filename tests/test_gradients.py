"""The gradient is the derivative of the loss: central differences, one logit at a time.

Moving all logits of a row together changes nothing in the loss, so an error that is common to a row
would be invisible to a directional derivative; moving one logit shows it.
"""

from __future__ import annotations

import numpy as np
import pytest
from problems import (
    ONLY_WITH_INDICES,
    OPTIONS,
    TARGET_KINDS,
    class_indices,
    sample_shape,
    soft_targets,
)

import fastswl as swl

STEP = 2.0**-9  # a power of two: x + h is exact for the logits below


def numeric_gradient(value, x):
    """4th-order central differences of a scalar function."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):

        def moved(steps, i=i):
            z = x.copy()
            z[i] += steps * STEP
            return value(z)

        near, far = moved(1) - moved(-1), moved(2) - moved(-2)
        grad[i] = (8 * near - far) / (12 * STEP)
    return grad


def logits(rng, shape):
    return np.round(rng.normal(0, 2, shape) * 64) / 64


def without_infinite_losses(options, targets, x, axis):
    """A target on a masked class has a loss of inf, which has no difference."""
    if "class_mask" not in options:
        return options, targets
    mask = np.asarray(options["class_mask"])
    if mask.ndim == 1:
        mask = mask.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    mask = np.broadcast_to(mask, x.shape).copy()
    if targets.ndim == x.ndim:
        mask |= targets != 0
    else:
        np.put_along_axis(mask, np.expand_dims(targets, axis), True, axis)
    return options | {"class_mask": mask}, targets


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_one_option(option, kind, reduction):
    if kind != "indices" and option in ONLY_WITH_INDICES:
        return
    for axis, shape in ((-1, (3, 5)), (1, (2, 4, 3)), (0, (6,))):
        rng = np.random.default_rng(7)
        x = logits(rng, shape)
        targets = TARGET_KINDS[kind](rng, x, axis)
        made = OPTIONS[option](rng, x, axis) | {"empty": "zero"}  # a lone sample may weigh 0
        options, targets = without_infinite_losses(made, targets, x, axis)
        check(x, targets, axis, options, reduction, rng)


def check(x, targets, axis, options, reduction, rng):
    if reduction == "none":
        upstream = rng.integers(-4, 5, sample_shape(x, axis)) / 2
    else:
        upstream = -1.5

    def value(z):
        losses = swl.cross_entropy(z, targets, axis, reduction=reduction, **options)
        return float(np.sum(upstream * losses))

    grad = swl.cross_entropy_value_and_grad(x, targets, axis, reduction=reduction, upstream=upstream, **options).grad
    np.testing.assert_allclose(grad, numeric_gradient(value, x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_all_options_together(kind, axis):
    rng = np.random.default_rng(8)
    x = logits(rng, (4, 6) if axis else (6, 4))
    targets = TARGET_KINDS[kind](rng, x, axis)
    options = {
        "weight": rng.integers(1, 9, 6) / 4,
        "sample_weight": np.array([1.0, 0, 2, 0.5]),
        "label_smoothing": 0.125,
        "z_loss": 0.0625,
        "logit_scale": 1.5,
        "softcap": 5.0,
        "class_mask": rng.random(x.shape) < 0.8,
    }
    if kind == "indices":
        options["ignore_index"] = int(targets[-1])
    options, targets = without_infinite_losses(options, targets, x, axis)
    for reduction in ("none", "sum", "mean"):
        check(x, targets, axis, options, reduction, rng)
    check(x, targets, axis, options | {"normalizer": 3}, "mean", rng)


@pytest.mark.parametrize("classes", [3, 20, 150, 1500])
def test_wide_rows(classes):
    """A few logits of rows that other walks take: the target, the maximum and the ends."""
    rng = np.random.default_rng(9)
    x = logits(rng, (3, classes))
    y = rng.integers(0, classes, 3)
    grad = swl.cross_entropy_value_and_grad(x, y, reduction="sum").grad
    for row in range(3):
        for c in {0, classes - 1, int(y[row]), int(x[row].argmax())}:

            def moved(steps, row=row, c=c):
                z = x.copy()
                z[row, c] += steps * STEP
                return swl.cross_entropy(z, y, reduction="none")[row]

            near, far = moved(1) - moved(-1), moved(2) - moved(-2)
            numeric = (8 * near - far) / (12 * STEP)
            assert grad[row, c] == pytest.approx(numeric, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_layer(kind):
    rng = np.random.default_rng(10)
    x = logits(rng, (4, 5))
    t = class_indices(rng, x, 1) if kind == "indices" else soft_targets(rng, x, 1)
    layer = swl.SoftmaxWithLoss(label_smoothing=0.25)
    numeric = numeric_gradient(lambda z: float(layer.forward(z, t)), x)
    layer.forward(x, t)
    np.testing.assert_allclose(layer.backward(), numeric, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(layer.backward(-2.0), -2 * numeric, rtol=1e-8, atol=1e-9)


def test_softmax_is_the_gradient_of_logsumexp():
    x = logits(np.random.default_rng(11), (3, 7))
    numeric = numeric_gradient(lambda z: float(swl.logsumexp(z).sum()), x)
    np.testing.assert_allclose(swl.softmax(x), numeric, rtol=1e-8, atol=1e-9)
