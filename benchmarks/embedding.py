"""What the library costs its surroundings: start-up in units of `import numba`, and the pace of a Python thread beside a kernel.

python -m benchmarks.embedding
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

FIRST_CALLS = """
import time, numpy as np, fastswl as swl
x, t = np.zeros((128, 10), np.float32), np.zeros(128, np.int64)
start = time.perf_counter()
swl.cross_entropy_value_and_grad(x, t)
swl.softmax(x)
print(time.perf_counter() - start)
"""
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(code: str, **environment: str) -> float:
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    return float(done.stdout)


def start_up() -> None:
    """Import and first calls: medians, each of five processes (with an empty cache, of two)."""
    in_turn = {name: [] for name in ("numpy", "fastswl", "numpy, numba")}
    for _ in range(7):
        for name, times in in_turn.items():
            times.append(seconds(IMPORT.format(name)))
    numpy, fastswl, both = (statistics.median(times) for times in in_turn.values())
    print(f"import numpy {numpy:.3f} s, fastswl {fastswl / numpy:.2f} of it, numba after numpy {both - numpy:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        cold = seconds(FIRST_CALLS, NUMBA_CACHE_DIR=folder)
        warm = statistics.median(seconds(FIRST_CALLS, NUMBA_CACHE_DIR=folder) for _ in range(5))
    print(
        f"first calls (loss and gradient, softmax; float32): {cold:.2f} s with an empty cache, {warm:.2f} s with a warm one"
    )
    print(f"in units of import numba: {cold / (both - numpy):.1f} and {warm / (both - numpy):.2f}")


def pace(wanted: float) -> int:
    """Rounds of a loop in plain Python in so many seconds."""
    end = time.perf_counter() + wanted
    rounds = 0
    while time.perf_counter() < end:
        rounds += 1
    return rounds


def beside_a_kernel() -> None:
    """A plain Python thread alone, and beside a thread that computes in one thread all the time."""
    import numpy as np

    import fastswl as swl

    x = np.random.default_rng(0).normal(size=(20_000, 1000)).astype(np.float32)
    out = np.empty_like(x)
    swl.softmax(x, out=out, n_threads=1)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            swl.softmax(x, out=out, n_threads=1)

    alone = pace(1.0)
    thread = threading.Thread(target=compute)
    thread.start()
    beside = pace(1.0)
    stop.set()
    thread.join()
    print(f"a Python thread beside a kernel keeps {beside / alone:.2f} of its pace")


if __name__ == "__main__":
    start_up()
    beside_a_kernel()
