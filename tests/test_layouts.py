"""Every function with every layout of the zoo: right, and nothing of the caller's written."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from problems import class_indices, soft_targets
from reference import (
    logsumexp_terms,
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import assert_ulp, same_bits

import fastswl as swl

BOUND = 4


def softmax(x, axis, rng):
    assert_ulp(swl.softmax(x, axis), reference_softmax(x, axis), BOUND)


def log_softmax(x, axis, rng):
    assert_ulp(swl.log_softmax(x, axis), reference_log_softmax(x, axis), BOUND)


def logsumexp(x, axis, rng):
    exact = reference_logsumexp(x, axis)
    assert_ulp(swl.logsumexp(x, axis), exact, BOUND, logsumexp_terms(x, axis))


def index_loss(x, axis, rng):
    y = class_indices(rng, x, axis)
    got = swl.cross_entropy(x, y, axis, reduction="none")
    assert_ulp(got, reference_cross_entropy(x, y, axis, reduction="none").rows, BOUND)


def probability_loss(x, axis, rng):
    t = soft_targets(rng, x, axis, np.float64)
    got = swl.cross_entropy(x, t, axis, reduction="none")
    exact = reference_cross_entropy(x, t, axis, reduction="none")
    assert_ulp(got, exact.rows, BOUND, exact.rows_terms)


def index_gradient(x, axis, rng):
    y = class_indices(rng, x, axis)
    result = swl.cross_entropy_value_and_grad(x, y, axis, reduction="none")
    exact = reference_cross_entropy(x, y, axis, reduction="none")
    assert_ulp(result.loss, exact.rows, BOUND)
    assert_ulp(result.grad, exact.grad, BOUND)


def probability_gradient(x, axis, rng):
    t = soft_targets(rng, x, axis, np.float64)
    result = swl.cross_entropy_value_and_grad(x, t, axis, reduction="none")
    exact = reference_cross_entropy(x, t, axis, reduction="none")
    assert_ulp(result.grad, exact.grad, BOUND, exact.grad_terms)


def layer(x, axis, rng):
    y = class_indices(rng, x, axis)
    ours = swl.SoftmaxWithLoss(axis=axis, reduction="sum")
    ours.forward(x, y)
    assert_ulp(ours.y, reference_softmax(x, axis), BOUND)
    exact = reference_cross_entropy(x, y, axis, reduction="sum")
    assert_ulp(ours.backward(), exact.grad, BOUND)


FUNCTIONS = (
    softmax,
    log_softmax,
    logsumexp,
    index_loss,
    probability_loss,
    index_gradient,
    probability_gradient,
    layer,
)


def frozen(x):
    """What must not change: values and, for arrays, strides, flags and the memory behind."""
    if isinstance(x, list):
        return repr(x)
    memory = x if x.base is None or isinstance(x, np.memmap) else x.base
    behind = memory.tobytes() if isinstance(memory, np.ndarray) else b""
    return x.tobytes(), x.strides, x.flags.writeable, behind


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_layout(layout, function, dtype):
    for n, classes in ((4, 10), (19, 33), (19, 100), (3, 260)):
        x, axis = layout(n, classes, dtype)
        before = frozen(x)
        function(x, axis, np.random.default_rng(1))
        assert frozen(x) == before


@pytest.mark.parametrize("dtype", ["float16", "bool", "int32"])
def test_layout_of_other_dtypes(layout, dtype):
    x, axis = layout(5, 12, dtype)
    if np.dtype(dtype) == np.float16:
        exact = reference_softmax(x, axis)
        bound = 4 if isinstance(x, list) else 0.51
        assert_ulp(swl.softmax(x, axis), exact, bound)
    else:
        softmax(x, axis, None)
        index_gradient(x, axis, np.random.default_rng(1))


def test_layout_of_the_targets():
    """Targets, weights and masks may lie in memory as they like, too."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 3, (6, 8)).astype(np.float32)
    y = rng.integers(0, 8, 6)
    t = soft_targets(rng, x, -1)
    weight = rng.integers(1, 9, 8) / 4
    samples = rng.integers(1, 9, 6) / 4
    mask = rng.random((6, 8)) < 0.8
    mask[np.arange(6), y] = True

    def views(a):
        spread = np.zeros(tuple(2 * s for s in a.shape), a.dtype)
        spread[tuple(slice(None, None, 2) for _ in a.shape)] = a
        memory = np.zeros(a.nbytes + 1, np.uint8)
        unaligned = memory[1:].view(a.dtype).reshape(a.shape)
        unaligned[...] = a
        read_only = a.copy()
        read_only.flags.writeable = False
        flip = (slice(None, None, -1),) * a.ndim
        yield spread[tuple(slice(None, None, 2) for _ in a.shape)]
        yield np.ascontiguousarray(a[flip])[flip]
        yield np.asfortranarray(a)
        yield a.astype(a.dtype.newbyteorder("S"))
        yield unaligned
        yield read_only
        yield a.tolist()

    def run(y, t, weight, samples, mask):
        for targets in (y, t):
            yield swl.cross_entropy_value_and_grad(x, targets, weight=weight, sample_weight=samples, class_mask=mask)

    expected = list(run(y, t, weight, samples, mask))
    for view in zip(*map(views, (y, t, weight, samples, mask)), strict=True):
        for result, plain in zip(run(*view), expected, strict=True):
            np.testing.assert_allclose(result.loss, plain.loss, rtol=1e-6)
            np.testing.assert_allclose(result.grad, plain.grad, rtol=1e-5, atol=1e-7)


