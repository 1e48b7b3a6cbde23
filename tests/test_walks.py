"""Which kernel walks over the rows: every walk is reached, gives the reference's answers, and bits don't hang on the way."""

import functools
import math

import numpy as np
import pytest

import fastswl as swl
from fastswl import dispatch, lazy, prepared, running, threads, walks
from fastswl import regions as parallel_regions

# (shape, axis, how the array is made from one in C order) -> the walk
WAYS = {
    "tile": ((70, 60), -1, lambda x: x),
    "tile of sliced rows": ((70, 60), -1, lambda x: np.repeat(x, 2, axis=0)[::2]),
    "tile alone in cache": ((70, 150), -1, lambda x: x),
    "panel of sliced images": ((7, 19, 60), -1, lambda x: np.pad(x, ((0, 0), (0, 1), (0, 0)))[:, :19]),
    "panel backwards": ((70, 60), -1, lambda x: x[:, ::-1].copy()[:, ::-1]),
    "short": ((70, 10), -1, lambda x: x),
    "short, sliced rows": ((70, 10), -1, lambda x: np.repeat(x, 2, axis=0)[::2]),
    "short, backwards": ((70, 48), -1, lambda x: x[:, ::-1].copy()[:, ::-1]),
    "short, images": ((3, 21, 8, 16), 1, lambda x: x),
    "short, Fortran order": ((70, 10), -1, np.asfortranarray),
    "few: two classes": ((70, 2), -1, lambda x: x),
    "few: three classes": ((70, 3), -1, lambda x: x),
    "few, images": ((5, 3, 8, 9), 1, lambda x: x),
    "few, Fortran order": ((70, 2), -1, np.asfortranarray),
    "strided": ((3, 60, 8, 16), 1, lambda x: x),
    "strided, Fortran order": ((70, 200), -1, np.asfortranarray),
    "batch": ((70, 200), -1, lambda x: x),
    "batch of sliced rows": ((70, 447), -1, lambda x: np.repeat(x, 2, axis=0)[::2]),
    "batch of sliced images": ((7, 19, 160), -1, lambda x: np.pad(x, ((0, 0), (0, 1), (0, 0)))[:, :19]),
    "batch backwards": ((37, 300), -1, lambda x: x[::-1].copy()[::-1]),
    "batch of few rows": ((37, 2048), -1, lambda x: x),
    "row": ((17, 3000), -1, lambda x: x),
    "long rows": ((3, 9000), -1, lambda x: x),
    "row with a class axis in steps": ((5, 3000), -1, lambda x: np.repeat(x, 2, axis=1)[:, ::2]),
    "strided, with a class axis in steps": ((5, 700), -1, lambda x: np.repeat(x, 2, axis=1)[:, ::2]),
    "split": ((2, 1100000), -1, lambda x: x),
}


@pytest.fixture
def walked(monkeypatch):
    """The names of the kernels that a call has run, and of the ways they were run."""
    names = []
    address, run, run_at = dispatch.kernel_address, running.run_kernel, running.run_kernel_at

    def noted_address(walk, *storages):
        if names[-1:] != [walk]:
            names.append(walk)
        return address(walk, *storages)

    def noted_run(kernel, plan, scratch_bytes, n_blocks, n_threads):
        names.append("parallel" if n_threads > 1 and n_blocks > 1 else "serial")
        return run(kernel, plan, scratch_bytes, n_blocks, n_threads)

    def noted_run_at(kernel, plan_address, scratch_bytes, n_blocks, n_threads):
        names.append("parallel" if n_threads > 1 and n_blocks > 1 else "serial")
        return run_at(kernel, plan_address, scratch_bytes, n_blocks, n_threads)

    monkeypatch.setattr(dispatch, "kernel_address", noted_address)
    monkeypatch.setattr(prepared, "kernel_address", noted_address)
    monkeypatch.setattr(dispatch, "run_kernel", noted_run)
    monkeypatch.setattr(prepared, "run_kernel_at", noted_run_at)
    lazy.prepared.clear()
    yield names
    lazy.prepared.clear()


