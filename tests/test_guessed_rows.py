"""Rows in one pass, in units of a power of two that is guessed: the bits are those of two passes, whatever the guess."""

import numpy as np
import pytest

import fastswl as swl

#: of one part, with less than a vector, more than one and nothing past the last pair; of two, the last of which is less than a vector;
#: of three, the last of which is short and has an odd number of vectors
CLASSES = (1000, 665, 704, 4101, 9001)
#: the same of one part, past those that go in batches
MORE_CLASSES = (*CLASSES, 2056, 2073, 2080)
DTYPES = ["float32", "float64", "float16", pytest.param("bfloat16", marks=pytest.mark.slow)]


def rows_of_all_kinds(n_classes, dtype, seed):
    """Rows (and a target for each) that are near a guess, far from it, wide, narrow, infinite or not numbers."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []

    def add(row, target=None):
        rows.append(row)
        targets.append(rng.integers(0, n_classes) if target is None else target)

    def normal(spread=3.0, center=0.0):
        return rng.normal(center, spread, n_classes)

    for center in (0, 20, 33, 40, -11, -30, -80, 300, -300, 1000, 1030, 5000, -5000, 1e30):
        add(normal(center=center))
    for spread in (0.0, 1e-3, 10.0, 25.0, 40.0, 200.0):
        add(normal(spread))
        add(normal(spread, 8.0))
    for low in (-70, -82, -83, -100, -110, -114.5, -116, -130, -700):
        # the largest at either end of the classes, and the target there and elsewhere
        # (one of a pair of vectors past all whole groups of pairs)
        last_pair = n_classes // 32 * 32 - 20
        for place, target in ((0, 0), (n_classes - 1, 1), (5, n_classes - 1), (last_pair, last_pair), (last_pair, 9)):
            row = rng.uniform(low, low + 5, n_classes)
            row[place] = 0.0
            add(row, target)
            add(row + 45.0, target)
    for number in (np.nan, np.inf, -np.inf):
        for place, target in ((3, 3), (n_classes - 1, 7), (0, n_classes - 1)):
            row = normal()
            row[place] = number
            add(row, target)
    add(np.full(n_classes, -np.inf))
    steps = normal() + 60.0 * (np.arange(n_classes) // 4096)
    add(steps), add(-steps), add(2 * steps), add(-2 * steps)
    for confidence in (0.4, 0.49, 0.51, 0.6, 0.9, 1 - 1e-6, 1 - 1e-9):
        # of the sum of exponentials the largest has this share
        row = normal(1.0)
        row[11] = np.log(np.exp(np.delete(row, 11)).sum() * confidence / (1 - confidence))
        add(row), add(row - 20.0)
    order = rng.permutation(len(rows))
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    with np.errstate(over="ignore"):
        return np.array(rows)[order].astype(dtype), np.array(targets)[order]


def same(a, b):
    assert a.dtype == b.dtype
    if a.dtype.itemsize == 2:
        # (a NaN of ml_dtypes is no NaN for NumPy)
        a, b = a.astype(np.float32), b.astype(np.float32)
    np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", MORE_CLASSES)
@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 1e-3}, {"upstream": 1e-20}, {"upstream": 1e20}, {"weight": True}], ids=str
)
def test_losses_and_gradients(n_classes, dtype, options):
    logits, targets = rows_of_all_kinds(n_classes, dtype, 0)
    targets[::7] = -100
    if "weight" in options:
        options = {"weight": np.random.default_rng(1).uniform(0.5, 2.0, n_classes)}
    # a mask goes through kernels that do not guess
    mask = np.ones(n_classes, bool)
    given = dict(reduction="none", n_threads=1, **options)
    expected = swl.cross_entropy_value_and_grad(logits, targets, class_mask=mask, **given)
    together = swl.cross_entropy_value_and_grad(logits, targets, **given)
    # logits in the place of the results
    in_place = logits.copy()
    swl.cross_entropy_value_and_grad(in_place, targets, grad_out=in_place, **given)
    same(in_place, expected.grad)
    same(together.loss, expected.loss)
    same(together.grad, expected.grad)
    for row in range(len(logits)):
        alone = swl.cross_entropy_value_and_grad(logits[row : row + 1], targets[row : row + 1], **given)
        same(alone.loss, expected.loss[row : row + 1])
        same(alone.grad, expected.grad[row : row + 1])
    given.pop("upstream", None)
    same(swl.cross_entropy(logits, targets, **given), expected.loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", MORE_CLASSES)
@pytest.mark.parametrize("function", [swl.softmax, swl.log_softmax, swl.logsumexp], ids=lambda f: f.__name__)
def test_softmax(n_classes, dtype, function):
    logits, _ = rows_of_all_kinds(n_classes, dtype, 2)
    together = function(logits, n_threads=1)
    if function is not swl.logsumexp:
        in_place = logits.copy()
        same(function(in_place, out=in_place, n_threads=1), together)
    # a row of two that are spoiled, and a row, in turn: after two wrong guesses there is no other
    spoiled = np.full((3 * len(logits), n_classes), -np.inf, logits.dtype)
    spoiled[2::3] = logits
    same(function(spoiled, n_threads=1)[2::3], together)
    for row in range(len(logits)):
        same(function(logits[row : row + 1], n_threads=1), together[row : row + 1])


@pytest.mark.parametrize(
    ("others", "highest"), [(-60.0, 1e-20), (-80.0, 1e-28)], ids=["guessed", "too wide for a guess"]
)
@pytest.mark.parametrize("n_classes", [1000, 3000, 9001])
def test_a_gradient_that_cancels(n_classes, others, highest):
    """z-loss takes away what the target gets: what is left is small in units of a guess."""
    logits = np.full((1, n_classes), others, np.float32)
    logits[0, 7] = 1.0
    mask = np.ones(n_classes, bool)

    def both(z_loss):
        given = dict(z_loss=z_loss, upstream=1e20, reduction="none", n_threads=1)
        guessed = swl.cross_entropy_value_and_grad(logits, [7], **given)
        expected = swl.cross_entropy_value_and_grad(logits, [7], class_mask=mask, **given)
        same(guessed.grad, expected.grad)
        same(guessed.loss, expected.loss)
        return expected.grad[0, 7]

    # the root, by halves: from the last step on what is left is one of rounding
    low, high = 0.0, highest
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if both(middle) < 0 else (low, middle)
    assert abs(both(high)) < 1e-18


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weights": {"label_smoothing": 0.1, "weight": True},
    "smoothing, weights, z_loss": {"label_smoothing": 0.3, "weight": True, "z_loss": 1e-3},
    "softcap": {"softcap": 30.0},
    "softcap, scale": {"softcap": 12.0, "logit_scale": 2.0},
    "softcap, smoothing": {"softcap": 30.0, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_classes", [3, 10, 48, 49, 100, 300, 447, *MORE_CLASSES])
def test_with_options_no_row_hangs_on_its_neighbours(n_classes, dtype, name):
    """Neither on whether its power of two was guessed, nor on rows of its tile for which another way has to be taken."""
    rng = np.random.default_rng(1)
    # (the shortest hold what the others do: rows of some classes of these)
    logits, targets = rows_of_all_kinds(max(n_classes, 64), dtype, 0)
    logits, targets = np.ascontiguousarray(logits[:, :n_classes]), targets % n_classes
    targets[::7] = -100
    options = dict(OPTIONS[name], reduction="none", n_threads=1)
    if "weight" in options:
        options["weight"] = rng.uniform(0.5, 2.0, n_classes)
        options["weight"][1 % n_classes] = 0.0
    together = swl.cross_entropy_value_and_grad(logits, targets, **options)
    same(swl.cross_entropy(logits, targets, **options), together.loss)
    # a row of two that are spoiled, and a row, in turn: after two wrong guesses there is no other
    spoiled = np.full((3 * len(logits), n_classes), -np.inf, logits.dtype)
    spoiled[1::3, ::2] = np.inf
    spoiled[2::3] = logits
    among_them = swl.cross_entropy_value_and_grad(spoiled, np.repeat(targets, 3), **options)
    same(among_them.loss[2::3], together.loss)
    same(among_them.grad[2::3], together.grad)
    for row in range(len(logits)):
        alone = swl.cross_entropy_value_and_grad(logits[row : row + 1], targets[row : row + 1], **options)
        same(alone.loss, together.loss[row : row + 1])
        same(alone.grad, together.grad[row : row + 1])
