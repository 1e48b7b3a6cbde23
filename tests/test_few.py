"""Rows of few classes, which have kernels of their own (two and three, and up to 48): exact, and with the same answers as tiles of
more classes."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from reference import reference_cross_entropy, reference_log_softmax, reference_softmax
from ulp import assert_ulp

import fastswl as swl
from fastswl import lazy, walks

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
#: whole in registers, and in tiles: an odd number, one that fills a group, those from which on rows side by side go together
CLASSES = [2, 3, 4, 5, 10, 17, 33, 48]
SPREADS = (1e-3, 0.1, 1.0, 3.0, 10.0, 30.0, 80.0)
NAN, INF = np.nan, np.inf


def many_rows(n_classes, spread, n, dtype=np.float32):
    rng = np.random.default_rng(int(spread * 1000) + n_classes)
    x = rng.normal(0, spread, (n, n_classes))
    if spread > 50:
        x += rng.normal(0, 3000, (n, 1))
    return x.astype(dtype), rng.integers(0, n_classes, n)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("spread", SPREADS)
def test_within_3_ulp(n_classes, spread):
    x, targets = many_rows(n_classes, spread, 200_000 // n_classes)
    assert_ulp(swl.softmax(x), reference_softmax(x), 3, what="softmax")
    assert_ulp(swl.log_softmax(x), reference_log_softmax(x), 3, what="log_softmax")
    for options in ({"reduction": "none"}, {"reduction": "mean"}, {"reduction": "sum", "upstream": 0.3}):
        result = swl.cross_entropy_value_and_grad(x, targets, **options)
        exact = reference_cross_entropy(x, targets, **options)
        assert_ulp(result.grad, exact.grad, 3, exact.grad_terms, f"gradient {options}")
        if options["reduction"] == "none":
            assert_ulp(result.loss, exact.rows, 3, exact.rows_terms, "loss")
            assert (swl.cross_entropy(x, targets, **options) == result.loss).all()


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_weights_and_ignored_rows(n_classes, dtype):
    x, targets = many_rows(n_classes, 3.0, 1003, dtype)
    rng = np.random.default_rng(1)
    targets[::7] = -100
    samples = rng.uniform(0, 2, len(x))
    samples[::5] = 0.0
    weights = np.array([0.25, 0.0, *rng.uniform(0, 3, n_classes)])[:n_classes]
    each = rng.normal(size=len(x))
    for options in (
        {"reduction": "none"},
        {"reduction": "none", "weight": weights},
        {"reduction": "none", "sample_weight": samples},
        {"reduction": "none", "sample_weight": samples, "weight": weights, "upstream": each},
        {"reduction": "mean", "sample_weight": samples, "weight": weights},
    ):
        result = swl.cross_entropy_value_and_grad(x, targets, ignore_index=-100, **options)
        exact = reference_cross_entropy(x, targets, ignore_index=-100, **options)
        assert_ulp(result.grad, exact.grad, 3, exact.grad_terms, f"gradient {options}")
        if options["reduction"] == "none":
            assert_ulp(result.loss, exact.rows, 3, exact.rows_terms, f"loss {options}")
    ignored = x.copy()
    ignored[::5] = NAN
    same = swl.cross_entropy_value_and_grad(ignored, targets, ignore_index=-100, sample_weight=samples)
    plain = swl.cross_entropy_value_and_grad(x, targets, ignore_index=-100, sample_weight=samples)
    assert same.loss == plain.loss
    np.testing.assert_array_equal(same.grad, plain.grad)
    ignored = x.copy()
    ignored[::7] = NAN
    same = swl.cross_entropy_value_and_grad(ignored, targets, ignore_index=-100)
    plain = swl.cross_entropy_value_and_grad(x, targets, ignore_index=-100)
    assert same.loss == plain.loss
    np.testing.assert_array_equal(same.grad, plain.grad)
    assert not np.signbit(same.grad[::7]).any() and (same.grad[::7] == 0).all()


@pytest.mark.parametrize("n_classes", CLASSES)
def test_numbers_that_are_special_give_what_more_classes_give(n_classes, by_tiles):
    numbers = [0.0, -0.0, 1.0, -2.0, 90.0, 3e38, -3e38, 1e-40, INF, -INF, NAN]
    if n_classes <= 3:
        x = np.array(list(itertools.product(numbers, repeat=n_classes)), np.float32)
    else:
        rng = np.random.default_rng(n_classes)
        x = np.array(
            [rng.choice(numbers, n_classes, p=own) for own in rng.dirichlet([0.2] * len(numbers), 3000)], np.float32
        )

    def results():
        found = [swl.softmax(x), swl.log_softmax(x)]
        weights = [0.0, 1.0, 2.0, *[0.5] * n_classes][:n_classes]
        for target, weight in itertools.product(range(min(n_classes, 3)), (None, weights)):
            targets = np.full(len(x), target)
            found += swl.cross_entropy_value_and_grad(x, targets, reduction="none", weight=weight)
        return found

    for few, tiles in zip(results(), by_tiles(results), strict=True):
        np.testing.assert_array_equal(np.isnan(few), np.isnan(tiles))
        np.testing.assert_array_equal(np.isinf(few), np.isinf(tiles))
        np.testing.assert_array_equal(few == 0, tiles == 0)
        np.testing.assert_array_equal(np.signbit(few[few == few]), np.signbit(tiles[few == few]))
        np.testing.assert_allclose(few, tiles, rtol=6e-7, atol=2e-45)


@pytest.mark.parametrize("n_classes", CLASSES)
def test_a_row_of_nothing_among_ordinary_ones(n_classes):
    x, targets = many_rows(n_classes, 3.0, 128)
    plain = swl.cross_entropy_value_and_grad(x, targets, reduction="none")
    x[37] = -INF
    result = swl.cross_entropy_value_and_grad(x, targets, reduction="none")
    others = np.arange(128) != 37
    assert np.isnan(result.loss[37]) and not result.grad[37].any()
    np.testing.assert_array_equal(result.loss[others], plain.loss[others])
    np.testing.assert_array_equal(result.grad[others], plain.grad[others])


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_bits_do_not_hang_on_layout_number_of_rows_or_threads(n_classes, dtype):
    x, targets = many_rows(n_classes, 2.0, 5003, dtype)
    loss, grad = swl.cross_entropy_value_and_grad(x, targets, reduction="none")
    rows = swl.softmax(x), swl.log_softmax(x)
    for n in (1, 15, 16, 17, 64, 65, 127, 5003):
        one = swl.cross_entropy_value_and_grad(x[:n], targets[:n], reduction="none", n_threads=1)
        np.testing.assert_array_equal(one.loss, loss[:n])
        np.testing.assert_array_equal(one.grad, grad[:n])
    layouts = {
        "Fortran": np.asfortranarray(x),
        "every other row": np.repeat(x, 2, axis=0)[::2],
        "backwards": x[:, ::-1].copy()[:, ::-1],
        "with a gap": np.concatenate([x, x], axis=1)[:, :n_classes],
    }
    for name, logits in layouts.items():
        for out in (np.empty_like(x), np.empty_like(x, order="F"), np.full((5003, n_classes + 2), 7, dtype)[:, 1:-1]):
            result = swl.cross_entropy_value_and_grad(logits, targets, reduction="none", grad_out=out)
            np.testing.assert_array_equal(result.loss, loss, name)
            np.testing.assert_array_equal(out, grad, name)
            np.testing.assert_array_equal(swl.softmax(logits, out=out), rows[0], name)
            np.testing.assert_array_equal(swl.log_softmax(logits, out=out), rows[1], name)
            if out.base is not None:
                assert (out.base[:, [0, -1]] == 7).all()


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("n", [1, 15, 17, 33, 63])
def test_the_layer_and_memory_behind_results(n_classes, n):
    """The layer's softmax beside the gradient is another kernel's; what is behind the last row is left alone."""
    x, targets = many_rows(n_classes, 3.0, n)
    layer = swl.SoftmaxWithLoss()
    loss = layer.forward(x, targets)
    grad = layer.backward()
    result = swl.cross_entropy_value_and_grad(x, targets)
    np.testing.assert_allclose(loss, result.loss, rtol=3e-7)
    np.testing.assert_allclose(grad, result.grad, rtol=1e-6, atol=1e-30)
    assert_ulp(layer.y, reference_softmax(x), 3)
    for function in (swl.softmax, swl.log_softmax):
        memory = np.full((n + 20) * n_classes, 7.0, np.float32)
        out = memory[: n * n_classes].reshape(x.shape)
        np.testing.assert_array_equal(function(x, out=out), function(np.asfortranarray(x)))
        assert (memory[n * n_classes :] == 7).all()


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("n", [1, 17, 33, 70])
def test_what_stands_beside_the_last_rows_does_not_count(n_classes, n):
    """The memory of a step's tiles keeps what an earlier call has left there."""
    x, targets = many_rows(n_classes, 3.0, 70)
    swl.cross_entropy(x, targets, n_threads=1)
    losses = swl.cross_entropy(x[:n], targets[:n], reduction="none")
    swl.cross_entropy(x, targets, n_threads=1)
    lazy.prepared.clear()
    strided = np.repeat(x, 2, axis=0)[::2]
    swl.cross_entropy(strided, targets, n_threads=1)
    total = swl.cross_entropy(strided[:n], targets[:n], reduction="sum", n_threads=1)
    assert total == np.sum(losses, dtype=np.longdouble).astype(np.float64)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("past_a_line", [0, 4, 40, 60])