@pytest.fixture
def crossovers(monkeypatch):
    """Set a crossover of `walks` for one test; routes found with another are forgotten before and after."""

    def change(name, value):
        monkeypatch.setattr(walks, name, value)
        walks.find_route.cache_clear()
        lazy.prepared.clear()

    yield change
    walks.find_route.cache_clear()
    lazy.prepared.clear()


def problem(shape, axis, dtype=np.float32, seed=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 3.0, shape).astype(dtype)
    rows = tuple(np.delete(shape, axis))
    return x, rng.integers(0, shape[axis], rows)


def plain_softmax(x, axis):
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("way", WAYS)
def test_each_walk_is_taken_and_right(way, walked):
    shape, axis, made = WAYS[way]
    x, targets = problem(shape, axis)
    logits = made(x)
    probabilities = swl.softmax(logits, axis)
    assert walked[0] == way.split()[0].rstrip(",:")
    exact = plain_softmax(x, axis)
    np.testing.assert_allclose(probabilities, exact, rtol=2e-6, atol=1e-37)
    loss, grad = swl.cross_entropy_value_and_grad(logits, targets, axis, reduction="sum")
    at = np.expand_dims(targets, axis)
    np.testing.assert_allclose(loss, -np.log(np.take_along_axis(exact, at, axis)).sum(), rtol=1e-6)
    expected = exact.copy()
    np.put_along_axis(expected, at, np.take_along_axis(exact, at, axis) - 1.0, axis)
    np.testing.assert_allclose(grad, expected, rtol=2e-6, atol=1e-7)


@pytest.fixture
def regions(monkeypatch):
    """One entry for each parallel region that was started."""
    started = []
    enter = threads.parallel_is_safe() and (parallel_regions._drivers.get("blocks") or parallel_regions._new_driver())

    def noted_enter(*arguments):
        started.append("region")
        return enter(*arguments)

    monkeypatch.setitem(parallel_regions._drivers, "blocks", noted_enter)
    return started


@pytest.mark.parametrize("n", [100, 1000])  # one block, and two
def test_small_work_starts_no_parallel_region(n, walked, regions):
    swl.softmax(np.zeros((n, 20), np.float32), n_threads=2)
    assert walked[0] == "short"
    assert "parallel" not in walked
    assert regions == []


def test_large_work_is_shared_and_one_thread_is_one_thread(walked, regions):
    x, _ = problem((6000, 20), -1)
    shared = swl.softmax(x, n_threads=2)
    assert regions == ["region"]
    alone = swl.softmax(x, n_threads=1)
    assert regions == ["region"]
    assert walked == ["short", "parallel", "serial"]
    np.testing.assert_array_equal(shared, alone)


def test_work_in_between_is_shared_where_it_follows_other_work(regions, monkeypatch):
    """By itself it would have to wake a thread first."""
    x, targets = problem((4000, 20), -1)
    calls = [
        functools.partial(swl.softmax, x, n_threads=2),
        functools.partial(swl.cross_entropy_value_and_grad, x, targets, n_threads=2),
        functools.partial(swl.cross_entropy, x, targets, reduction="none", n_threads=2),
    ]
    for call in calls * 2:
        monkeypatch.setitem(threads._state, "last_work", -math.inf)
        monkeypatch.setattr(threads, "AWAKE_SECONDS", 60.0)
        regions.clear()
        call()
        assert regions == []
        call()
        assert regions == ["region"]
        # not if that was long ago
        monkeypatch.setattr(threads, "AWAKE_SECONDS", 0.0)
        call()
        assert regions == ["region"]


def test_the_time_of_large_work_is_that_of_its_end(regions, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: next(clock))
    swl.softmax(np.zeros((6000, 20), np.float32), n_threads=2)
    assert threads._state["last_work"] == threads._state["last_region"] == next(clock) - 1


def test_no_thread_count_is_the_set_one(regions):
    x, targets = problem((6000, 20), -1)
    layer = swl.SoftmaxWithLoss()
    before = swl.get_num_threads()
    try:
        for n_threads in (2, 1, 2):
            swl.set_num_threads(n_threads)
            for call in (
                lambda: swl.softmax(x),
                lambda: swl.log_softmax(x),
                lambda: swl.logsumexp(x),
                lambda: swl.cross_entropy(x, targets),
                lambda: swl.cross_entropy_value_and_grad(x, targets),
                lambda: layer.forward(x, targets),
            ):
                regions.clear()
                call()
                assert len(regions) == n_threads - 1
    finally:
        swl.set_num_threads(before)


