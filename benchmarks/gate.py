"""Whether a commit made anything slower or less exact than another.

    python -m benchmarks.gate BASE HEAD           # a table; 1 if it did, or if something could not be measured; 2: no such commit
    python -m benchmarks.gate BASE HEAD --quick   # the walks and the small call alone

Each commit runs in a process of its own with its own cache of kernels; both live at once and take
turns, base, head, head, base, each turn a few calls of a tenth of a millisecond of which the
shortest counts: a process that takes the core away for milliseconds misses most of them. A round's
figure is the ratio of the two. What one pair of processes says also hangs on where its memory and
its code happen to lie, so there are several pairs, and the interval comes from a bootstrap over
pairs and their rounds. What looks changed is measured again by as many fresh pairs, and named only
if all of it together says so. Exactness is that of fixed rows, so it has no noise.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.gate_worker import OPERATIONS, ROWS, SAMPLE_SECONDS, WALKS, Case, cases, rows_and_targets

ROOT = Path(__file__).parents[1]
#: a change of time that is named
BAR = 0.07
#: ulp that the worst error may grow
ULP_BAR = 0.5
#: of the interval of a change
CONFIDENCE = 0.99
RESAMPLES = 2000
SAMPLES = 6
#: calls longer than this are not repeated in a turn, nor in as many rounds
LONG_CALL = 2e-3


class Plan(NamedTuple):
    pairs: int  # of processes, one after the other
    rounds: int  # of each pair


FULL = Plan(pairs=5, rounds=30)
QUICK = Plan(pairs=4, rounds=25)


class Failed(Exception):
    """What a worker could not do."""


class Side:
    """One commit: its package in a folder, its cache, its process."""

    def __init__(self, name: str, folder: Path, cache: Path | None) -> None:
        self.name = name
        self.commit = git("rev-parse", "--verify", f"{name}^{{commit}}").decode().strip()
        self.package = folder / "package"
        self.package.mkdir(parents=True)
        archive = git("archive", "--format=tar", self.commit, "fastswl")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(self.package, filter="data")
        tree = git("rev-parse", f"{self.commit}:fastswl").decode().strip()
        self.cache = cache / tree if cache else folder / "cache"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(self.cache)}
        # the folder it runs in comes first in its path
        command = [sys.executable, "-m", "benchmarks.gate_worker"]
        self.process = subprocess.Popen(
            command, cwd=self.package, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def send(self, command: str, *arguments: Any) -> None:
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer["result"]

    def ask(self, command: str, *arguments: Any) -> Any:
        self.send(command, *arguments)
        return self.receive()


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def has_package(name: str) -> bool:
    """Whether a name is that of a commit with something to measure."""
    try:
        git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}:fastswl")
    except subprocess.CalledProcessError:
        return False
    return True


def ask_both(sides: tuple[Side, Side], command: str, *arguments: Any) -> tuple[Any, Any]:
    """Both answers, worked out at the same time; an error is raised once both have answered."""
    for side in sides:
        side.send(command, *arguments)
    answers, errors = [], []
    for side in sides:
        try:
            answers.append(side.receive())
        except Failed as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers[0], answers[1]


# --- times --------------------------------------------------------------------------------------


def measure_pair(sides: tuple[Side, Side], chosen: list[Case], rounds: int, failed: dict[str, str]) -> dict:
    """For each case the logarithms of head's time in units of base's, one a round; and base's shortest time."""
    base, head = sides
    numbers, found, seconds = {}, {}, {}
    for side in sides:
        side.start()
    try:
        for case in chosen:
            try:
                took = min(ask_both(sides, "prepare", case))
            except Failed as error:
                failed[case.name] = str(error)
                continue
            numbers[case] = (max(1, round(SAMPLE_SECONDS / took)), SAMPLES if took < LONG_CALL else 1)
            found[case.name], seconds[case.name] = [], math.inf
        for turn in range(rounds):
            for case, (number, samples) in numbers.items():
                if samples == 1 and turn % 5:
                    continue
                times: dict[Side, float] = {base: math.inf, head: math.inf}
                order = (base, head, head, base) if turn % 2 else (head, base, base, head)
                for side in order:
                    times[side] = min(times[side], side.ask("time", case.name, number, samples))
                found[case.name].append(math.log(times[head] / times[base]))
                seconds[case.name] = min(seconds[case.name], times[base])
    finally:
        for side in sides:
            side.stop()
    return {name: (found[name], seconds[name]) for name in found}