def test_results_past_the_caches(n_classes, past_a_line, monkeypatch):
    monkeypatch.setattr(walks, "STREAMING_BYTES", 0)
    walks.find_route.cache_clear()
    lazy.prepared.clear()
    x, targets = many_rows(n_classes, 2.0, 200_003 // n_classes)
    memory = np.full(x.size + 64, 7.0, np.float32)
    first = (-memory.ctypes.data % 64 + past_a_line) // 4
    out = memory[first : first + x.size].reshape(x.shape)
    small = swl.cross_entropy_value_and_grad(x[:1000], targets[:1000], reduction="none")
    swl.cross_entropy_value_and_grad(x, targets, reduction="sum", grad_out=out)
    np.testing.assert_array_equal(out[:1000], small.grad)
    np.testing.assert_array_equal(out[1000:], swl.cross_entropy_value_and_grad(x, targets, reduction="sum").grad[1000:])
    assert (memory[:first] == 7).all() and (memory[first + x.size :] == 7).all()
    out[...] = x
    np.testing.assert_array_equal(swl.softmax(out, out=out), swl.softmax(x.copy(order="F")))
    walks.find_route.cache_clear()
    lazy.prepared.clear()


SMOOTHING = {
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weights": {"label_smoothing": 0.1, "weight": True},
    "smoothing, z_loss, weighted rows": {"label_smoothing": 0.3, "z_loss": 1e-2, "sample_weight": True},
    "z_loss": {"z_loss": 1.0},
    "z_loss, weights": {"z_loss": 30.0, "weight": True},
    "all smoothing": {"label_smoothing": 1.0},
}


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("options", SMOOTHING.values(), ids=SMOOTHING)
@pytest.mark.parametrize("special", [False, True], ids=["ordinary", "special"])
def test_smoothing_and_z_loss(n_classes, options, special):
    rng = np.random.default_rng(n_classes)
    weights = rng.uniform(0, 2, n_classes)
    weights[1] = 0.0
    samples = rng.uniform(0, 2, 501)
    samples[5] = 0.0
    arrays = {"weight": weights, "sample_weight": samples}
    options = {name: arrays.get(name, value) for name, value in options.items()}
    for spread in (1.0, 10.0, 3000.0):
        x, targets = many_rows(n_classes, spread, 501)
        targets[::7] = -100
        if special:
            x[::11] = np.finfo(np.float32).min  # two such differences are more than float32 holds
            x[::11, -1] = 1.0
            x[::5, :2] = -INF  # the second has no weight
            x[::10, 0] = 0.0
            x[3] = -INF
            x[4, 0] = INF
            x[[8, 15], 1] = NAN  # beside -inf, too
        result = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
        exact = reference_cross_entropy(x, targets, reduction="none", **options)
        assert_ulp(result.loss, exact.rows, 3, exact.rows_terms, "loss")
        assert_ulp(result.grad, exact.grad, 3, exact.grad_terms, "gradient")
        # no row hangs on its neighbours
        lonely = x.copy()
        lonely[::16] = 0.0
        alone = swl.cross_entropy_value_and_grad(lonely, targets, reduction="none", **options)
        x[::16, 0] = -INF
        result = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
        others = np.arange(501) % 16 != 0
        np.testing.assert_array_equal(alone.loss[others], result.loss[others])
        np.testing.assert_array_equal(alone.grad[others], result.grad[others])
        columns = swl.cross_entropy_value_and_grad(np.asfortranarray(x), targets, reduction="none", **options)
        np.testing.assert_array_equal(columns.loss, result.loss)
        np.testing.assert_array_equal(columns.grad, result.grad)


@pytest.mark.parametrize("n_classes", [3, 10])
@pytest.mark.parametrize("option", ["softcap", "logit_scale", "class_mask", "probabilities"])
def test_options_of_other_kernels(n_classes, option):
    x, targets = many_rows(n_classes, 3.0, 100)
    targets = 2 * (targets // 2)
    options = {
        "softcap": {"softcap": 3.0},
        "logit_scale": {"logit_scale": 0.5},
        "class_mask": {"class_mask": np.arange(n_classes) % 2 == 0},
        "probabilities": {},
    }[option]
    if option == "probabilities":
        targets = np.random.default_rng(0).dirichlet([1.0] * n_classes, 100).astype(np.float32)
    result = swl.cross_entropy_value_and_grad(x, targets, **options)
    exact = reference_cross_entropy(x, targets, **options)
    assert_ulp(result.grad, exact.grad, 6, exact.grad_terms)
