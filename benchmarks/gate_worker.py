"""The cases of the gate, and the process that runs them for one commit (see gate.py).

It is started in a folder that holds the package of its commit, reads commands as lines of JSON and
answers each with one.
"""

from __future__ import annotations

import json
import sys
import timeit
from typing import NamedTuple

import numpy as np

from benchmarks import problems
from benchmarks.shapes import SHAPES

#: seconds of a sample: shorter than the time that a scheduler gives to another process at once
SAMPLE_SECONDS = 150e-6
OPERATIONS = ("loss_and_grad", "softmax", "loss")
DTYPES = ("float32", "float64")
#: a shape for each walk (see `choose_walk`) that stays in the second-level cache, and a small call
WALKS = {
    "short": "2048 rows of 10",
    "panel": "256 rows of 100",
    "strided": "picture of 24 x 24",
    "batch": "24 rows of 1000",
    "row": "8 rows of 3000",
    "split": "one row of 1100000",
    "small call": "one row",
}
#: rows whose exactness is compared: (walk, classes, order of the logits in memory)
ROWS = (
    ("short", 10, "C"),
    ("short", 21, "F"),
    ("panel", 100, "C"),
    ("strided", 100, "F"),
    ("batch", 1000, "C"),
    ("row", 3000, "C"),
    ("split", 1_100_000, "C"),
)


class Case(NamedTuple):
    """One call that is timed."""

    walk: str
    operation: str
    shape: str
    dtype: str = "float32"
    threads: int = 1
    soft: bool = False
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        words = [self.walk, self.operation, self.dtype, *self.options]
        words += ["probabilities"] if self.soft else []
        words += [self.shape] if self.shape != WALKS[self.walk] else []
        words += [f"{self.threads} threads"] if self.threads > 1 else []
        return ", ".join(words)


def cases(quick: bool) -> list[Case]:
    found = [
        Case(walk, operation, shape, dtype)
        for walk, shape in WALKS.items()
        for operation in OPERATIONS
        for dtype in DTYPES
        if walk != "small call" or dtype == "float32"
    ]
    if quick:
        return found
    for walk in ("short", "panel", "batch", "row"):
        shape = WALKS[walk]
        found += [Case(walk, operation, shape) for operation in ("log_softmax", "logsumexp")]
        found += [Case(walk, "loss_and_grad", shape, dtype) for dtype in ("float16", "bfloat16")]
        found.append(Case(walk, "loss_and_grad", shape, soft=True))
        found += [Case(walk, "loss_and_grad", shape, options=(option,)) for option in problems.OPTIONS]
    # beyond the caches, where results are streamed, in two threads
    large = {"short": "10 classes", "panel": "100 classes", "batch": "1000 classes", "split": "one row of 1100000"}
    found += [
        Case(walk, operation, shape, threads=2)
        for walk, shape in large.items()
        for operation in ("loss_and_grad", "softmax")
    ]
    return found


def rows_and_targets(kind: str, classes: int, order: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    from benchmarks.accuracy import rows_of

    x, t = rows_of(kind_of(kind), classes, dtype)
    return np.array(x, order=order), t


def kind_of(name: str):
    from benchmarks.exact import tests_module

    return next(kind for kind in tests_module("ulp").KINDS if kind.__name__ == name)


class Worker:
    """Answers to commands; each method is one."""

    def __init__(self) -> None:
        self.timers: dict[str, timeit.Timer] = {}

    def prepare(self, case: list) -> float:
        """Seconds of a call, once it is compiled."""
        case = Case(*case[:-1], tuple(case[-1]))
        shape = SHAPES[case.shape]
        problem = problems.make(
            shape, case.operation, dtype=case.dtype, soft=case.soft, threads=case.threads, options=case.options
        )
        timer = self.timers[case.name] = timeit.Timer(problems.ours(problem).run)
        timer.timeit(3)
        number = 1
        while (elapsed := min(timer.repeat(3, number))) < SAMPLE_SECONDS / 2 and number < 4096:
            number *= 4
        return elapsed / number

    def time(self, name: str, number: int, samples: int) -> float:
        """The shortest of some samples, in seconds a call; one more goes before them and is not counted."""
        timer = self.timers[name]
        timer.timeit(number)
        return min(timer.repeat(samples, number)) / number

    def results(self, kind: str, classes: int, order: str, dtype: str, file: str) -> None:
        """Save softmax, losses and gradients of rows of a kind."""
        import fastswl as swl

        x, t = rows_and_targets(kind, classes, order, dtype)
        loss, gradient = swl.cross_entropy_value_and_grad(x, t, reduction="none")
        np.savez(file, softmax=swl.softmax(x), loss=loss, gradient=gradient)

    def instructions(self, operation: str, shape: str) -> float:
        from benchmarks import instructions

        return instructions.per_call(operation, shape)


def main() -> None:
    worker = Worker()
    # what a library might print must not come between the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(worker, command)(*arguments)}
        except Exception as error:  # of whatever the commit lacks; the gate says it and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
