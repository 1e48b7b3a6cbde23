"""Calls that are kept ready: the same bits as the general way, and back to it wherever an array is other than was seen."""

import functools
import math

import numpy as np
import pytest

import fastswl as swl
from fastswl import dispatch, lazy, prepared
from fastswl.prepared import sum_of_weights

SHAPES = [(5, 7), (3, 4, 10), (40, 1000), (3000, 12)]
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01, "logit_scale": 0.7},
    {"softcap": 5.0, "ignore_index": 3},
]


@pytest.fixture(autouse=True)
def nothing_kept():
    swl.softmax(np.zeros((1, 2), np.float32))
    lazy.prepared.clear()
    yield
    lazy.prepared.clear()


@pytest.fixture
def no_general_way(monkeypatch):
    """Call the result to make the general way fail."""

    def close():
        def closed(*arguments):
            raise AssertionError("the general way was taken")

        monkeypatch.setattr(dispatch, "run_loss", closed)
        monkeypatch.setattr(dispatch, "run_softmax_family", closed)

    return close


def problem(shape, dtype, kind):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, shape).astype(dtype)
    indices = rng.integers(0, shape[-1], shape[:-1])
    if kind == "indices":
        return logits, indices
    if kind == "int8":
        return logits, (indices % 7).astype(np.int8)
    one_hot = np.eye(shape[-1])[indices]
    return logits, one_hot.astype(bool) if kind == "one-hot" else (one_hot * 0.5 + 0.01).astype(dtype)


