"""The scenarios, each in a process of its own: right answers, no hang, and not a word on stderr.

Each can be run alone: python tests/scenarios/<name>.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).with_name("scenarios")
LAYERS = ["tbb", "omp", "workqueue"]


def run(name, *arguments, layer="tbb", **environment):
    """Run a scenario; `tbb` is what the library finds without a setting."""
    settings = {k: v for k, v in os.environ.items() if k not in ("NUMBA_THREADING_LAYER", "NUMBA_NUM_THREADS")}
    settings |= environment
    if layer != "tbb":
        settings["NUMBA_THREADING_LAYER"] = layer
    command = [sys.executable, "-W", "error", str(SCENARIOS / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.mark.parametrize("layer", LAYERS)
def test_concurrent_callers(layer):
    # of two threads, two callers would get one each, in no region
    assert run("concurrent_callers", layer=layer, NUMBA_NUM_THREADS="4") == layer


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["fork_after_use", "fork_while_computing"])
@needs_fork
def test_forks(name, layer):
    assert run(name, layer=layer, NUMBA_NUM_THREADS="2") == layer


@pytest.mark.slow
@needs_fork
def test_fork_while_compiling(tmp_path):
    run("fork_while_compiling", NUMBA_CACHE_DIR=str(tmp_path))


@needs_fork
def test_fork_while_compiled_code_is_freed(tmp_path):
    run("fork_while_freeing", NUMBA_CACHE_DIR=str(tmp_path))


@needs_fork
def test_workers_of_a_server_forked_before_the_first_request():
    run("prefork_server", NUMBA_NUM_THREADS="2")


@pytest.mark.slow
def test_pools_by_every_start_method():
    run("start_methods", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_program_with_kernels_of_its_own(layer):
    run("numba_neighbour", layer=layer, NUMBA_NUM_THREADS="2")


def test_interrupted_calls():
    run("interrupted", "100", NUMBA_NUM_THREADS="2")


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "layer"),
    [
        ("joblib_backends", "joblib", "tbb"),
        ("dask_threads", "dask.array", "tbb"),
        ("data_loader", "torch", "tbb"),
        # PyTorch brings GNU OpenMP, which ends a process that uses it after a fork
        ("data_loader", "torch", "omp"),
    ],
)
def test_inside_other_libraries(name, package, layer):
    pytest.importorskip(package)
    assert run(name, layer=layer) == layer


@pytest.mark.parametrize(("variable", "expected"), [("NUMBA_NUM_THREADS", "1"), (None, "1")])
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_processors_that_may_be_used_are_counted(variable, expected):
    """A limit of Numba's, and the affinity of the process (a child of a fork counts anew)."""
    limit = "" if variable else "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code = f"import os; {limit}import fastswl as swl; print(swl.get_num_threads())"
    settings = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"} | ({variable: "1"} if variable else {})
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_forked_child_counts_its_processors_anew():
    code = """
import os, fastswl as swl
before = swl.get_num_threads()
pid = os.fork()
if pid == 0:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os._exit(swl.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
