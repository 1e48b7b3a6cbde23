"""The same bits under every setting of the compiler, every target with FMA and any thread count.

500 results, hashed by benchmarks/digest.py in a process of its own for each setting, with kernels
compiled under that setting, against the digests that are pinned in the repository. On a CPU
without a fused multiply-add the bits may differ (the bounds of the errors hold).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HASWELL

ROOT = Path(__file__).parents[1]
PINNED = json.loads((ROOT / "benchmarks" / "digests.json").read_text("utf-8"))

SETTINGS = {
    "native": {},
    "haswell": {"NUMBA_CPU_NAME": "haswell"},
    "haswell_avx2_only": HASWELL,
    "fma_without_avx2": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx,+fma,+f16c"},
    "skylake_avx512": {"NUMBA_CPU_NAME": "skylake-avx512"},
    "opt_1": {"NUMBA_OPT": "1"},
    "no_loop_vectorize": {"NUMBA_LOOP_VECTORIZE": "0"},
}


def host_features() -> set[str]:
    from llvmlite import binding

    return {name for name, present in binding.get_host_cpu_features().items() if present}


def digests(setting: dict, cache: Path | None = None, threads: int = 1) -> dict[str, str]:
    """What `benchmarks.digest` finds, with the kernels of this run of the tests where no cache is given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_") or k == "NUMBA_CACHE_DIR"}
    environment = {**kept, **setting, "PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "benchmarks.digest", "--json", "--threads", str(threads)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def different(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [name for name in expected if found.get(name) != expected[name]]


@pytest.fixture(autouse=True)
def needs_fma():
    if platform.machine() in ("x86_64", "AMD64") and "fma" not in host_features():
        pytest.skip("this CPU has no fused multiply-add")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_pinned_bits(name, cache_of):
    if "NUMBA_CPU_NAME" in SETTINGS[name] and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an x86 target")
    if name == "skylake_avx512" and "avx512f" not in host_features():
        pytest.skip("this CPU has no AVX-512")
    cache = cache_of(SETTINGS[name]) if SETTINGS[name] else None
    assert different(digests(SETTINGS[name], cache), PINNED) == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_pinned_bits(threads):
    assert different(digests({"NUMBA_NUM_THREADS": "3"}, threads=threads), PINNED) == []


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_every_threading_layer_gives_the_pinned_bits(layer):
    setting = {"NUMBA_THREADING_LAYER": layer}
    assert different(digests(setting, threads=2), PINNED) == []