class Change(NamedTuple):
    """What head's time is to base's, less 1, and between which bounds."""

    change: float
    low: float
    high: float
    seconds: float  # of a call of base
    rounds: int
    slower_rounds: int

    @property
    def suspicious(self) -> bool:
        return abs(self.change) > 0.6 * BAR or self.low > BAR / 2 or self.high < -BAR / 2

    @property
    def verdict(self) -> str:
        if self.change > BAR and self.low > BAR / 2:
            return "slower"
        if self.change < -BAR and self.high < -BAR / 2:
            return "faster"
        return ""


def judge(pairs: list[tuple[list[float], float]]) -> Change:
    """The median over pairs of the median over their rounds, and a bootstrap over both."""
    rng = np.random.default_rng(0)
    medians = [float(np.median(ratios)) for ratios, _ in pairs]
    # medians of resampled rounds, for each pair; then resampled pairs
    spread = np.array([np.median(rng.choice(r, (RESAMPLES, len(r))), axis=1) for r, _ in pairs])
    chosen = rng.integers(0, len(pairs), (RESAMPLES, len(pairs)))
    resampled = np.median(spread[chosen.T, np.arange(RESAMPLES)], axis=0)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    every = [ratio for ratios, _ in pairs for ratio in ratios]
    return Change(
        math.expm1(statistics.median(medians)),
        math.expm1(float(low)),
        math.expm1(float(high)),
        min(seconds for _, seconds in pairs),
        len(every),
        sum(ratio > 0 for ratio in every),
    )


def measure(sides: tuple[Side, Side], chosen: list[Case], plan: Plan, say) -> tuple[dict[str, dict], dict[str, str]]:
    """For each case the change, and what each pair alone would say; and what could not be measured."""
    pairs: dict[str, list] = {}
    failed: dict[str, str] = {}

    def run(some: list[Case], what: str) -> None:
        for number in range(plan.pairs):
            say(f"{what}, pair {number + 1} of {plan.pairs}")
            for name, figures in measure_pair(sides, some, plan.rounds, failed).items():
                pairs.setdefault(name, []).append(figures)

    run(chosen, "times")
    changes = {name: judge(figures) for name, figures in pairs.items()}
    again = [case for case in chosen if case.name in changes and changes[case.name].suspicious]
    if again:
        run(again, f"{len(again)} again")
        changes |= {case.name: judge(pairs[case.name]) for case in again}
    alone = {name: [round(math.expm1(np.median(ratios)), 4) for ratios, _ in pairs[name]] for name in changes}
    return {name: {"change": change, "pairs": alone[name]} for name, change in changes.items()}, failed


# --- exactness ----------------------------------------------------------------------------------


class Exactness(NamedTuple):
    """Worst errors in ulp."""

    base: float
    head: float

    @property
    def verdict(self) -> str:
        if self.head > self.base + ULP_BAR:
            return "less exact"
        return "more exact" if self.head < self.base - ULP_BAR else ""


def exactness(sides: tuple[Side, Side], folder: Path, failed: dict[str, str]) -> dict[str, Exactness]:
    """By walk, dtype and result, over all kinds of rows."""
    from benchmarks.exact import exact, tests_module, worst_ulp

    worst: dict[str, list[float]] = {}
    for side in sides:
        side.start()
    try:
        for walk, classes, order in ROWS:
            for dtype in ("float32", "float64"):
                for kind in tests_module("ulp").KINDS:
                    rows = (kind.__name__, classes, order, dtype)
                    files = [folder / f"{place}.npz" for place in ("base", "head")]
                    for side, file in zip(sides, files, strict=True):
                        side.send("results", *rows, str(file))
                    expected = exact(*rows_and_targets(*rows))
                    try:
                        for side in sides:
                            side.receive()
                    except Failed as error:
                        failed[f"exactness, {walk}, {dtype}"] = str(error)
                        break
                    for place, file in enumerate(files):
                        with np.load(file) as results:
                            for what in results.files:
                                error = worst_ulp(results[what], getattr(expected, what))
                                entry = worst.setdefault(f"{walk}, ulp of {what}, {dtype}", [0.0, 0.0])
                                entry[place] = max(entry[place], error)
    finally:
        for side in sides:
            side.stop()
    return {name: Exactness(*errors) for name, errors in worst.items()}


# --- instructions, a second witness -------------------------------------------------------------


