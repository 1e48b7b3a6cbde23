"""The suite times kernels and nothing else; the gate's faults still fit the sources they are put into.

A copy of the package runs every kernel ten times or more wherever it is called: each benchmark's figure has to
move with it. In a process with an empty cache the first timed call must not hold the compilation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare, guarantee, plants, timing
from benchmarks.gate import BAR, judge
from benchmarks.gate_worker import WALKS, cases

ROOT = Path(__file__).parents[1]
#: what of the suite has no kernel's time in its figure, and why
NO_KERNEL = {
    "bench_accuracy": "errors",
    "bench_instructions": "instructions, not a time; under valgrind a count takes minutes",
    "bench_memory": "bytes",
    "bench_overhead.Refused": "a call that is refused before any kernel",
    "bench_startup": "imports, and compilation itself",
}
#: benchmarks of which every parameter is looked at, since each is another kernel or another way
EVERY_PARAMETER = ("bench_inputs.Walks",)
CALL = "return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), [nothing, nothing, *args[1:]])"
#: with fifty of a single block: of a call of one row the kernel is a fiftieth (ten took 1.18 times as long once)
TEN_CALLS = """function = builder.inttoptr(args[0], function_type.as_pointer())
        is_single = builder.icmp_signed("==", builder.sub(args[4], args[3]), ir.Constant(I64, 1))
        with builder.if_then(is_single):
            for _ in range(40):
                builder.call(function, [nothing, nothing, *args[1:]])
        return [builder.call(function, [nothing, nothing, *args[1:]]) for _ in range(10)][-1]"""
PROGRAM = """
import itertools, json, sys, time
from asv_runner.discovery import disc_benchmarks
left_out, every_parameter = json.loads(sys.argv[1]), tuple(json.loads(sys.argv[2]))
figures = {}
for benchmark in disc_benchmarks("benchmarks"):
    if benchmark.name.startswith(tuple(left_out)):
        continue
    combinations = list(itertools.product(*benchmark._params)) or [()]
    count = len(combinations) if benchmark.name.startswith(every_parameter) else 1
    for index in range(count):
        if benchmark._params:
            benchmark.set_param_idx(index)
        parameters = benchmark._current_params
        try:
            benchmark.do_setup()
            values = []
            # of a short one many, since the shortest is what counts
            end = time.perf_counter() + 0.5
            while not values or (
                benchmark.type == "time" and (len(values) < 3 or len(values) < 20 and time.perf_counter() < end)
            ):
                benchmark.redo_setup()
                start = time.perf_counter()
                value = benchmark.func(*parameters)
                values.append(time.perf_counter() - start if benchmark.type == "time" else value)
            benchmark.do_teardown()
        except NotImplementedError:
            continue
        figures[" ".join([benchmark.name, *map(str, parameters)])] = [benchmark.type, *values]
with open(sys.argv[3], "w") as file:
    json.dump(figures, file)
"""


def run_suite(folder: Path, package: Path, cache: Path) -> dict[str, list]:
    file = folder / "figures.json"
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(NO_KERNEL)), json.dumps(EVERY_PARAMETER), str(file)]
    subprocess.run(command, cwd=package, env=environment, check=True)
    return json.loads(file.read_text())


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(ROOT / "fastswl", folder / "fastswl", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Figures of the suite with an empty cache, with a filled one, and with kernels that run ten times."""
    pytest.importorskip("asv_runner", reason="needs asv: pip install '.[bench]'")
    folder = tmp_path_factory.mktemp("suite")
    plain = copy_of_the_package(folder / "plain")
    slowed = copy_of_the_package(folder / "slowed")
    words = slowed / "fastswl" / "simd" / "words.py"
    text = words.read_text()
    assert text.count(CALL) == 1
    words.write_text(text.replace(CALL, TEN_CALLS))
    return {
        "compiling": run_suite(folder, plain, folder / "plain cache"),
        "usual": run_suite(folder, plain, folder / "plain cache"),
        "slowed": run_suite(folder, slowed, folder / "slowed cache"),
    }