def bits(result):
    return [np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("kind", ["indices", "int8", "one-hot", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_give_the_same_bits(shape, dtype, kind, monkeypatch, no_general_way):
    logits, targets = problem(shape, dtype, kind)
    cases = [options for options in OPTIONS if kind in ("indices", "int8") or options.get("ignore_index", -1) < 0]
    layers = [swl.SoftmaxWithLoss(**options) for options in cases]

    def all_results():
        for options, layer in zip(cases, layers, strict=True):
            yield swl.cross_entropy(logits, targets, **options)
            yield swl.cross_entropy_value_and_grad(logits, targets, **options)
            place = np.empty_like(logits)
            yield swl.cross_entropy_value_and_grad(logits, targets, grad_out=place, **options)
            place = logits.copy()
            yield swl.cross_entropy_value_and_grad(place, targets, grad_out=place, n_threads=1, **options)
            yield (layer.forward(logits, targets), layer.backward(), layer.y, layer.t)
        yield swl.softmax(logits)
        yield swl.log_softmax(logits, n_threads=2)
        yield swl.logsumexp(logits)

    with monkeypatch.context() as nothing_is_kept:
        for keep in ("keep_loss", "keep_softmax"):
            nothing_is_kept.setattr(dispatch, keep, lambda *arguments: None)
        general = [bits(result) for result in all_results()]
    assert [bits(result) for result in all_results()] == general, "the first calls of these shapes"
    no_general_way()
    assert [bits(result) for result in all_results()] == general


WEIGHTED = [{}, {"reduction": "sum"}, {"z_loss": 0.01, "softcap": 5.0}, {"ignore_index": 3}]


@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_with_class_weights_give_the_same_bits(shape, dtype, weight_dtype, monkeypatch, no_general_way):
    logits, targets = problem(shape, dtype, "indices")
    weight = np.random.default_rng(2).uniform(0.0, 2.0, shape[-1]).astype(weight_dtype)
    weight[1] = 0.0

    def all_results():
        for options in WEIGHTED:
            for own in (weight, weight[::-1].copy()):
                yield swl.cross_entropy(logits, targets, weight=own, **options)
                yield swl.cross_entropy_value_and_grad(logits, targets, weight=own, **options)
                place = logits.copy()
                given = dict(weight=own, grad_out=place, n_threads=1, **options)
                yield swl.cross_entropy_value_and_grad(place, targets, **given)

    with monkeypatch.context() as nothing_is_kept:
        nothing_is_kept.setattr(dispatch, "keep_loss", lambda *arguments: None)
        general = [bits(result) for result in all_results()]
    assert [bits(result) for result in all_results()] == general, "the first calls of these shapes"
    no_general_way()
    assert [bits(result) for result in all_results()] == general


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_with_mass_on_weighted_classes(shape, dtype, weight_dtype, kind, monkeypatch, no_general_way):
    """What is made of class weights for every class is kept with the call: other weights are another call."""
    logits, targets = problem(shape, dtype, kind)
    weight = np.random.default_rng(2).uniform(0.0, 2.0, shape[-1]).astype(weight_dtype)
    others, another = weight.copy(), weight.copy()
    others[-1] += 0.25
    another[0] += 0.25

    def results(own):
        given = {"weight": own, "label_smoothing": 0.2}
        yield swl.cross_entropy(logits, targets, **given)
        yield swl.cross_entropy_value_and_grad(logits, targets, n_threads=1, **given)
        yield swl.cross_entropy_value_and_grad(logits, targets, reduction="sum", **given)

    with monkeypatch.context() as nothing_is_kept:
        nothing_is_kept.setattr(dispatch, "keep_loss", lambda *arguments: None)
        general = {id(own): [bits(result) for result in results(own)] for own in (weight, others, another)}
    for own in (weight, others, weight, another, others):
        assert [bits(result) for result in results(own)] == general[id(own)]
    no_general_way()
    assert [bits(result) for result in results(others.copy())] == general[id(others)]
    with pytest.raises(AssertionError, match="the general way was taken"):
        swl.cross_entropy(logits, targets, weight=weight, label_smoothing=0.2)


OF_ROWS = [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1, "z_loss": 0.01}]


@pytest.mark.parametrize("kind", ["indices", "int8", "probabilities"])
@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 10)])
def test_kept_calls_with_weights_and_losses_of_rows(shape, dtype, weight_dtype, kind, monkeypatch, no_general_way):
    logits, targets = problem(shape, dtype, kind)
    loss_dtype = np.float64 if dtype == np.float64 else np.float32
    weight = None
    if weight_dtype is not None:
        weight = np.random.default_rng(2).uniform(0.5, 2.0, shape[:-1]).astype(weight_dtype)
        weight.flat[1::5] = 0.0
    layer = swl.SoftmaxWithLoss(reduction="none")

    def all_results():
        if layer is not None:
            # (not kept)
            yield (layer.forward(logits, targets), layer.backward(), layer.y)
        for options in OF_ROWS:
            given = {"sample_weight": weight, **options}
            yield swl.cross_entropy(logits, targets, **given)
            yield swl.cross_entropy_value_and_grad(logits, targets, **given)
            place = logits.copy()
            if options.get("reduction") == "none":
                given["out"] = np.full(shape[:-1], 7, loss_dtype)
            result = swl.cross_entropy_value_and_grad(place, targets, grad_out=place, n_threads=1, **given)
            assert result.grad is place
            assert "out" not in given or result.loss is given["out"]
            yield result

    with monkeypatch.context() as nothing_is_kept:
        nothing_is_kept.setattr(dispatch, "keep_loss", lambda *arguments: None)
        general = [bits(result) for result in all_results()]
    assert [bits(result) for result in all_results()] == general, "the first calls of these shapes"
    layer_results, *others = general
    assert bits((layer.forward(logits, targets), layer.backward(), layer.y)) == layer_results
    layer = None
    no_general_way()
    assert [bits(result) for result in all_results()] == others


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["weight", "sample_weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_kept_layer_with_weights(shape, dtype, name, label_smoothing, monkeypatch, no_general_way):
    logits, targets = problem(shape, dtype, "indices")
    of_classes = np.random.default_rng(2).uniform(0.5, 2.0, shape[-1])
    weights = of_classes if name == "weight" else np.resize(of_classes, shape[:-1])
    layers = [swl.SoftmaxWithLoss(**{name: own, "label_smoothing": label_smoothing}) for own in (weights, weights + 1)]

    def results(layer):
        return bits((layer.forward(logits, targets), layer.backward(), layer.y, layer.t))

    with monkeypatch.context() as nothing_is_kept:
        nothing_is_kept.setattr(dispatch, "keep_loss", lambda *arguments: None)
        general = [results(layer) for layer in layers]
    assert general[0] != general[1]
    for _ in range(2):
        assert [results(layer) for layer in layers] == general
    no_general_way()
    assert results(layers[1]) == general[1]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_calls_that_come_another_way_are_kept_once(label_smoothing):
    """Lists in place of arrays: what is kept for arrays serves."""
    logits, targets = problem((40, 10), np.float32, "indices")
    weight = [1.0] * 9 + [2.0]
    expected = swl.cross_entropy(logits, targets, weight=weight, label_smoothing=label_smoothing)
    kept = dict(lazy.prepared)
    assert len(kept) == 2
    for given in (weight, np.array(weight), np.array(weight, np.float32)):
        assert swl.cross_entropy(logits, targets, weight=given, label_smoothing=label_smoothing) == expected
    assert lazy.prepared == kept
    others = swl.cross_entropy(logits, targets, weight=[1.0] * 10, label_smoothing=label_smoothing)
    assert others != expected
    assert (lazy.prepared == kept) == (label_smoothing == 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_refuse_weights_of_rows_that_are_none(shape):
    logits, targets = problem(shape, np.float32, "indices")
    rows = shape[:-1]
    weight = np.random.default_rng(2).uniform(0.5, 2.0, rows)
    apart = np.repeat(weight, 2, axis=-1)[..., ::2]
    expected = swl.cross_entropy(logits, targets, sample_weight=apart)
    for others in (weight, weight, apart, weight.astype(">f8"), weight.tolist(), weight):
        assert swl.cross_entropy(logits, targets, sample_weight=others) == expected
    plain = swl.cross_entropy(logits, targets)
    for _ in range(2):
        np.testing.assert_allclose(swl.cross_entropy(logits, targets, sample_weight=np.ones(1)), plain, rtol=1e-14)
    for wrong in (-1.0, np.nan, np.inf):
        spoiled = weight.copy()
        spoiled.flat[-1] = wrong
        with pytest.raises(ValueError, match="sample_weight"):
            swl.cross_entropy(logits, targets, sample_weight=spoiled)
    assert np.isnan(swl.cross_entropy(logits, targets, sample_weight=np.zeros(rows)))
    # weights of classes that look like those of rows
    if len(rows) == 1:
        square, own = np.resize(logits, (rows[0], rows[0])), targets % rows[0]
        uneven = np.arange(1.0, rows[0] + 1)
        results = [
            [swl.cross_entropy(square, own, **{name: uneven}) for name in ("weight", "sample_weight")] for _ in range(2)
        ]
        assert results[0] == results[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_refuse_places_for_losses_of_rows(shape):
    logits, targets = problem(shape, np.float32, "indices")
    rows = shape[:-1]
    out, grad = np.empty(rows, np.float32), np.empty_like(logits)
    for _ in range(2):
        assert swl.cross_entropy(logits, targets, reduction="none", out=out) is out
        swl.cross_entropy_value_and_grad(logits, targets, reduction="none", grad_out=grad)
        swl.cross_entropy(logits, targets)
    losses = out.copy()
    strided = np.empty((*rows[:-1], 2 * rows[-1]), np.float32)[..., ::2]
    np.testing.assert_array_equal(swl.cross_entropy(logits, targets, reduction="none", out=strided), losses)
    before, grad[...], out[...] = logits.copy(), 7.0, 7.0
    out.flags.writeable = False
    for wrong in (
        out,
        np.empty(rows),
        np.empty((*rows, 1), np.float32),
        logits.reshape(-1)[: losses.size].reshape(rows),
    ):
        with pytest.raises((TypeError, ValueError), match="out"):
            swl.cross_entropy(logits, targets, reduction="none", out=wrong)
    with pytest.raises(ValueError, match="out goes with"):
        swl.cross_entropy(logits, targets, out=losses)
    for inside in (grad, logits):
        with pytest.raises(ValueError, match="out"):
            place = inside.reshape(-1)[: losses.size].reshape(rows)
            swl.cross_entropy_value_and_grad(logits, targets, reduction="none", grad_out=grad, out=place)
    assert (grad == 7.0).all()
    assert (out == 7.0).all()
    np.testing.assert_array_equal(logits, before)
    wrong = targets.copy()
    wrong.flat[-1] = shape[-1]
    with pytest.raises(IndexError, match="outside"):
        swl.cross_entropy(logits, wrong, reduction="none", out=losses)
    on_targets = targets.view(np.float32).reshape(-1)[: losses.size].reshape(rows)
    np.testing.assert_array_equal(swl.cross_entropy(logits, targets, reduction="none", out=on_targets), losses)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_refuse_class_weights_that_are_none(shape, label_smoothing):
    logits, targets = problem(shape, np.float32, "indices")
    weight = np.ones(shape[-1])
    cross_entropy = functools.partial(swl.cross_entropy, label_smoothing=label_smoothing)
    for _ in range(2):
        expected = cross_entropy(logits, targets, weight=weight)
    apart = np.ones(2 * shape[-1])[::2]
    assert cross_entropy(logits, targets, weight=apart) == expected
    assert cross_entropy(logits, targets, weight=weight.astype(">f8")) == expected
    for wrong in (-1.0, np.nan, np.inf):
        spoiled = weight.copy()
        spoiled[-1] = wrong
        with pytest.raises(ValueError, match="weight"):
            cross_entropy(logits, targets, weight=spoiled)
    with pytest.raises(ValueError, match=f"weight has shape \\({shape[-1] + 1},\\)"):
        cross_entropy(logits, targets, weight=np.ones(shape[-1] + 1))
    wrong = targets.copy()
    wrong.flat[-1] = shape[-1]
    with pytest.raises(IndexError, match=f"is {shape[-1]}, outside"):
        cross_entropy(logits, wrong, weight=weight)
    assert np.isnan(cross_entropy(logits, targets, weight=np.zeros(shape[-1])))
    assert np.isnan(cross_entropy(logits, np.full_like(targets, -100), weight=weight))


def test_many_class_weights_are_not_held(monkeypatch):
    asked = []
    monkeypatch.setattr(prepared, "_keep", lambda key, *arguments, **named: asked.append(key))
    for n_classes in (8192, 8193):
        logits, targets = problem((2, n_classes), np.float32, "indices")
        swl.cross_entropy(logits, targets, weight=np.ones(n_classes))
    assert [key[1] for key in asked] == [(2, 8192)] * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_refuse_what_they_cannot_do(shape):
    logits, targets = problem(shape, np.float32, "indices")
    layer = swl.SoftmaxWithLoss()
    grad = np.empty_like(logits)
    for _ in range(2):
        expected = swl.cross_entropy_value_and_grad(logits, targets, grad_out=grad)
        loss = layer.forward(logits, targets)
    expected = (expected.loss, expected.grad.copy())
    wrong = targets.copy()
    wrong.flat[-1] = shape[-1]
    for call in (swl.cross_entropy, swl.cross_entropy_value_and_grad, layer.forward):
        with pytest.raises(IndexError, match=f"is {shape[-1]}, outside"):
            call(logits, wrong)
    assert layer.loss == loss
    ignored = np.full_like(targets, -100)
    assert np.isnan(swl.cross_entropy(logits, ignored))
    value, zero = swl.cross_entropy_value_and_grad(logits, ignored)
    assert np.isnan(value) and not zero.any()
    with pytest.raises(TypeError, match="label_smoothing must be a real number, got False"):
        swl.cross_entropy(logits, targets, label_smoothing=False)
    with pytest.raises(TypeError, match="reduction must be one of"):
        swl.cross_entropy(logits, targets, reduction=["mean"])
    fixed = np.zeros_like(logits)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="grad_out is read-only"):
        swl.cross_entropy_value_and_grad(logits, targets, grad_out=fixed)
    raw = np.zeros(logits.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(shape)
    shifted[...] = logits
    assert bits(swl.cross_entropy_value_and_grad(shifted, targets)) == bits(expected)
    assert bits(layer.forward(shifted, targets)) == bits(loss)
    memory = np.zeros(logits.size + 1, np.float32)
    memory[1:] = logits.ravel()
    with pytest.raises(ValueError, match="grad_out overlaps logits"):
        swl.cross_entropy_value_and_grad(memory[1:].reshape(shape), targets, grad_out=memory[:-1].reshape(shape))
    assert np.array_equal(memory[1:], logits.ravel())


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_see_another_order_in_memory(shape):
    """Arrays of a shape that was seen, but whose numbers lie in another order or in steps."""
    logits, targets = problem(shape, np.float32, "probabilities")
    steps = np.repeat(logits, 2, axis=0)[::2]
    for x, t in ((np.asfortranarray(logits), targets), (logits, np.asfortranarray(targets)), (steps, targets)):
        for out in (np.empty_like(logits), np.asfortranarray(logits)):
            lazy.prepared.clear()
            layer = swl.SoftmaxWithLoss()
            for _ in range(2):
                expected = swl.cross_entropy_value_and_grad(logits, targets, grad_out=np.empty_like(logits))
                loss = swl.cross_entropy(logits, targets)
                softmax, sums = swl.softmax(logits, out=np.empty_like(logits)), swl.logsumexp(logits)
                layer.forward(logits, targets)
                y = layer.y.copy()
            # a tile in the panel walk, a row by itself: not all layouts have the same bits
            near = {"rtol": 1e-6, "atol": 1e-9}
            got = swl.cross_entropy_value_and_grad(x, t, grad_out=out)
            assert got.grad is out
            np.testing.assert_allclose(got.grad, expected.grad, **near)
            np.testing.assert_allclose(swl.cross_entropy(x, t), loss, **near)
            np.testing.assert_allclose(swl.softmax(x, out=out), softmax, **near)
            np.testing.assert_allclose(swl.logsumexp(x), sums, **near)
            layer.forward(x, t)
            np.testing.assert_allclose(layer.y, y, **near)
            np.testing.assert_allclose(layer.backward(), expected.grad, **near)


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_calls_with_targets_in_the_way(shape):
    logits, targets = problem(shape, np.float32, "probabilities")
    for _ in range(2):
        expected = swl.cross_entropy_value_and_grad(logits, targets)
    with pytest.raises(ValueError, match="grad_out overlaps targets"):
        swl.cross_entropy_value_and_grad(logits, targets, grad_out=targets)
    logits, indices = problem(shape, np.float32, "indices")
    grad = np.empty_like(logits)
    for _ in range(2):
        expected = swl.cross_entropy_value_and_grad(logits, indices, grad_out=grad)
    expected = (expected.loss, expected.grad.copy())
    # class indices that lie in the memory of the gradient are read before it is written
    start = grad.ravel()[: 2 * indices.size].view(np.int64).reshape(indices.shape)
    start[...] = indices
    assert bits(swl.cross_entropy_value_and_grad(logits, start, grad_out=grad)) == bits(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_kept_layer_is_given_its_own_softmax(shape):
    logits, targets = problem(shape, np.float32, "probabilities")
    layer, other = swl.SoftmaxWithLoss(), swl.SoftmaxWithLoss()
    for give in (lambda y: (y, targets), lambda y: (logits, y)):
        for _ in range(2):
            layer.forward(logits, targets)
        y = layer.y
        before = y.copy()
        expected = (other.forward(*give(before)), other.backward(), other.y)
        assert bits((layer.forward(*give(y)), layer.backward(), layer.y)) == bits(expected)
        assert np.array_equal(y, before)


def test_what_is_kept_holds_little_memory():
    """A row of a million classes has megabytes of scratch memory: its thread's, not the kept call's."""
    for shape in ((1, 1_000_000), (1, 30_000), (3, 2000), (64, 10)):
        lazy.prepared.clear()
        x = np.zeros(shape, np.float32)
        swl.softmax(x)
        swl.cross_entropy_value_and_grad(x, np.zeros(shape[0], int))
        assert len(lazy.prepared) == 2
        for call in lazy.prepared.values():
            memory = getattr(call, "memory", None)
            assert memory is None or memory.nbytes < 200_000


def test_negative_losses_are_no_refusals():
    """A loss of probabilities that are no distribution may have any sign: in place it must not be computed twice."""
    logits, targets = np.array([[0.0, 1.0], [2.0, -1.0]]), np.full((2, 2), -0.7)
    first = swl.cross_entropy_value_and_grad(logits, targets)
    place = logits.copy()
    assert bits(swl.cross_entropy_value_and_grad(place, targets, grad_out=place)) == bits(first)
    assert first.loss < 0


@pytest.mark.parametrize("shape", SHAPES)
def test_later_losses_are_of_the_type_of_the_first(shape):
    logits, targets = problem(shape, np.float32, "indices")
    layer = swl.SoftmaxWithLoss()
    for _ in range(3):
        assert type(swl.cross_entropy(logits, targets)) is np.float64
        assert type(swl.cross_entropy_value_and_grad(logits, targets).loss) is np.float64
        assert type(layer.forward(logits, targets)) is np.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_an_infinite_loss_stays_infinite(shape):
    """The rest of a compensated sum is NaN beside an infinite one."""
    logits, targets = problem(shape, np.float32, "indices")
    logits.reshape(-1, shape[-1])[1, targets.ravel()[1]] = -np.inf
    for _ in range(3):
        assert swl.cross_entropy(logits, targets) == np.inf
        assert swl.cross_entropy_value_and_grad(logits, targets, reduction="sum").loss == np.inf


@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0], ids=str)
@pytest.mark.parametrize("n", [1, 160, 161, 5000, 200_000], ids=str)
def test_the_sum_of_many_weights_is_rounded_once(n, spread):
    """As by math.fsum, in any order; a plain sum is 1 ulp and more off."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        weights = rng.lognormal(0, spread, n)
        weights[rng.random(n) < 0.1] = 0.0
        assert sum_of_weights(weights) == math.fsum(weights.tolist())


@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-300, 1e300])
def test_the_sum_of_many_weights_at_the_ends_of_the_range(scale):
    weights = np.random.default_rng(0).integers(0, 100, 1000) * scale
    assert sum_of_weights(weights) == math.fsum(weights.tolist())


def test_a_sum_that_is_too_large_is_infinite():
    """Blocks whose sums overflow together, on the first call and on the one that was kept."""
    logits = np.full((40, 1000), -1e154)
    logits[:, 0] = 1e154
    targets = np.ones(40, np.int64)
    for _ in range(2):
        assert swl.cross_entropy(logits, targets, reduction="sum", z_loss=0.05) == np.inf


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 17, 40])
def test_a_kept_call_counts_rows_one_by_one_and_by_vectors(n, dtype):
    x = np.random.default_rng(n).normal(size=(n + 1, 10)).astype(np.float32)
    for ignored in (0, n // 2, n):
        targets = (np.arange(n + 1) % 9).astype(dtype)
        targets[ignored] = 9
        each = swl.cross_entropy(x, targets, reduction="none", ignore_index=9)
        for _ in range(2):
            mean = swl.cross_entropy(x, targets, ignore_index=9)
            np.testing.assert_allclose(mean, each.sum(dtype=np.float64) / n, rtol=1e-12)


@pytest.mark.parametrize("n_threads", [None, 1, 3])
def test_kept_calls_of_several_blocks_take_the_number_of_threads(n_threads, monkeypatch, no_general_way):
    x, out = np.zeros((300, 400), np.float32), np.empty((300, 400), np.float32)
    targets = np.zeros(300, np.int64)

    def calls():
        swl.softmax(x, out=out, n_threads=n_threads)
        swl.logsumexp(x, n_threads=n_threads)
        swl.cross_entropy_value_and_grad(x, targets, grad_out=out, n_threads=n_threads)

    calls()
    no_general_way()
    asked = []
    monkeypatch.setattr(prepared.threads, "threads_for", lambda work, n: asked.append(n) or 1)
    calls()
    assert asked == [n_threads or swl.get_num_threads()] * 3


def test_kept_calls_at_one_time_do_not_share_a_plan(monkeypatch, no_general_way):
    """A second call, while the first is about to run its kernel, as from another thread."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(300, 400)).astype(np.float32) for _ in range(2))
    expected = swl.softmax(first), swl.softmax(second)
    for _ in range(2):
        # one plan is spare
        np.testing.assert_array_equal(swl.softmax(first), expected[0])
    no_general_way()
    run, others = prepared.run_kernel_at, []

    def run_after_another(*arguments):
        monkeypatch.setattr(prepared, "run_kernel_at", run)
        others.append(swl.softmax(second))
        run(*arguments)

    monkeypatch.setattr(prepared, "run_kernel_at", run_after_another)
    np.testing.assert_array_equal(swl.softmax(first), expected[0])
    np.testing.assert_array_equal(others, expected[1:])
