"""Outputs that share memory with inputs: the right result or a ValueError, never garbage."""

from __future__ import annotations

import numpy as np
import pytest
from reference import (
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
)
from ulp import assert_ulp, same_bits

import fastswl as swl

BOUND = 4
SHAPES = [(6, 6), (40, 10), (5, 300), (5, 700), (2, 6000)]


def overlapping(shape, dtype=np.float64):
    """Pairs of arrays of one shape in one piece of memory; the first is filled with logits."""
    n, classes = shape
    size = n * classes

    def memory(count):
        return np.random.default_rng(0).normal(0, 3, count).astype(dtype)

    for shift in (1, 3, classes, size // 2):
        block = memory(size + shift)
        yield "ahead", block[:size].reshape(shape), block[shift:].reshape(shape)
        block = memory(size + shift)
        yield "behind", block[shift:].reshape(shape), block[:size].reshape(shape)
    block = memory(size).reshape(shape)
    yield "rows_reversed", block, block[::-1]
    block = memory(size).reshape(shape)
    yield "classes_reversed", block, block[:, ::-1]
    block = memory(2 * size).reshape(n, 2 * classes)
    yield "interleaved", block[:, ::2], block[:, 1::2]
    block = memory(2 * size).reshape(n, 2 * classes)
    yield "stretched", block[:, ::2], block[:, :classes]
    if n == classes:
        block = memory(size).reshape(shape)
        yield "transposed", block, block.T


def right_or_refused(run, check, *arrays):
    """Run; either the result is right, or it is a ValueError and nothing was changed."""
    owners = [array if array.base is None else array.base for array in arrays]
    before = [owner.copy() for owner in owners]
    try:
        result = run()
    except ValueError:
        assert all(same_bits(a, b) for a, b in zip(owners, before, strict=True))
    else:
        check(result)


def _ids(value):
    return str(value)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=_ids)
def test_softmax_family(shape, dtype, function):
    reference = {"softmax": reference_softmax, "log_softmax": reference_log_softmax}[function]
    for axis in (-1, 0):
        for name, x, out in overlapping(shape, dtype):
            exact = reference(x.copy(), axis)

            def run(x=x, out=out, axis=axis):
                return getattr(swl, function)(x, axis, out=out)

            def check(result, exact=exact, name=name):
                assert_ulp(result, exact, BOUND, what=name)

            right_or_refused(run, check, x, out)


@pytest.mark.parametrize("shape", SHAPES, ids=_ids)
def test_logsumexp_into_its_input(shape):
    for axis, out_of in (
        (1, lambda x: x[:, 0]),
        (1, lambda x: x[:, -1]),
        (0, lambda x: x[-1]),
        (1, lambda x: x.reshape(-1)[-len(x) :]),  # in rows that are read later
    ):
        x = np.random.default_rng(1).normal(0, 3, shape)
        exact = reference_logsumexp(x.copy(), axis)
        out = out_of(x)
        right_or_refused(
            lambda x=x, axis=axis, out=out: swl.logsumexp(x, axis, out=out),
            lambda result, exact=exact: assert_ulp(result, exact, BOUND),
            x,
        )


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=_ids)
def test_gradient_over_logits(shape, kind):
    n, classes = shape
    rng = np.random.default_rng(2)
    targets = rng.integers(0, classes, n) if kind == "indices" else rng.random(shape)
    for name, x, grad_out in overlapping(shape):
        exact = reference_cross_entropy(x.copy(), targets)

        def run(x=x, grad_out=grad_out):
            return swl.cross_entropy_value_and_grad(x, targets, grad_out=grad_out)

        def check(result, exact=exact, name=name):
            assert_ulp(result.grad, exact.grad, 6, exact.grad_terms, name)
            assert result.loss == pytest.approx(float(exact.loss), rel=1e-13)

        right_or_refused(run, check, x, grad_out)


@pytest.mark.parametrize("shape", SHAPES, ids=_ids)
def test_gradient_over_probability_targets(shape):
    """The targets themselves as grad_out, and parts of them."""
    x = np.random.default_rng(3).normal(0, 3, shape)
    for name, targets, grad_out in [
        *overlapping(shape),
        ("same", *[np.ones(shape)] * 2),
    ]:
        np.abs(targets, out=targets)
        exact = reference_cross_entropy(x, targets.copy(), reduction="sum")

        def run(targets=targets, grad_out=grad_out):
            return swl.cross_entropy_value_and_grad(x, targets, reduction="sum", grad_out=grad_out)

        def check(result, exact=exact, name=name):
            assert_ulp(result.grad, exact.grad, 6, exact.grad_terms, name)

        right_or_refused(run, check, targets, grad_out)


