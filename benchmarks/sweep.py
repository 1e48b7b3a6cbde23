"""Cost per element from 1 to 3e8 elements, rows by classes.

    python -m benchmarks.sweep            # minutes; saves benchmarks/results/sweep.json
    python -m benchmarks.sweep --quick    # to 1e5 elements

Every point is the median over rounds in which ours and the plain copy take turns. Beside the grid,
`crossovers` are pairs of problems just below and just above a size at which another way is taken
(see `fastswl.walks`), measured in turn: a step is the ratio of their costs per element.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import copies, machine, timing
from benchmarks.problems import Problem, ours

RESULTS = Path(__file__).parent / "results"
OPERATIONS = ("loss_and_grad", "softmax")
CLASSES = (1, 2, 10, 100, 1000, 10_000, 131_072, 1_000_000, 100_000_000)
LARGEST = 300_000_000
#: a step that is larger than this is marked
LARGEST_STEP = 1.15


class Point(NamedTuple):
    rows: int
    classes: int

    @property
    def elements(self) -> int:
        return self.rows * self.classes


class Memory:
    """Two arrays and class indices, of which every problem uses the beginning."""

    def __init__(self, elements: int) -> None:
        rng = np.random.default_rng(0)
        block = 3 * rng.standard_normal(min(elements, 1_000_003), dtype=np.float32)
        self.logits = np.resize(block, elements)
        self.out = np.zeros(elements, np.float32)
        self.targets = rng.integers(0, 2**31, elements // 2 + 1)

    def problem(self, operation: str, point: Point, threads: int) -> Problem:
        shape = (point.rows, point.classes)
        x, out = (a[: point.elements].reshape(shape) for a in (self.logits, self.out))
        targets = None
        if operation == "loss_and_grad":
            # rows of one class have nothing to choose, and more rows than there are indices
            if point.classes == 1:
                targets = np.zeros(point.rows, np.int64)
            else:
                targets = self.targets[: point.rows] % point.classes
        return Problem(operation, x, targets, -1, out, threads, {})


def sizes(largest: int) -> list[int]:
    """1, 3, 10, 30, ... up to `largest`."""
    steps = (factor * 10**power for power in range(10) for factor in (1, 3))
    return [size for size in steps if size <= largest]


def grid(largest: int) -> Iterator[Point]:
    """Rows by classes, each size with every number of classes that fits."""
    for classes in CLASSES:
        seen = set()
        for size in sizes(largest):
            rows = size // classes
            if rows and rows not in seen:
                seen.add(rows)
                yield Point(rows, classes)


def crossovers(largest: int) -> Iterator[tuple[str, Point, Point]]:
    """What changes, and a problem on each side."""
    from fastswl import dispatch, threads, walks

    for name, value in {**vars(walks), **vars(dispatch), **vars(threads)}.items():
        if not name.isupper() or not isinstance(value, int):
            continue
        if name.endswith("_CLASSES"):
            for size in (300_000, 30_000_000):
                if value < size <= largest:
                    rows = max(1, size // value)
                    yield f"{name}, {rows} rows", Point(rows, value), Point(rows, value + 1)
        elif name.endswith(("_ELEMENTS", "_BYTES", "_WORK")):
            elements = value // 4 if name.endswith("_BYTES") else value
            for classes in (10, 100, 1000):
                # a little to each side, since whole tiles of rows decide; smaller numbers are
                # sizes of tables, not crossovers
                below, above = (Point(int(elements * k) // classes, classes) for k in (0.97, 1.03))
                if 0 < below.rows < above.rows and 4096 <= elements <= largest:
                    yield f"{name}, {classes} classes", below, above


def cost(memory: Memory, operation: str, points: dict[str, Point], threads: int, plan) -> dict:
    """Seconds of our calls by name, and of copies of the same arrays."""
    calls = {}
    for name, point in points.items():
        problem = memory.problem(operation, point, threads)
        calls[name] = ours(problem).run
        calls[f"copy {name}"] = copies.copy(problem.logits, problem.out, threads)
    return timing.medians(timing.interleaved(calls, plan))


def measure(largest: int, threads: int, plan: timing.Plan) -> dict:
    memory = Memory(largest)
    report: dict = {"points": [], "crossovers": []}
    for operation in OPERATIONS:
        for point in grid(largest):
            seconds = cost(memory, operation, {"here": point}, threads, plan)
            report["points"].append(
                {
                    "operation": operation,
                    "rows": point.rows,
                    "classes": point.classes,
                    "elements": point.elements,
                    "seconds": seconds["here"],
                    "copy": seconds["copy here"],
                }
            )
        for what, below, above in crossovers(largest):
            both = {"below": below, "above": above}
            seconds = cost(memory, operation, both, threads, plan)
            step = seconds["above"] / above.elements / (seconds["below"] / below.elements)
            report["crossovers"].append(
                {"operation": operation, "what": what, "below": below, "above": above, "step": step}
            )
            mark = "" if 1 / LARGEST_STEP <= step <= LARGEST_STEP else "  LARGE"
            print(f"{operation}, {what}: step {step:.2f}{mark}", flush=True)
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--largest", type=float, default=LARGEST, help="elements; default 3e8")
    parser.add_argument("--threads", type=int, default=machine.core_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="to 1e5 elements, three rounds")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/sweep.json")
    args = parser.parse_args(arguments)
    largest = min(int(args.largest), 100_000) if args.quick else int(args.largest)
    plan = timing.QUICK if args.quick else timing.Plan(rounds=args.rounds, rest=0.01)
    report = {"machine": machine.describe(), "threads": args.threads, "quick": args.quick}
    report |= measure(largest, args.threads, plan)
    file = args.json or RESULTS / ("sweep-quick.json" if args.quick else "sweep.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    large = [c for c in report["crossovers"] if c["step"] > LARGEST_STEP]
    print(f"{len(report['points'])} points, {len(large)} steps up over 15 %; saved in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