def instructions(sides: tuple[Side, Side], failed: dict[str, str]) -> dict[str, float]:
    """By what part the instructions of the walks' float32 calls grew (see instructions.py)."""
    grown = {}
    for side in sides:
        side.start()
    try:
        for walk in ("short", "panel", "row"):
            name = Case(walk, OPERATIONS[0], WALKS[walk]).name
            try:
                before, after = ask_both(sides, "instructions", OPERATIONS[0], WALKS[walk])
            except Failed as error:
                failed[f"instructions, {name}"] = str(error)
            else:
                grown[name] = after / before - 1
    finally:
        for side in sides:
            side.stop()
    return grown


# --- report -------------------------------------------------------------------------------------


def percent(change: float) -> str:
    return f"{100 * change:+.1f} %"


def rows(report: dict) -> list[list[str]]:
    """What was measured, at base, the change, how sure it is, instructions, verdict."""
    found = []
    for name, entry in report["times"].items():
        change = Change(*entry["change"])
        between = (
            f"{percent(change.low)} to {percent(change.high)}, slower in {change.slower_rounds} of {change.rounds}"
        )
        counted = report["instructions"].get(name)
        found.append(
            [
                name,
                f"{change.seconds * 1e6:,.1f} us",
                percent(change.change),
                between,
                "" if counted is None else percent(counted),
                change.verdict,
            ]
        )
    for name, errors in report["exactness"].items():
        exact = Exactness(*errors)
        found.append([name, f"{exact.base:.2f}", f"{exact.head - exact.base:+.2f} ulp", "certain", "", exact.verdict])
    return found


def table(report: dict) -> str:
    """Markdown, what changed first and in bold."""
    found = rows(report)
    found.sort(key=lambda cells: not cells[-1])
    head = ["what", "base", "change", f"{CONFIDENCE:.0%} of the bootstrap, and rounds", "instructions", "verdict"]
    kept = [place for place in range(len(head)) if place != 4 or report["instructions"]]
    lines = [[head[place] for place in kept], [["---", "--:", "--:", "---", "--:", "---"][place] for place in kept]]
    for cells in found:
        cells[-1] = cells[-1] and f"**{cells[-1]}**"
        lines.append([cells[place] for place in kept])
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return text + "".join(f"\n\nnot measured: {name}: {why}" for name, why in report["failed"].items())


def compare(args: argparse.Namespace, say) -> dict:
    """All that is measured; `verdicts` maps what changed to how."""
    chosen = [case for case in cases(args.quick) if args.cases in case.name]
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="gate-"))
    try:
        sides = Side(args.base, folder / "base", args.cache), Side(args.head, folder / "head", args.cache)
        failed: dict[str, str] = {}
        exact = {}
        if not args.cases:
            say("exactness")  # first, since it compiles in both processes at once
            exact = exactness(sides, folder, failed)
        times, not_timed = measure(sides, chosen, QUICK if args.quick else FULL, say)
        failed |= not_timed
        counted = {}
        if not (args.quick or args.cases):
            say("instructions")
            counted = instructions(sides, failed)
        judged = {name: entry["change"] for name, entry in times.items()} | exact
        verdicts = {name: entry.verdict for name, entry in judged.items() if entry.verdict}
        return {
            "base": sides[0].commit,
            "head": sides[1].commit,
            "quick": args.quick,
            "machine": machine.describe(),
            "times": times,
            "instructions": counted,
            "exactness": {name: list(entry) for name, entry in exact.items()},
            "verdicts": verdicts,
            "failed": failed,
            "seconds": time.monotonic() - started,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def regressions(report: dict) -> dict[str, str]:
    return {name: what for name, what in report["verdicts"].items() if what in ("slower", "less exact")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("head", help="commit to judge")
    parser.add_argument("--quick", action="store_true", help="the walks and the small call, one thread")
    parser.add_argument("--cases", default="", metavar="TEXT", help="times alone, of cases whose name holds this")
    parser.add_argument("--cache", type=Path, help="folder that keeps compiled kernels from run to run")
    parser.add_argument("--json", type=Path, help="where to save all figures")
    args = parser.parse_args(arguments)
    for name in (args.base, args.head):
        if not has_package(name):
            print(f"{name} is no commit with a package fastswl", file=sys.stderr)
            return 2

    started = time.monotonic()
    report = compare(
        args, lambda text: print(f"{time.monotonic() - started:4.0f} s  {text}", file=sys.stderr, flush=True)
    )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(machine.title(report["machine"]), "\n\n" + table(report), sep="")
    worse = regressions(report)
    print(
        f"\n{len(worse)} regressions in {report['seconds']:.0f} s" + "".join(f"\n  {w}: {n}" for n, w in worse.items())
    )
    return int(bool(worse) or bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main())