def test_layout_of_the_outputs():
    rng = np.random.default_rng(3)
    x = rng.normal(0, 3, (6, 40))
    y = rng.integers(0, 40, 6)
    expected = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    outs = (
        np.empty((40, 6)).T,
        np.empty((6, 80))[:, ::2],
        np.empty((6, 40))[::-1, ::-1],
        np.empty((6, 41))[:, 1:],
        np.empty((6, 6, 40))[:, 3],
    )
    for out in outs:
        out[...] = np.nan
        assert swl.softmax(x, out=out) is out
        assert_ulp(out, reference_softmax(x), BOUND)
        out[...] = np.nan
        result = swl.cross_entropy_value_and_grad(x, y, reduction="none", grad_out=out)
        assert result.grad is out
        assert_ulp(out, reference_cross_entropy(x, y, reduction="none").grad, BOUND)
        assert same_bits(result.loss, expected.loss)
    losses = np.full(12, np.nan)[::2]
    assert swl.cross_entropy(x, y, reduction="none", out=losses) is losses
    assert_ulp(losses, reference_cross_entropy(x, y, reduction="none").rows, BOUND)


def test_memory_between_strided_outputs_is_left_alone():
    rng = np.random.default_rng(4)
    for shape, axis in (((6, 40), 1), ((40, 6), 0), ((3, 10, 5), 1)):
        x = rng.normal(0, 3, shape).astype(np.float32)
        memory = np.full(tuple(2 * s for s in shape), 7, np.float32)
        inside = tuple(slice(None, None, 2) for _ in shape)
        swl.softmax(x, axis, out=memory[inside])
        swl.cross_entropy_value_and_grad(x, class_indices(rng, x, axis), axis, grad_out=memory[inside])
        memory[inside] = 7
        assert np.all(memory == 7)


@pytest.mark.parametrize("margin", [1, 3, 16])
def test_memory_around_the_outputs_is_left_alone(margin):
    rng = np.random.default_rng(5)
    few = (1, 1), (3, 2), (5, 3), (17, 10), (7, 100), (33, 7)
    for n, classes in (*few, (5, 300), (5, 700), (5, 2200), (2, 4100)):
        for dtype in (np.float32, np.float64, np.float16):
            x = rng.normal(0, 3, (n, classes)).astype(dtype)
            memory = np.full(n * classes + 2 * margin, 7, dtype)
            out = memory[margin:-margin].reshape(n, classes)
            swl.softmax(x, out=out)
            swl.softmax(out, out=out)
            swl.cross_entropy_value_and_grad(x, rng.integers(0, classes, n), grad_out=out)
            assert np.all(memory[:margin] == 7) and np.all(memory[-margin:] == 7)


def test_matrix_subclasses_and_array_interfaces_are_read():
    class Holder:
        def __array__(self, dtype=None, copy=None):
            return np.array([[0.0, 1, 2], [2, 1, 0]])

    plain = np.asarray(Holder())
    assert same_bits(swl.softmax(Holder()), swl.softmax(plain))
    assert swl.cross_entropy(Holder(), (0, 1)) == swl.cross_entropy(plain, np.array([0, 1]))


def no_copies(function):
    """Run; nothing like a copy of 8 MB may be made. (A first run, for what is compiled and kept.)"""
    function()
    tracemalloc.start()
    try:
        function()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20, peak


@pytest.mark.parametrize("held", ["rows", "columns", "steps", "backwards", "read-only", "images"])
def test_logits_are_not_copied(held):
    x = np.zeros((20_000, 100), np.float32)
    axis = 1
    if held == "columns":
        x, axis = np.zeros((100, 20_000), np.float32), 0
    elif held == "steps":
        x = np.zeros((20_000, 200), np.float32)[:, ::2]
    elif held == "backwards":
        x = x[::-1, ::-1]
    elif held == "read-only":
        x.flags.writeable = False
    elif held == "images":
        x = np.zeros((20, 100, 50, 20), np.float32)
    y = np.zeros(np.delete(x.shape, axis), np.int8)
    no_copies(lambda: swl.cross_entropy(x, y, axis))
    no_copies(lambda: swl.logsumexp(x, axis))
    out = np.empty(x.shape, x.dtype)
    no_copies(lambda: swl.softmax(x, axis, out=out))
    no_copies(lambda: swl.cross_entropy_value_and_grad(x, y, axis, grad_out=out))


def test_a_memory_map_as_output_is_returned(tmp_path):
    """The object that was given, not the plain array behind it."""
    x = np.random.default_rng(6).normal(0, 3, (3, 4))
    y = np.array([0, 1, 2])
    full = np.memmap(tmp_path / "full", np.float64, "w+", shape=(3, 4))
    rows = np.memmap(tmp_path / "rows", np.float64, "w+", shape=(3,))
    for function in (swl.softmax, swl.log_softmax):
        assert function(x, out=full) is full
        assert same_bits(full, function(x))
    assert swl.logsumexp(x, out=rows) is rows
    assert same_bits(rows, swl.logsumexp(x))
    plain = swl.cross_entropy_value_and_grad(x, y, reduction="none")
    result = swl.cross_entropy_value_and_grad(x, y, reduction="none", out=rows, grad_out=full)
    assert result.loss is rows and result.grad is full
    assert same_bits(rows, plain.loss) and same_bits(full, plain.grad)