@pytest.mark.parametrize("argument", ["weight", "sample_weight", "upstream", "targets"])
@pytest.mark.parametrize("n", [8, 600])
def test_gradient_over_a_vector_that_is_still_needed(argument, n):
    classes = n  # so that every vector has n entries and may lie anywhere in the gradient
    rng = np.random.default_rng(4)
    x = rng.normal(0, 3, (n, classes))
    grad_out = np.zeros((n, classes))
    vectors = {
        "weight": np.ones(classes),
        "sample_weight": np.ones(n),
        "upstream": np.ones(n),
        "targets": rng.integers(0, classes, n),
    }
    for where in (grad_out[0], grad_out[-1], grad_out[:, 1]):
        grad_out[...] = 0
        if argument == "targets":
            vector = where.view(np.int64) if where.flags.c_contiguous else None
            if vector is None:
                continue
            vector[...] = vectors["targets"]
        else:
            vector = where
            vector[...] = rng.integers(1, 9, n) / 4
        arguments = vectors | {argument: vector}
        fixed = {name: np.array(value) for name, value in arguments.items()}
        exact = reference_cross_entropy(x, fixed.pop("targets"), reduction="none", **fixed)
        targets = arguments.pop("targets")

        def run(targets=targets, arguments=arguments):
            return swl.cross_entropy_value_and_grad(x, targets, reduction="none", grad_out=grad_out, **arguments)

        def check(result, exact=exact):
            assert_ulp(result.grad, exact.grad, 6, exact.grad_terms)
            assert_ulp(result.loss, exact.rows, 6)

        right_or_refused(run, check, grad_out)


@pytest.mark.parametrize(("n", "order"), [(16, 1), (600, 1), (600, -1)])
def test_gradient_over_the_class_mask(n, order):
    rng = np.random.default_rng(5)
    x = rng.normal(0, 3, (n, 8))
    y = np.zeros(n, int)
    grad_out = np.zeros((n, 8))
    mask = grad_out.view(bool).reshape(n, 64)[::order, 8:16]
    mask[...] = rng.random((n, 8)) < 0.7
    mask[:, 0] = True
    exact = reference_cross_entropy(x, y, class_mask=mask.copy())
    right_or_refused(
        lambda: swl.cross_entropy_value_and_grad(x, y, class_mask=mask, grad_out=grad_out),
        lambda result: assert_ulp(result.grad, exact.grad, 6),
        grad_out,
    )


@pytest.mark.parametrize("function", ["cross_entropy", "cross_entropy_value_and_grad"])
def test_losses_over_inputs(function):
    rng = np.random.default_rng(6)
    for n, classes in ((20, 10), (300, 300), (300, 700)):
        x = rng.normal(0, 3, (n, classes))
        y = rng.integers(0, classes, n)
        weight = np.ones(n)
        exact = reference_cross_entropy(x.copy(), y, reduction="none")
        for out, options in (
            (x[:, 0], {}),
            (x[:, -1], {}),
            (x.reshape(-1)[:n], {}),
            (x.reshape(-1)[-n:], {}),  # in rows that are read later
            (weight, {"sample_weight": weight}),
        ):

            def run(x=x, y=y, out=out, options=options):
                return getattr(swl, function)(x, y, reduction="none", out=out, **options)

            def check(result, exact=exact):
                loss = result.loss if isinstance(result, tuple) else result
                assert_ulp(loss, exact.rows, BOUND)

            kept = x.copy()
            right_or_refused(run, check, x, weight)
            x[...], weight[...] = kept, 1


def test_losses_and_gradient_in_the_same_memory_are_refused():
    """No result can be right for both."""
    x = np.random.default_rng(7).normal(size=(5, 4))
    y = np.array([0, 1, 2, 3, 0])
    grad_out = np.full((5, 4), 7.0)
    for out in (grad_out[:, 0], grad_out.reshape(-1)[:5]):
        with pytest.raises(ValueError, match="out"):
            swl.cross_entropy_value_and_grad(x, y, reduction="none", out=out, grad_out=grad_out)
        assert np.all(grad_out == 7)


