"""Times of several calls, taken in turn in one process.

In each round every call has its turn, in an order that moves on, after a rest in which the threads
of the one before go to sleep (onnxruntime's spin for 65 ms, on a processor that others would use). A turn is one call that is not
timed, which wakes the threads, and then as many as take `least_time`. What a call takes is the
median over the rounds: a busy moment of the machine hits all alike, and none is its outlier.
"""

from __future__ import annotations

import gc
import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from typing import NamedTuple

Call = Callable[[], object]


class Plan(NamedTuple):
    """How long to measure."""

    rounds: int = 9
    least_time: float = 0.02  # seconds of a turn
    rest: float = 0.03  # seconds before a turn, at least


QUICK = Plan(rounds=3, least_time=0.001, rest=0.001)


def rest(least: float) -> None:
    """Sleep until this process uses less than a fifth of a processor, or half a second has passed."""
    end = time.monotonic() + 0.5
    time.sleep(least)
    busy = True
    while busy and time.monotonic() < end:
        before, start = time.process_time(), time.monotonic()
        time.sleep(0.005)
        busy = time.process_time() - before > 0.2 * (time.monotonic() - start)


def _repeats(call: Call, least_time: float) -> int:
    """How many calls in a turn; warms up on the way."""
    call()
    number = 1
    while True:
        elapsed = timeit.timeit(call, number=number)
        if elapsed >= least_time / 2:
            return max(1, round(number * least_time / max(elapsed, 1e-9)))
        number *= 4


def interleaved(calls: Mapping[str, Call], plan: Plan = Plan()) -> dict[str, list[float]]:  # noqa: B008
    """Seconds a call, for each of `calls` and each round."""
    repeats = {name: _repeats(call, plan.least_time) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc_was_on = gc.isenabled()
    gc.disable()
    try:
        for turn in range(plan.rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                rest(plan.rest)
                calls[name]()
                elapsed = timeit.timeit(calls[name], number=repeats[name])
                samples[name].append(elapsed / repeats[name])
    finally:
        if gc_was_on:
            gc.enable()
    return samples


def medians(samples: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def ratio(samples: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of what `name` took in units of what `base` took in the same round."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[base], strict=True))
