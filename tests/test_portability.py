"""Other targets and settings of the compiler: `portable.py` with an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HASWELL

SCRIPT = Path(__file__).with_name("portable.py")
#: ulp, float32 and float64
BOUNDS = (3.0, 4.0)


def run(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1800)


def check(done, bounds):
    worst = [float(error) for error in done.stdout.split()]
    assert len(worst) == len(bounds)
    assert all(error <= bound for error, bound in zip(worst, bounds, strict=True)), worst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "bounds"),
    [
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, (4.0, 4.0)),  # no fused multiply-add
        (HASWELL, BOUNDS),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx,+fma,+f16c"}, BOUNDS),  # no permutation of AVX2
        ({"NUMBA_DISABLE_INTEL_SVML": "1"}, BOUNDS),
        ({"NUMBA_OPT": "0"}, BOUNDS),
        ({"NUMBA_OPT": "1"}, BOUNDS),
        ({"NUMBA_OPT": "2"}, BOUNDS),
        ({"NUMBA_BOUNDSCHECK": "1"}, BOUNDS),
        ({"NUMBA_ENABLE_PROFILING": "1"}, BOUNDS),
        ({"NUMBA_DEBUGINFO": "1", "NUMBA_OPT": "0"}, BOUNDS),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86-64 processors")
def test_answers(environment, bounds, cache_of):
    done = run(**environment, NUMBA_CACHE_DIR=str(cache_of(environment)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check(done, bounds)


@pytest.mark.slow
@pytest.mark.peers
def test_answers_where_denormals_are_flushed():
    pytest.importorskip("torch")
    done = run("--flushed")
    assert done.returncode == 0, done.stderr
    check(done, BOUNDS)


def test_without_compilation_it_says_so_in_one_line():
    code = "import fastswl as swl; swl.softmax([0.0, 1.0])"
    settings = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == "RuntimeError: fastswl is compiled by Numba and can't run with NUMBA_DISABLE_JIT=1"
    )