def test_a_small_call_is_kept_ready_and_gives_the_same_bits(walked, monkeypatch):
    x, targets = problem((30, 10), -1)
    with monkeypatch.context() as nothing_is_kept:
        nothing_is_kept.setattr(dispatch, "keep_loss", lambda *arguments: None)
        first = swl.cross_entropy_value_and_grad(x, targets)
    assert walked.count("serial") == 2  # the scan of the targets, the walk
    swl.cross_entropy_value_and_grad(x, targets)
    assert walked.count("serial") == 2, "a call that can be kept is run as one at once"
    before = len(walked)
    second = swl.cross_entropy_value_and_grad(x, targets)
    assert len(walked) == before, "the second call of the same shapes goes past the dispatch"
    assert first.loss == second.loss
    np.testing.assert_array_equal(first.grad, second.grad)


def test_a_small_softmax_is_kept_ready(walked):
    x, _ = problem((30, 60), -1)
    for function in (swl.softmax, swl.log_softmax, swl.logsumexp):
        function(x)
    assert walked == ["tile"], "a call that can be kept is run as one at once"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-3, "softcap": 20.0}],
    ids=["plain", "smoothing", "z_loss and softcap"],
)
def test_a_split_row_has_the_bits_of_a_whole_one(dtype, options, crossovers):
    x, targets = problem((3, 9000), -1, dtype)
    x[1] += 1e4  # far from 0: its sums are done twice
    whole = swl.cross_entropy_value_and_grad(x, targets, reduction="none", **options)
    crossovers("SPLIT_CLASSES", 1000)
    for n_threads in (1, 2):
        split = swl.cross_entropy_value_and_grad(x, targets, reduction="none", n_threads=n_threads, **options)
        np.testing.assert_array_equal(whole.loss, split.loss)
        np.testing.assert_array_equal(whole.grad, split.grad)