@pytest.mark.slow
@pytest.mark.timed
def test_every_benchmark_times_its_kernel(figures):
    unmoved = {}
    for name, (_, *values) in figures["usual"].items():
        ratio = min(figures["slowed"][name][1:]) / min(values)
        if ratio < 1.3:
            unmoved[name] = ratio
    assert len(figures["usual"]) >= 30
    assert not unmoved


@pytest.mark.slow
@pytest.mark.timed
def test_no_benchmark_times_a_compilation(figures):
    """It takes seconds; the first calls of all benchmarks take a fraction of one."""
    compiling = {
        name: (first, figures["usual"][name][1])
        for name, (kind, first, *_) in figures["compiling"].items()
        if kind == "time" and first > 2 * figures["usual"][name][1] + 0.5
    }
    assert not compiling


def test_a_rival_of_the_first_run_alone_keeps_its_ratio():
    def row(name, ours, **rivals):
        seconds = {"ours": ours, "copy": 1.0, **rivals}
        return {
            "name": name, "group": "", "shape": "", "operation": "", "goal": 1.5, "ratio": ours, "seconds": seconds, "rivals": rivals,
        }  # fmt: skip

    runs = [[row("a", 1.0, PyTorch=2.0), row("b", 4.0, JAX=3.0)], [row("a", 5.0)], [row("a", 3.0)]]
    a, b = compare.combine(runs)
    assert a["ratio"] == a["seconds"]["ours"] == 3.0
    assert a["seconds"]["PyTorch"] == a["rivals"]["PyTorch"] == 6.0
    assert a["ratios of the runs"] == [1.0, 5.0, 3.0]
    assert a["to the best rival"] == 0.5
    assert (b["ratio"], b["rivals"], b["seconds"]["copy"]) == (4.0, {"JAX": 3.0}, 1.0)
    both = compare.combine([[row("a", 1.0, PyTorch=2.0)], [row("a", 1.0, PyTorch=4.0)]])
    assert both[0]["rivals"] == {"PyTorch": 3.0}


@pytest.mark.parametrize("plant", [*plants.SLOW, plants.INEXACT, guarantee.CHEAP], ids=lambda plant: plant.walk)
def test_planted_faults_fit_the_sources(plant, tmp_path):
    package = copy_of_the_package(tmp_path) / "fastswl"
    plant.put_into(package, 64)
    for name, _, _ in plant.replacements:
        compile((package / name).read_text(), name, "exec")


def test_the_gate_has_a_case_for_each_walk_and_dtype():
    names = [case.name for case in cases(quick=False)]
    assert len(names) == len(set(names))
    quick = {(case.walk, case.dtype) for case in cases(quick=True)}
    assert quick >= {(walk, dtype) for walk in WALKS if walk != "small call" for dtype in ("float32", "float64")}


@pytest.mark.parametrize("change, verdict", [(0.0, ""), (0.15, "slower"), (-0.15, "faster"), (BAR / 2, "")])
def test_the_gate_judges_by_all_pairs_together(change, verdict):
    import numpy as np

    rng = np.random.default_rng(0)
    # what differs from pair to pair is larger than what differs from round to round
    places = rng.normal(0, 0.01, 8)
    pairs = [(list(np.log1p(change) + place + rng.normal(0, 0.02, 25)), 1e-5) for place in places]
    assert judge(pairs).verdict == verdict


class FakeTime:
    """A clock on which this process is busy until a moment."""

    def __init__(self, busy_until):
        self.now, self.busy_until = 0.0, busy_until

    def sleep(self, seconds):
        self.now += seconds

    def monotonic(self):
        return self.now

    def process_time(self):
        return min(self.now, self.busy_until)


@pytest.mark.parametrize(("busy_until", "least", "most"), [(0.0, 0.03, 0.04), (0.1, 0.1, 0.115), (9.0, 0.5, 0.51)])
def test_a_rest_lasts_until_the_other_threads_sleep(monkeypatch, busy_until, least, most):
    clock = FakeTime(busy_until)
    monkeypatch.setattr(timing, "time", clock)
    timing.rest(0.03)
    assert least <= clock.now <= most