@pytest.mark.parametrize(("shape", "place"), [((5, 4), (slice(None), 2)), ((3, 200_000), (2, slice(3)))])
def test_logsumexp_over_its_factors(shape, place):
    x = np.random.default_rng(8).normal(size=shape)
    b = np.random.default_rng(9).integers(1, 5, shape).astype(float)
    exact = reference_logsumexp(x, b=b.copy())
    out = b[place]
    right_or_refused(
        lambda: swl.logsumexp(x, b=b, out=out),
        lambda result: assert_ulp(result, exact, BOUND),
        b,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_the_input_itself(function, dtype):
    """In place is a promise, not only a possibility."""
    for shape, axis in (((6, 6), 1), ((40, 10), 1), ((5, 300), 1), ((5, 700), 1), ((2, 6000), 1), ((10, 40), 0)):
        x = np.random.default_rng(10).normal(0, 3, shape).astype(dtype)
        expected = getattr(swl, function)(x.copy(), axis)
        assert getattr(swl, function)(x, axis, out=x) is x
        assert same_bits(x, expected)
        base = np.random.default_rng(10).normal(0, 3, (shape[0], 2 * shape[1])).astype(dtype)
        view = base[:, ::2]
        expected = getattr(swl, function)(view, axis)
        rest = base[:, 1::2].copy()
        getattr(swl, function)(view, axis, out=view)
        assert same_bits(view, expected) and same_bits(base[:, 1::2], rest)


def test_another_view_of_exactly_the_input():
    """Same memory, other array object."""
    y = np.arange(6) % 5
    for axis in (-1, 1):  # the default axis, which a kept call may serve, and the way of all checks
        x = np.random.default_rng(11).normal(size=(6, 5))
        expected = swl.softmax(x, axis)
        swl.softmax(x, axis, out=x[:])
        assert same_bits(x, expected)
        expected = swl.cross_entropy_value_and_grad(x, y, axis).grad
        swl.cross_entropy_value_and_grad(x, y, axis, grad_out=x[:])
        assert same_bits(x, expected)


@pytest.mark.parametrize("shape", [(1, 1000), (1000,), (1, 5), (2, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_call_that_is_kept_ready_does_not_write_to_its_targets(shape, dtype):
    """Of one row there is no stride between rows that would tell how much memory they take."""
    rng = np.random.default_rng(13)
    x = rng.normal(size=shape).astype(dtype)
    held = rng.random(2 * x.size).astype(dtype)
    swl.cross_entropy_value_and_grad(x, held[: x.size].reshape(shape))
    for start, to in ((0, 0), (0, 3), (3, 0)):
        targets, grad = (held[i : i + x.size].reshape(shape) for i in (start, to))
        before = held.copy()
        with pytest.raises(ValueError, match="grad_out overlaps targets"):
            swl.cross_entropy_value_and_grad(x, targets, grad_out=grad)
        assert same_bits(held, before)


def test_calls_that_are_kept_ready_look_at_memory_too():
    """The second call of the same shapes goes another way."""
    for shape in ((6, 6), (40, 10), (5, 300), (5, 700)):
        n, classes = shape
        y = np.random.default_rng(12).integers(0, classes, n)
        plain = np.zeros(shape)
        swl.softmax(plain)
        swl.log_softmax(plain)
        swl.cross_entropy_value_and_grad(plain, y)
        for name, x, out in overlapping(shape):
            for function in (swl.softmax, swl.log_softmax):
                reference = reference_softmax if function is swl.softmax else reference_log_softmax
                exact = reference(x.copy())
                kept = x.copy()
                right_or_refused(
                    lambda function=function, x=x, out=out: function(x, out=out),
                    lambda result, exact=exact, name=name: assert_ulp(result, exact, BOUND, what=name),
                    x,
                    out,
                )
                x[...] = kept
            exact = reference_cross_entropy(x.copy(), y)
            right_or_refused(
                lambda x=x, y=y, out=out: swl.cross_entropy_value_and_grad(x, y, grad_out=out),
                lambda result, exact=exact, name=name: assert_ulp(result.grad, exact.grad, 6, what=name),
                x,
                out,
            )
        # indices that lie in the gradient
        x, out = np.random.default_rng(13).normal(size=shape), np.zeros(shape)
        inside = out.reshape(-1)[:n].view(np.int64)
        inside[...] = y
        exact = reference_cross_entropy(x, y)
        right_or_refused(
            lambda x=x, inside=inside, out=out: swl.cross_entropy_value_and_grad(x, inside, grad_out=out),
            lambda result, exact=exact: assert_ulp(result.grad, exact.grad, 6),
            out,
        )
