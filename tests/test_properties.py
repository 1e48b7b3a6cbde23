"""Properties that hold for any input, searched by hypothesis, and bits that must not differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reference import reference_cross_entropy, reference_softmax
from ulp import assert_ulp, row_count, same_bits

import fastswl as swl

BOUND = 4
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def logits(draw, largest=80, max_classes=40):
    """(n, C) rows; multiples of 1/8 now and then, so that ties and exact sums occur."""
    dtype = draw(DTYPES)
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, max_classes)))
    if draw(st.booleans()):
        whole = draw(arrays(np.int16, shape, elements=st.integers(-8 * largest, 8 * largest)))
        return (whole / 8).astype(dtype)
    elements = st.floats(-largest, largest, width=32)
    return draw(arrays(np.float32, shape, elements=elements)).astype(dtype)


@st.composite
def labelled(draw, **options):
    x = draw(logits(**options))
    y = draw(arrays(np.int64, x.shape[0], elements=st.integers(0, x.shape[1] - 1)))
    return x, y


def losses(x, y, axis=-1, **options):
    return swl.cross_entropy_value_and_grad(x, y, axis, reduction="none", **options)


def assert_near(result, x, y, axis=-1, **options):
    """A result within the bounds of the exact one for other, equivalent arguments."""
    exact = reference_cross_entropy(x, y, axis, reduction="none", **options)
    assert_ulp(result.loss, exact.rows, BOUND, exact.rows_terms, "loss")
    assert_ulp(result.grad, exact.grad, BOUND, exact.grad_terms, "gradient")


@given(labelled(), st.integers(-(2**14), 2**14))
def test_shift_invariance(case, shift):
    """x and x + k have one softmax; multiples of 1/8 below 2^17 keep the sum exact."""
    x, y = case
    x = np.round(x * 8) / 8
    moved = (x + x.dtype.type(shift)).astype(x.dtype)
    assert_ulp(swl.softmax(moved), reference_softmax(x), BOUND)
    assert_near(losses(moved, y), x, y)


@given(labelled(), st.randoms(use_true_random=False))
def test_permutation_of_classes(case, random):
    x, y = case
    order = list(range(x.shape[1]))
    random.shuffle(order)
    back = np.argsort(order)
    result = losses(np.ascontiguousarray(x[:, order]), back[y])
    assert_near(result._replace(grad=result.grad[:, back]), x, y)
    p = swl.softmax(np.ascontiguousarray(x[:, order]))
    assert_ulp(p[:, back], reference_softmax(x), BOUND)


@given(labelled(), st.randoms(use_true_random=False))
def test_permutation_of_rows_changes_no_bit(case, random):
    x, y = (np.concatenate([part] * 3) for part in case)  # more rows than a vector has lanes
    order = list(range(x.shape[0]))
    random.shuffle(order)
    plain, moved = losses(x, y), losses(np.ascontiguousarray(x[order]), y[order])
    assert same_bits(moved.loss, plain.loss[order])
    assert same_bits(moved.grad, plain.grad[order])
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        assert same_bits(function(np.ascontiguousarray(x[order])), function(x)[order])


@given(labelled(), st.data())
def test_masked_class_equals_removed_class(case, data):
    x, y = case
    kept = data.draw(arrays(np.bool_, x.shape[1]))
    kept[y] = True
    smoothing = data.draw(st.sampled_from([0.0, 0.25]))
    result = losses(x, y, class_mask=kept, label_smoothing=smoothing)
    assert np.all(result.grad[:, ~kept] == 0)
    position = np.cumsum(kept) - 1
    removed = result._replace(grad=result.grad[:, kept])
    assert_near(removed, x[:, kept], position[y], label_smoothing=smoothing)


@given(labelled(), st.data())
def test_weights_are_a_multiplier(case, data):
    """Powers of two round nothing, so not a bit but the factor changes."""
    x, y = case
    exponents = data.draw(arrays(np.int8, x.shape[1], elements=st.integers(-3, 3)))
    weight = 2.0**exponents
    plain, weighted = losses(x, y), losses(x, y, weight=weight)
    factor = weight[y].astype(x.dtype)
    tiny = np.finfo(x.dtype).tiny * 64
    ordinary = plain.loss > tiny
    assert same_bits(weighted.loss[ordinary], (plain.loss * factor)[ordinary])
    by_sample = losses(x, y, sample_weight=weight[y])
    assert same_bits(by_sample.loss[ordinary], weighted.loss[ordinary])
    assert_near(weighted, x, y, weight=weight)
    assert_near(by_sample, x, y, weight=weight)


@given(labelled())
def test_gradient_rows_sum_to_zero(case):
    x, y = case
    exact = np.asarray(losses(x, y).grad, np.longdouble)
    slack = BOUND * float(np.finfo(x.dtype).eps)
    assert np.all(np.abs(exact.sum(axis=1)) <= slack * np.abs(exact).sum(axis=1) + 1e-37)


@given(logits())
def test_softmax_rows_sum_to_one(x):
    total = np.asarray(swl.softmax(x), np.longdouble).sum(axis=1)
    assert np.all(np.abs(total - 1) <= BOUND * np.finfo(x.dtype).eps)


@given(logits())
def test_log_softmax_is_never_above_zero_and_softmax_never_above_one(x):
    assert np.all(swl.log_softmax(x) <= 0)
    p = swl.softmax(x)
    assert np.all((p >= 0) & (p <= 1))
    assert np.all(swl.logsumexp(x) >= x.max(axis=1))


@given(labelled())
def test_loss_is_never_below_zero(case):
    loss = losses(*case).loss
    assert np.all(loss >= 0)
    assert not np.any(np.signbit(loss))


@given(labelled(), st.sampled_from([0, 1]))
def test_in_place_equals_out_of_place_bit_for_bit(case, axis):
    x, y = case
    if axis == 0:
        x = np.ascontiguousarray(x.T)
    for function in (swl.softmax, swl.log_softmax):
        z = x.copy()
        function(z, axis, out=z)
        assert same_bits(z, function(x, axis))
    z = x.copy()
    into = losses(z, y, axis, grad_out=z)
    plain = losses(x, y, axis)
    assert same_bits(z, plain.grad) and same_bits(into.loss, plain.loss)


@given(
    st.data(),
    DTYPES,
    array_shapes(min_dims=1, max_dims=4, max_side=5),
)
def test_any_memory_layout(data, dtype, shape):
    """Any order of the axes in memory, any sign and step of the strides, any class axis."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    memory = np.empty([shape[a] * abs(steps[a]) for a in order], dtype)
    view = memory.transpose(np.argsort(order))
    view = view[tuple(slice(None, None, step) for step in steps)]
    view[...] = rng.normal(0, 5, shape)
    assert view.shape == shape
    assert_ulp(swl.softmax(view, axis), reference_softmax(view, axis), BOUND)
    y = rng.integers(0, shape[axis], np.delete(shape, axis))
    assert_near(losses(view, y, axis), view, y, axis)