def aligned_memory(size, dtype, alignment=64):
    """An array that begins at a multiple of `alignment`: NumPy promises 16 bytes only."""
    raw = np.empty(size * np.dtype(dtype).itemsize + alignment, np.uint8)
    begin = -raw.ctypes.data % alignment
    return raw[begin : begin + size * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize(
    "shape",
    [
        *((4099, 1), (1000, 3), (777, 10), (333, 33), (259, 100)),
        *((101, 200), (53, 400), (53, 700), (37, 1000), (21, 2500), (5, 9000)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("offset", [0, 1, 5, 15, 31])
def test_streamed_results_have_the_same_bits(shape, dtype, offset, crossovers):
    x, targets = problem(shape, -1, dtype)
    targets[::7] = -100
    plain = swl.cross_entropy_value_and_grad(x, targets)
    crossovers("STREAMING_BYTES", 16)
    for n_threads in (1, 2):
        # results that begin at a known place of a cache line, between numbers that must stay
        memory = aligned_memory(x.size + 64, x.dtype)
        memory[:] = 7.0
        out = memory[offset : offset + x.size].reshape(shape)
        streamed = swl.cross_entropy_value_and_grad(x, targets, grad_out=out, n_threads=n_threads)
        assert streamed.loss == plain.loss
        np.testing.assert_array_equal(out, plain.grad)
        assert (memory[:offset] == 7.0).all()
        assert (memory[offset + x.size :] == 7.0).all()
    in_place = x.copy()
    swl.cross_entropy_value_and_grad(in_place, targets, grad_out=in_place)
    np.testing.assert_array_equal(in_place, plain.grad)
    if shape[1] > 1:
        out[:] = 7.0
        of_steps = np.repeat(x, 2, axis=1)[:, ::2]
        grad = swl.cross_entropy_value_and_grad(of_steps, targets, grad_out=out).grad
        np.testing.assert_array_equal(grad, swl.cross_entropy_value_and_grad(of_steps, targets).grad)
        assert (memory[:offset] == 7.0).all()
        assert (memory[offset + x.size :] == 7.0).all()


@pytest.mark.parametrize(
    "shape",
    [(3, 5, 333), (2, 17, 256), (3, 21, 200), (2, 100, 131), (1, 300, 150), (2, 1000, 70), (4, 21, 16), (2, 3, 5)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("offset", [0, 1, 5, 15, 31])
def test_streamed_results_side_by_side_have_the_same_bits(shape, dtype, offset, crossovers):
    """Class axes that are not the last: whole lines of each class go past the caches, from several steps and blocks."""
    x = np.random.default_rng(3).normal(0, 3, shape).astype(dtype)
    targets = np.random.default_rng(4).integers(0, shape[1], (shape[0], shape[2]))
    targets[:, ::7] = -100
    plain = swl.cross_entropy_value_and_grad(x, targets, 1)
    probabilities = swl.softmax(x, 1)
    crossovers("STREAMING_BYTES", 16)
    for block_elements in (1, 100000):
        crossovers("BLOCK_ELEMENTS", block_elements)
        for n_threads in (1, 2):
            memory = aligned_memory(x.size + 64, x.dtype)
            memory[:] = 7.0
            out = memory[offset : offset + x.size].reshape(shape)
            streamed = swl.cross_entropy_value_and_grad(x, targets, 1, grad_out=out, n_threads=n_threads)
            assert streamed.loss == plain.loss
            np.testing.assert_array_equal(out, plain.grad)
            assert (memory[:offset] == 7.0).all()
            assert (memory[offset + x.size :] == 7.0).all()
            out[...] = x
            swl.softmax(out, 1, out=out, n_threads=n_threads)
            np.testing.assert_array_equal(out, probabilities)
    apart = np.full((shape[0], shape[1] + 2, shape[2] + 3), 7.0, dtype)
    out = apart[:, 1:-1, 2:-1]
    swl.softmax(x, 1, out=out)
    np.testing.assert_array_equal(out, probabilities)
    out[...] = 7.0
    assert (apart == 7.0).all()


@pytest.mark.parametrize("shape", [(1000, 3), (777, 10), (600, 16), (333, 33), (259, 100)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_streamed_results_of_another_layout_have_the_same_bits(shape, dtype, crossovers):
    """How many tiles a step has hangs on the layout of the logits, that of results may be another."""
    x, targets = problem(shape, -1, dtype)
    layouts = (x, "F"), (np.asfortranarray(x), "C")
    plain = [(swl.cross_entropy_value_and_grad(logits, targets), swl.softmax(logits)) for logits, _ in layouts]
    crossovers("STREAMING_BYTES", 16)
    for (logits, order), (expected, probabilities) in zip(layouts, plain, strict=True):
        out = np.full(shape, 7, dtype, order)
        streamed = swl.cross_entropy_value_and_grad(logits, targets, grad_out=out)
        assert streamed.loss == expected.loss
        np.testing.assert_array_equal(out, expected.grad)
        np.testing.assert_array_equal(swl.softmax(logits, out=out), probabilities)


@pytest.mark.parametrize("n_classes", [1001, 3001, 4096 * 3, 4096 * 8 + 1, 4096 * 19 + 7])
@pytest.mark.parametrize("past_a_line", [0, 4, 40, 60])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_split_rows_past_the_caches(n_classes, past_a_line, dtype, crossovers):
    """Stretches of parts, each written in order by one thread, give the bits of whole rows, and touch nothing else."""
    x, targets = problem((3, n_classes), -1, dtype)
    targets[1] = -100
    expected = swl.cross_entropy_value_and_grad(x, targets, ignore_index=-100)
    probabilities = swl.softmax(x), swl.log_softmax(x)
    crossovers("SPLIT_CLASSES", 1000)
    crossovers("STREAMING_BYTES", 0)
    memory = np.full(x.size + 256, 7.0, dtype)
    first = (-memory.ctypes.data % 64 + past_a_line) // memory.itemsize
    out = memory[first : first + x.size].reshape(x.shape)
    for n_threads in (1, 2):
        result = swl.cross_entropy_value_and_grad(x, targets, ignore_index=-100, grad_out=out, n_threads=n_threads)
        assert result.loss == expected.loss
        np.testing.assert_array_equal(out, expected.grad)
        for function, exact in zip((swl.softmax, swl.log_softmax), probabilities, strict=True):
            out[...] = x
            np.testing.assert_array_equal(function(out, out=out, n_threads=n_threads), exact)
        assert (memory[:first] == 7).all() and (memory[first + x.size :] == 7).all()


@pytest.mark.parametrize("class_step", [1, 2])
@pytest.mark.parametrize("n_classes", [505, 3005, 9001])
def test_nothing_is_written_between_rows(n_classes, class_step):
    """Of results that are made where they go, also where exponentials are computed a whole vector at a time."""
    logits = np.random.default_rng(8).normal(size=(3, n_classes * class_step)).astype(np.float32)[:, ::class_step]
    memory = np.full((4, n_classes + 40), np.float32(7))
    swl.softmax(logits, out=memory[:3, :n_classes])
    np.testing.assert_array_equal(memory[:3, :n_classes], swl.softmax(logits))
    assert (memory[:3, n_classes:] == 7).all()
    assert (memory[3] == 7).all()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("shape", [(1000, 2), (1000, 30), (1000, 60), (1000, 200), (300, 3000), (200, 9000)])
def test_losses_add_up_block_by_block(shape, with_grad, n_threads, crossovers):
    """Each block has a sum of its own, which begins at 0 and ends with the block, also where a walk goes on to the next."""
    for name in ("BLOCK_ELEMENTS", "LARGE_BLOCK_ELEMENTS"):
        crossovers(name, 7 * 16 * shape[1])
    rng = np.random.default_rng(7)
    logits = rng.normal(size=shape).astype(np.float32)
    targets = rng.integers(0, shape[1], shape[0])
    losses = swl.cross_entropy(logits, targets, reduction="none", n_threads=1)
    if with_grad:
        total, _ = swl.cross_entropy_value_and_grad(logits, targets, reduction="sum", n_threads=n_threads)
    else:
        total = swl.cross_entropy(logits, targets, reduction="sum", n_threads=n_threads)
    assert np.float32(total) == np.float32(math.fsum(losses.tolist()))


def test_the_choice_looks_at_rows_only():
    most = {1: "panel", 3: "few", 48: "short", 447: "panel", 4096: "row", 1000000: "long", 1048577: "split"}
    for n_classes in (1, 2, 3, 4, 10, 48, 49, 447, 448, 4096, 4097, 8192, 131073, 1000000, 1048577):
        walk = walks.choose_walk("float32", n_classes, 4, 4 * n_classes, 1)
        assert walk.name == next(name for least, name in most.items() if n_classes <= least)
    for n_classes, name in ((159, "panel"), (160, "batch"), (2048, "batch"), (2049, "row")):
        assert walks.choose_walk("float32", n_classes, 4, 4 * n_classes, 1, in_batches=True).name == name
        assert walks.choose_walk("float64", n_classes, 8, 8 * n_classes, 1, in_batches=True).name != "batch"
        assert walks.choose_walk("float32", n_classes, 8, 8 * n_classes, 1, in_batches=True).name != "batch"
    for n_classes in (350, 351):
        walk = walks.choose_walk("float64", n_classes, 8, 8 * n_classes, 1)
        assert walk.name == ("panel" if n_classes <= 350 else "row")


def strange_rows(n_classes):
    """Rows for which no guess serves, far from 0, of almost one class, and with what is not a number, between others; and how much
    they count."""
    rng = np.random.default_rng(n_classes)
    x = rng.normal(0.0, 2.0, (150, n_classes)).astype(np.float32)
    x[20] += 5000.0
    x[21] -= 900.0
    x[22] *= 300.0
    x[40, 7] = 60.0
    x[41, -1] = 300.0
    x[42, ::3] = -np.inf
    x[43] = -np.inf
    x[44] = -np.inf
    x[44, 5] = 1.0
    x[60, 3] = np.nan
    x[61, -2] = np.inf
    x[62, 3] = np.nan
    x[62, -1] = np.inf
    x[63] = np.nan
    x[90] = 3.0
    x[91] = -2000.0
    # each alone among rows for which a guess would be right: too far below it (of rows 30 to 36), almost of one class, too far
    # above it, too far from 0 (of the last)
    x[33, 9] = -150.0
    x[100, 5] = 15.0
    x[133, 4] = 130.0
    x[147] += 5000.0
    # (and a target whose exponential is next to nothing)
    x[46, 3] = 100.0
    targets = rng.integers(0, n_classes, 150)
    targets[[3, 60, 61, 80]] = -100
    targets[[40, 41, 44, 46]] = 7, n_classes - 1, 5, 9
    return x, targets, rng.random(n_classes) * (rng.random(n_classes) < 0.8), rng.random(150) * (rng.random(150) < 0.9)


@pytest.mark.parametrize("n_classes", [160, 161, 175, 176, 191, 192, 207, 250, 255, 447, 448, 509, 1023, 2048])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("streaming_bytes", [16, 14 << 20], ids=["past the caches", "in cache"])
def test_a_batch_has_the_bits_of_rows_one_by_one(n_classes, dtype, streaming_bytes, crossovers):
    x, targets, weight, sample_weight = strange_rows(n_classes)
    x = x.astype(dtype)

    def answers():
        for logits in (x, x[:, ::-1].copy(), x[30:37], x[64:80].copy(), x[144:], np.repeat(x, 2, axis=0)[::2]):
            own, count = targets[: len(logits)], sample_weight[: len(logits)]
            yield swl.softmax(logits)
            yield swl.log_softmax(logits)
            yield swl.logsumexp(logits)
            yield from swl.cross_entropy_value_and_grad(logits, own)
            yield from swl.cross_entropy_value_and_grad(logits, own, weight=weight, reduction="none")
            yield from swl.cross_entropy_value_and_grad(logits, own, sample_weight=count, reduction="sum")
            smooth = {"label_smoothing": 0.1, "reduction": "sum"}
            yield from swl.cross_entropy_value_and_grad(logits, own, **smooth)
            yield from swl.cross_entropy_value_and_grad(logits, own, weight=weight, z_loss=1e-3, **smooth)
            yield swl.cross_entropy(logits, own, label_smoothing=0.3, weight=weight, reduction="none")
            # (of the last no number in place of the target's exponential gives its gradient, or all of a row is 0)
            for z_loss in (1e-3, 0.1, 1e25):
                yield from swl.cross_entropy_value_and_grad(logits, own, weight=weight, z_loss=z_loss)
            yield swl.cross_entropy(logits, own, reduction="none")
            in_place = logits.copy()
            yield swl.softmax(in_place, out=in_place)
            in_place = logits.copy()
            yield swl.log_softmax(in_place, out=in_place)
            apart = np.full((len(logits), n_classes + 3), 7, dtype)
            swl.softmax(logits, out=apart[:, 1:-2])
            yield apart
            yield swl.softmax(logits, out=np.empty_like(logits, order="F"))

    crossovers("STREAMING_BYTES", streaming_bytes)
    together = list(answers())
    crossovers("MOST_BATCH_CLASSES", 0)
    crossovers("PANEL_CLASSES", 0)
    for batch, alone in zip(together, answers(), strict=True):
        np.testing.assert_array_equal(batch, alone)


def test_log_softmax_of_a_batch_does_not_hang_on_the_one_before(crossovers):
    """Batches in turn: rows of almost one class, which is left out of their sums, others, and those far from 0."""
    x, _ = problem((16 * 24, 250), -1)
    for row in range(len(x)):
        kind, others = row // 16 % 3, np.exp(x[row, 16:].astype(np.float64)).sum()
        # of the second kind just less than half
        x[row, :16] = -5.0
        x[row, row % 16] = np.log(others) + (3.0 if kind == 0 else -0.2)
        if kind == 2:
            x[row] += 3000.0
    together = swl.log_softmax(x)
    crossovers("MOST_BATCH_CLASSES", 0)
    crossovers("PANEL_CLASSES", 0)
    np.testing.assert_array_equal(together, swl.log_softmax(x))


def test_batches_after_the_last_guess_have_the_same_bits(crossovers):
    """After some wrong guesses of a block there is no other; what waits is written all the same."""
    x, _ = problem((16 * 12, 160), -1)
    x[::16, 5] = -np.inf
    crossovers("BLOCK_ELEMENTS", x.size)
    plain = swl.softmax(x)
    crossovers("STREAMING_BYTES", 16)
    np.testing.assert_array_equal(swl.softmax(x), plain)


def test_batches_of_images_leave_what_is_between_them(crossovers):
    """Few rows that wait to be written while more are computed: those of the next image."""
    x, targets = problem((7, 19, 555), -1)
    plain = swl.cross_entropy_value_and_grad(x, targets)
    crossovers("STREAMING_BYTES", 16)
    crossovers("BLOCK_ELEMENTS", x.size)
    apart = np.full((7, 21, 558), 7.0, np.float32)
    streamed = swl.cross_entropy_value_and_grad(x, targets, grad_out=apart[:, :19, 1:-2])
    assert streamed.loss == plain.loss
    np.testing.assert_array_equal(apart[:, :19, 1:-2], plain.grad)
    apart[:, :19, 1:-2] = 7.0
    assert (apart == 7.0).all()


@pytest.mark.parametrize("shape", [(70, 10), (70, 100), (37, 200), (37, 700), (17, 4096)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["plain", "smoothing"])
def test_bits_do_not_hang_on_the_layout_of_the_result(shape, dtype, options):
    x, targets = problem(shape, -1, dtype)
    expected = swl.cross_entropy_value_and_grad(x, targets, **options)
    for out in (np.empty_like(x)[::-1, ::-1], np.empty_like(x, order="F"), np.empty((*shape, 2), dtype)[..., 0]):
        result = swl.cross_entropy_value_and_grad(x, targets, grad_out=out, **options)
        assert result.loss == expected.loss
        np.testing.assert_array_equal(out, expected.grad)


@pytest.mark.parametrize("n_classes", [60, 180, 500, 2100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_do_not_count_like_those_before(n_classes, dtype):
    """Tiles of rows that all count, some of which are ignored or have weights, in every order: each row as by itself."""
    x, targets = problem((16 * 9 + 5, n_classes), -1, dtype)
    rng = np.random.default_rng(3)
    ignored = targets.copy()
    for tile in (1, 2, 4, 7, 9):
        ignored[16 * tile + rng.integers(0, 4)] = -100
    sample_weight, weight = rng.uniform(0.5, 2.0, len(x)), rng.uniform(0.5, 2.0, n_classes)
    sample_weight[40:60] = 0.0
    for options in ({}, {"weight": weight}, {"sample_weight": sample_weight}):
        result = swl.cross_entropy_value_and_grad(x, ignored, reduction="none", **options)
        total = swl.cross_entropy(x, ignored, reduction="sum", **options)
        for row in range(len(x)):
            own = {**options, **({"sample_weight": sample_weight[row : row + 1]} if "sample_weight" in options else {})}
            alone = swl.cross_entropy_value_and_grad(x[row : row + 1], ignored[row : row + 1], reduction="none", **own)
            assert result.loss[row] == alone.loss[0]
            np.testing.assert_array_equal(result.grad[row], alone.grad[0])
        np.testing.assert_allclose(total, result.loss.astype(np.float64).sum(), rtol=1e-6)


def test_a_failed_allocation_of_scratch_memory_leaves_what_there_was(monkeypatch):
    x, targets = problem((40, 1000), -1)
    expected = swl.cross_entropy_value_and_grad(x, targets)
    monkeypatch.setattr(running, "_own", running._Scratch())
    memory, address = running._own.held
    running._own.held = memory[:100], address

    class NoMemory:
        uint8 = np.uint8

        @staticmethod
        def empty(*_):
            raise MemoryError

    grad = np.full_like(x, 7.0)
    walks.find_route.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(running, "np", NoMemory)
        for _ in range(2):
            with pytest.raises(MemoryError):
                swl.cross_entropy_value_and_grad(x, targets, grad_out=grad)
    assert (grad == 7.0).all()
    assert parallel_regions._region[0] == 0
    result = swl.cross_entropy_value_and_grad(x, targets, grad_out=grad)
    assert result.loss == expected.loss
    np.testing.assert_array_equal(grad, expected.grad)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_class_of_a_tile_is_moved(dtype):
    """Tiles are transposed in groups of classes; those of rows that lie side by side are not."""
    rng = np.random.default_rng(0)
    for n_classes in range(1, 70):
        x = rng.normal(0, 3, (37, n_classes)).astype(dtype)
        np.testing.assert_array_equal(swl.softmax(x), swl.softmax(np.asfortranarray(x)), strict=True)
