"""What the benchmarks of the suite (bench_*.py, run by asv) have in common.

asv runs `setup` again before every sample, and a fresh process for every round: so arrays are
cached, and a call that `ready` gives has run before, its kernel compiled or loaded. A call of
microseconds is repeated in the body of its benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from benchmarks import problems
from benchmarks.shapes import SHAPES

#: named after real work; the language model is left to those that time memory
WORK = ["digits", "ImageNet", "segmentation", "GBM", "language model"]
SMALL_WORK = ["digits", "ImageNet", "segmentation", "GBM"]
#: threads of every benchmark, so that figures of different machines have the same meaning
THREADS = 2

_warm: set[Any] = set()


def warmed(key: Any, call: Callable[[], object]) -> Callable[[], object]:
    """The call, run once before by this process; `key` names its kernel."""
    if key not in _warm:
        call()
        call()
        _warm.add(key)
    return call


@functools.lru_cache(maxsize=4)
def ready(
    operation: str,
    shape: str,
    dtype: str = "float32",
    *,
    soft: bool = False,
    given: bool = True,
    threads: int = THREADS,
    options: tuple[str, ...] = (),
) -> Callable[[], object]:
    """Our call for a named shape, to be timed."""
    problem = problems.make(
        SHAPES[shape],
        operation,
        dtype=dtype,
        soft=soft,
        given=given,
        threads=threads,
        options=options,
    )
    call = problems.ours(problem).run
    call()
    call()
    return call
