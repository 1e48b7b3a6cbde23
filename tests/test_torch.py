"""Parity with torch.nn.functional.cross_entropy, for every combination of its options."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import TARGET_KINDS

import fastswl as swl

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")

# PyTorch sums in the dtype of the input: its own error decides the tolerance. In half precision
# it is asked for the float32 result of the same numbers, which is what the contract promises.
TOLERANCE = {
    "float64": {"rtol": 1e-12, "atol": 1e-14},
    "float32": {"rtol": 2e-5, "atol": 2e-6},
    "float16": {"rtol": 2e-3, "atol": 1e-5},
    "bfloat16": {"rtol": 2e-2, "atol": 1e-5},
}
SHAPES = {"1d": (7,), "2d": (9, 7), "3d": (4, 7, 3), "4d": (2, 7, 3, 2)}


def torch_result(x, targets, kind, weight, ignore_index, smoothing, reduction):
    double = x.dtype == np.float64
    logits = torch.tensor(x.astype(np.float64 if double else np.float32), requires_grad=True)
    targets = torch.tensor(targets)
    targets = targets if kind == "indices" else targets.to(logits.dtype)
    loss = torch.nn.functional.cross_entropy(
        logits,
        targets,
        weight=None if weight is None else torch.tensor(weight, dtype=logits.dtype),
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    loss.sum().backward()
    return loss.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_cross_entropy(kind, reduction, shape, dtype):
    rng = np.random.default_rng(0)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    axis = 0 if shape == "1d" else 1
    x = rng.normal(0, 3, SHAPES[shape]).astype(numpy_dtype)
    # PyTorch calls a 1-d logits with 1-d targets probabilities, as we do
    made = TARGET_KINDS[kind](rng, x.astype(np.float32), axis)
    weights = (None, np.array([1, 0.5, 2, 0, 3, 1, 0.25]))
    ignored = (-100, -1, 2, 7) if kind == "indices" else (-100, -1)
    for weight, ignore_index, smoothing in itertools.product(weights, ignored, (0.0, 0.1, 1.0)):
        targets = np.array(made)
        if kind == "indices" and targets.ndim:
            targets.reshape(-1)[::3] = ignore_index
        theirs, their_grad = torch_result(x, targets, kind, weight, ignore_index, smoothing, reduction)
        loss, grad = swl.cross_entropy_value_and_grad(
            x,
            targets,
            axis,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        what = f"weight {weight}, ignore_index {ignore_index}, smoothing {smoothing}"
        loss_tolerance = TOLERANCE["float64" if dtype == "float64" else "float32"]
        np.testing.assert_allclose(loss, theirs, **loss_tolerance, err_msg=what)
        np.testing.assert_allclose(grad.astype(their_grad.dtype), their_grad, **TOLERANCE[dtype], err_msg=what)
        alone = swl.cross_entropy(
            x,
            targets,
            axis,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        np.testing.assert_allclose(alone, theirs, **loss_tolerance, err_msg=what)


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_upstream_gradient(kind, reduction):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (5, 6, 4))
    targets = TARGET_KINDS[kind](rng, x, 1)
    upstream = rng.normal(size=(5, 4)) if reduction == "none" else np.float64(-1.5)
    logits = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction=reduction)
    loss.backward(torch.tensor(upstream))
    ours = swl.cross_entropy_value_and_grad(x, targets, 1, reduction=reduction, upstream=upstream)
    np.testing.assert_allclose(ours.grad, logits.grad.numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_everything_ignored(reduction):
    x = np.random.default_rng(2).normal(size=(4, 3))
    y = np.full(4, -100)
    theirs, their_grad = torch_result(x, y, "indices", None, -100, 0.0, reduction)
    loss, grad = swl.cross_entropy_value_and_grad(x, y, reduction=reduction)
    np.testing.assert_array_equal(loss, theirs)
    np.testing.assert_array_equal(grad, their_grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_weights_zero(smoothing):
    x = np.random.default_rng(3).normal(size=(4, 3))
    y = np.array([0, 1, -100, 2])
    theirs, their_grad = torch_result(x, y, "indices", np.zeros(3), -100, smoothing, "mean")
    loss, grad = swl.cross_entropy_value_and_grad(x, y, weight=np.zeros(3), label_smoothing=smoothing)
    np.testing.assert_array_equal(loss, theirs)
    np.testing.assert_array_equal(grad, their_grad)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_no_rows(kind, reduction):
    x = np.zeros((0, 3))
    targets = np.zeros(0, np.int64) if kind == "indices" else np.zeros((0, 3))
    theirs, their_grad = torch_result(x, targets, kind, None, -100, 0.0, reduction)
    loss, grad = swl.cross_entropy_value_and_grad(x, targets, reduction=reduction)
    np.testing.assert_array_equal(loss, theirs)
    assert grad.shape == their_grad.shape


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_family(axis, dtype):
    x = np.random.default_rng(4).normal(0, 5, (4, 5, 6)).astype(dtype)
    tensor = torch.tensor(x)
    for ours, theirs in (
        (swl.softmax(x, axis), torch.softmax(tensor, axis)),
        (swl.log_softmax(x, axis), torch.log_softmax(tensor, axis)),
        (swl.logsumexp(x, axis), torch.logsumexp(tensor, axis)),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), **TOLERANCE[dtype])


@pytest.mark.parametrize("n", [5, 257])
def test_half_precision_means_do_not_round_the_divisor(n):
    """In bfloat16, 257 rows are 256: a mean kept in the dtype of the input divides by that."""
    x = np.zeros((n, 4), ml_dtypes.bfloat16)
    assert swl.cross_entropy(x, np.zeros(n, int)) == pytest.approx(np.log(4), rel=1e-7)


def test_targets_of_the_index_shape_in_floats_are_refused_by_both():
    x, y = np.zeros((3, 4)), np.zeros(3)
    with pytest.raises(RuntimeError):
        torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(y))
    with pytest.raises(ValueError, match="targets"):
        swl.cross_entropy(x, y)


def test_a_step_of_gradient_descent_goes_the_same_way():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(16, 10)), rng.integers(0, 10, 16)
    ours, theirs = x.copy(), torch.tensor(x, requires_grad=True)
    optimiser = torch.optim.SGD([theirs], lr=0.5)
    for _ in range(20):
        ours -= 0.5 * swl.cross_entropy_value_and_grad(ours, y).grad
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(theirs, torch.tensor(y)).backward()
        optimiser.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)
