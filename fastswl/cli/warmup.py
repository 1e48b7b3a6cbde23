"""Compile what users commonly call, so that their first calls only load it from the cache.

Sample calls of all public functions, with the common dtypes and with shapes that meet every kernel,
run in processes of their own, as many at a time as there are CPUs. What they compile is kept by
Numba on disk, for this version of fastswl, this Numba and this CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from fastswl.cli.console import CommandError, progress

DTYPES = ("float32", "float64", "float16", "bfloat16")


class Case(NamedTuple):
    """Logits that meet a kernel."""

    shape: tuple[int, ...]
    axis: int = -1
    fortran: bool = False


# the dearest first: they must not be what everybody waits for at the end
CASES = {
    "few classes, many rows": Case((4096, 10)),
    "few classes": Case((64, 10)),
    "two classes": Case((64, 2)),
    "a hundred classes": Case((64, 100)),
    "some hundred classes": Case((64, 200)),
    "many classes": Case((64, 1000)),
    "some thousand classes": Case((16, 3000)),
    "a language model": Case((4, 32768)),
    "two long rows": Case((2, 1_100_000)),
    "images": Case((8, 21, 64, 64), axis=1),
    "Fortran order": Case((256, 100), fortran=True),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastswl warmup`."""
    parser.add_argument(
        "--dtype",
        action="append",
        choices=DTYPES,
        metavar="DTYPE",
        help=f"only this one of {', '.join(DTYPES)}; may be given again",
    )
    parser.add_argument("--processes", type=int, help="at a time (default: as many as fastswl uses threads)")


def run(arguments: argparse.Namespace) -> None:
    """Run all jobs, then say where the cache lies."""
    from fastswl import get_num_threads
    from fastswl.cache import cache_directory

    processes = arguments.processes
    if processes is not None and processes < 1:
        raise CommandError(f"--processes must be at least 1, not {processes}")
    dtypes = arguments.dtype or [name for name in DTYPES if _dtype(name) is not None]
    for name in dtypes:
        if _dtype(name) is None:
            raise CommandError(f"{name} needs ml_dtypes: pip install ml_dtypes")
    jobs = [(dtype, case) for case in CASES for dtype in dict.fromkeys(dtypes)]
    start = time.perf_counter()
    cache = cache_directory()
    if cache is None:
        raise CommandError("there is no directory for the cache that can be written to")
    with (
        ThreadPoolExecutor(processes or get_num_threads()) as pool,
        progress("warmup", len(jobs)) as jobs_done,
    ):
        futures = {pool.submit(_run_in_process, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                seconds = future.result()
                jobs_done.advance(f"{', '.join(futures[future])} ({seconds:.1f} s)")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(f"compiled or found in the cache in {time.perf_counter() - start:.1f} s")
    n_bytes = sum(file.stat().st_size for file in cache.glob("*.nbc"))
    print(f"cache: {cache} ({n_bytes / 1e6:.1f} MB)")


def _dtype(name: str) -> Any:
    """Return the dtype, or None where ml_dtypes is not installed."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def _run_in_process(dtype: str, case: str) -> float:
    """Run one job in a new interpreter; return its seconds."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from fastswl.cli.warmup import run_job; run_job({dtype!r}, {case!r})"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CommandError(f"{dtype}, {case}: {lines[-1]}")
    return time.perf_counter() - start


def run_job(dtype: str, case: str) -> None:
    """Call every public function with one kind of logits."""
    import numpy as np

    import fastswl as swl

    shape, axis, fortran = CASES[case]
    logits = np.random.default_rng(0).standard_normal(shape).astype(_dtype(dtype))
    if fortran:
        logits = np.asfortranarray(logits)

    n_classes = shape[axis]
    sample_shape = np.delete(shape, axis)
    labels = np.arange(np.prod(sample_shape)).reshape(sample_shape) % n_classes
    one_hot = np.zeros_like(logits)
    np.put_along_axis(one_hot, np.expand_dims(labels, axis), 1, axis)
    swl.softmax(logits, axis)
    swl.log_softmax(logits, axis)
    swl.logsumexp(logits, axis)
    layer = swl.SoftmaxWithLoss(axis=axis)
    for targets in (labels, labels.astype(np.int32), one_hot):
        swl.cross_entropy(logits, targets, axis)
        swl.cross_entropy_value_and_grad(logits, targets, axis)
        layer.forward(logits, targets)
        layer.backward()