@given(labelled(max_classes=12), st.integers(1, 5))
def test_a_row_alone_has_the_bits_it_has_in_a_batch(case, repeats):
    x, y = case
    many, many_y = np.tile(x, (repeats, 1)), np.tile(y, repeats)
    batch, single = losses(many, many_y), losses(x[:1], y[:1])
    assert same_bits(batch.loss[: len(x)], losses(x, y).loss)
    assert same_bits(batch.loss[:1], single.loss) and same_bits(batch.grad[:1], single.grad)
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        assert same_bits(function(many)[: len(x)], function(x))
        assert same_bits(function(x[:1]), function(x)[:1])


# Bits: sizes that pass the thresholds of the walks and of the parallel path.

SIZES = [
    (1, 200_000),
    (2, 70_000),
    (3, 5000),
    (40, 5000),
    (500, 1000),
    (3000, 100),
    (2000, 33),
    (20_000, 10),
    (50_000, 2),
]
OPTION_SETS = {
    "plain": {},
    "options": {"label_smoothing": 0.125, "z_loss": 0.25, "logit_scale": 0.75, "softcap": 20.0},
}


def everything(x, y, t, axis, n_threads, **options):
    """All results of all functions, for comparing their bits."""
    threads = {"n_threads": n_threads}
    yield swl.softmax(x, axis, **threads)
    yield swl.log_softmax(x, axis, **threads)
    yield swl.logsumexp(x, axis, **threads)
    for targets in (y, t):
        for reduction in ("none", "sum", "mean"):
            named = {"reduction": reduction, **threads, **options}
            yield swl.cross_entropy(x, targets, axis, **named)
            yield from swl.cross_entropy_value_and_grad(x, targets, axis, **named)


