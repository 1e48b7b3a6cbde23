"""What exactness costs: the library beside a copy of it that takes the cheap way in each sum and each product.

    python -m benchmarks.guarantee [--runs 5]

The copy adds up exponentials in the arithmetic type alone (no float64 for float32, no compensation for float64) and multiplies them
by one rounded factor, which gives softmax errors of 4 to 60 ulp instead of 3 (2 and 3 classes in float32, which know no float64,
stay as they are). Everything else is the same: that sums run in 16 lanes and multiply-adds are written out costs nothing, and there
is no other variant of it. Processes take turns; figures are medians, in ns a logit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.plants import Plant

ROOT = Path(__file__).parents[1]
CHEAP = Plant(
    "every",
    (
        (
            "kernels/block.py",
            "    total, rest = Running(high), Running(low)\n\n    line =",
            "    total, rest = Running(high), Running(low)\n"
            "    partial = Running(splat_like(load(storage, target), 0.0))\n\n    line =",
        ),
        (
            "kernels/block.py",
            "        total.value, rest.value = accumulate(storage, total.value, rest.value, e)\n",
            "        partial.value = partial.value + e\n",
        ),
        (
            "kernels/block.py",
            "        when((n & 1) != 0, last)\n        return total.value, rest.value\n",
            "        when((n & 1) != 0, last)\n        return total.value + widen(partial.value), rest.value\n",
        ),
        (
            "kernels/block.py",
            "lambda: None, *rests)\n    return total.value, rest.value\n",
            "lambda: None, *rests)\n    return total.value + widen(partial.value), rest.value\n",
        ),
        ("kernels/block.py", "fma(e, factor, e * factor_low))\n", "e * factor)\n"),
        ("kernels/lines.py", "fma(e, results.factor, e * results.factor_low)", "e * results.factor"),
        (
            "kernels/panel.py",
            "select(index == c, at_target, fma(e, scale, e * scale_low))",
            "select(index == c, at_target, e * scale)",
        ),
        ("kernels/rows.py", " + load_wide(storage, table + TOP_REST)", ""),
        ("kernels/several.py", " + rest_of_largest(storage, reference)", ""),
        (
            "kernels/several.py",
            "    total = Running(tiles.none)\n\n    def add(",
            "    total = Running(tiles.zero)\n\n    def add(",
        ),
        (
            "kernels/several.py",
            "        total.value = total.value + widen(sum(e[1:], e[0]))\n",
            "        total.value = total.value + sum(e[1:], e[0])\n",
        ),
        (
            "kernels/several.py",
            "reference, 0, following, add)\n    return total.value\n",
            "reference, 0, following, add)\n    return widen(total.value)\n",
        ),
        ("kernels/several.py", "d, ties, x_target = Running(tiles.none),", "d, ties, x_target = Running(tiles.zero),"),
        (
            "kernels/several.py",
            "        d.value = d.value + widen(sum(terms[1:], terms[0]))\n",
            "        d.value = d.value + sum(terms[1:], terms[0])\n",
        ),
        ("kernels/several.py", "    return d.value, ties.value,", "    return widen(d.value), ties.value,"),
        ("kernels/several.py", "lambda c, e: fma(e, scale, e * scale_low)", "lambda c, e: e * scale"),
        ("kernels/several.py", "own = fma(e, scale, e * scale_low)", "own = e * scale"),
    ),
)
#: logits of each kind of work: in a core's cache with one thread, beyond all caches with all threads
SMALL, LARGE = 120_000, 65_536_000
CLASSES = (2, 10, 100, 256, 1000)


def measure() -> dict[str, float]:
    """Time of each call in this process, in ns a logit."""
    import fastswl as swl

    rng = np.random.default_rng(0)
    found = {}
    for size, threads, rounds, place in ((SMALL, 1, 60, "in cache"), (LARGE, None, 7, "memory")):
        for dtype in ("float32", "float64"):
            for classes in CLASSES:
                n = size // classes // (2 if dtype == "float64" else 1)
                x = rng.standard_normal((n, classes), dtype="float32").astype(dtype)
                y, out = rng.integers(0, classes, n), np.empty_like(x)
                calls = {
                    "loss and gradient": lambda x=x, y=y, out=out, threads=threads: swl.cross_entropy_value_and_grad(
                        x, y, grad_out=out, n_threads=threads
                    ),
                    "softmax": lambda x=x, out=out, threads=threads: swl.softmax(x, out=out, n_threads=threads),
                }
                for name, call in calls.items():
                    call()
                    call()
                    times = []
                    for _ in range(rounds):
                        start = time.perf_counter()
                        call()
                        times.append(time.perf_counter() - start)
                    found[f"{place}, {dtype}, {classes} classes, {name}"] = statistics.median(times) / x.size * 1e9
    return found


def run(package: Path, cache: Path) -> dict[str, float]:
    """Measure the package below a directory in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(package), str(ROOT))),
        "NUMBA_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "benchmarks.guarantee", "--worker"]
    done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guarantee", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        print(json.dumps(measure()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder, name) for name in ("exact", "cheap")}
        for place in places.values():
            shutil.copytree(ROOT / "fastswl", place / "fastswl", ignore=shutil.ignore_patterns("__pycache__"))
        CHEAP.put_into(places["cheap"] / "fastswl", 0)
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for _ in range(args.runs + 1):
            for name, place in places.items():
                samples[name].append(run(place, place / "cache"))
    print("| work | exact, ns | cheap, ns | exact / cheap |\n| --- | --- | --- | --- |")
    for work in samples["exact"][0]:
        # the first run compiled
        exact, cheap = (statistics.median(found[work] for found in samples[name][1:]) for name in places)
        print(f"| {work} | {exact:.3f} | {cheap:.3f} | {exact / cheap:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