@pytest.mark.parametrize("options", OPTION_SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_number_of_threads_changes_no_bit(size, dtype, options):
    n, classes = size
    rng = np.random.default_rng(0)
    x = rng.normal(0, 5, size).astype(dtype)
    y = rng.integers(0, classes, n)
    t = rng.random(size).astype(dtype)
    one = list(everything(x, y, t, 1, 1, **OPTION_SETS[options]))
    for n_threads in (2, 3, 7, None):
        other = everything(x, y, t, 1, n_threads, **OPTION_SETS[options])
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(100, 2000), (5000, 7), (20, 3000, 4), (3, 50, 900)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_number_of_threads_changes_no_bit_along_other_axes(shape, dtype):
    axis = len(shape) - 2
    rng = np.random.default_rng(1)
    x = rng.normal(0, 5, shape).astype(dtype)
    y = rng.integers(0, shape[axis], np.delete(shape, axis))
    t = rng.random(shape).astype(dtype)
    one = list(everything(x, y, t, axis, 1))
    for n_threads in (2, 3, 7):
        other = everything(x, y, t, axis, n_threads)
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 33, 100, 200, 1000, 3000, 5000, 20_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_a_row_do_not_depend_on_its_batch(classes, dtype):
    """Alone, in batches of other sizes, at other addresses, between other rows."""
    rng = np.random.default_rng(2)
    n = 4 * row_count(classes)
    x = rng.normal(0, 5, (n, classes)).astype(dtype)
    y = rng.integers(0, classes, n)
    functions = (
        lambda x, y: swl.softmax(x),
        lambda x, y: swl.log_softmax(x),
        lambda x, y: swl.logsumexp(x),
        lambda x, y: swl.cross_entropy(x, y, reduction="none"),
        lambda x, y: losses(x, y).loss,
        lambda x, y: losses(x, y).grad,
    )
    for number, function in enumerate(functions):
        whole = function(x, y)
        for start, stop in ((0, 1), (1, 2), (n - 1, n), (3, 3 + n // 2), (1, n), (0, n - 1)):
            part = function(x[start:stop].copy(), y[start:stop])
            assert same_bits(part, whole[start:stop]), (number, start, stop)
            view = function(x[start:stop], y[start:stop])
            assert same_bits(view, whole[start:stop]), (number, start, stop)
        for value in (np.nan, np.inf, -np.inf, 1e5, -1e5):
            others = np.full_like(x, value)
            others[5] = x[5]
            assert same_bits(function(others, y)[5], whole[5]), (number, value)


@pytest.mark.parametrize("classes", [20, 350, 351, 447, 448, 1000, 2048, 2049])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_a_row_cut_from_a_batch_whose_classes_lie_apart_has_its_bits(classes, dtype):
    """Alone it has no neighbour, and cut by steps none beside it."""
    rng = np.random.default_rng(4)
    x = rng.normal(0, 3, (2, classes, 3, 4)).astype(dtype)
    y = rng.integers(0, classes, (2, 3, 4))
    cuts = (
        (slice(None), slice(None, None, 2), slice(None)),
        (slice(1, 2), slice(2, 3), slice(1, 2)),
        (0, slice(1, 2), 3),
    )
    for function in (swl.softmax, swl.log_softmax, lambda x, axis: swl.logsumexp(x, axis, keepdims=True)):
        whole = function(x, 1)
        for images, rows, columns in cuts:
            axis = 0 if isinstance(images, int) else 1
            where = images, slice(None), rows, columns
            assert same_bits(function(x[where], axis), whole[where])
    whole = swl.cross_entropy_value_and_grad(x, y, 1, reduction="none")
    for images, rows, columns in cuts:
        axis = 0 if isinstance(images, int) else 1
        where = images, slice(None), rows, columns
        cut = swl.cross_entropy_value_and_grad(x[where], y[images, rows, columns], axis, reduction="none")
        assert same_bits(cut.loss, whole.loss[images, rows, columns]) and same_bits(cut.grad, whole.grad[where])


@pytest.mark.parametrize("size", [(3000, 100), (20_000, 10), (40, 5000), (1, 200_000)], ids=str)
def test_same_call_twice_gives_the_same_bits(size):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 5, size).astype(np.float32)
    y, t = rng.integers(0, size[1], size[0]), rng.random(size)
    first = list(everything(x, y, t, 1, None))
    assert all(same_bits(a, b) for a, b in zip(first, everything(x, y, t, 1, None), strict=True))
