"""Whether the gate tells a fault from noise: a trial on faults that are known.

    python -m benchmarks.gate_trial                        # 10 planted, 20 identical, 2 inexact, 1 in full
    python -m benchmarks.gate_trial --slow 5 --same 5      # fewer
    python -m benchmarks.gate_trial --add --slow 0         # beside those that the file holds

In a temporary clone, beside a process that is busy half of the time, the gate's quick form compares
the last commit with itself (nothing may be named), with one whose walk is 15 % slower (that walk has
to be named and no other), and with one whose gradient is up to 4 ulp off (that has to be named).
The full form compares the last commit with itself, with kernels compiled anew.
The slowdown is calibrated on the call whose time it is a part of, loss and gradient in float32. The
first run compiles its kernels anew; the others take them from a folder, to save time.
Saves `results/gate_trial.json` after each run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.gate_worker import OPERATIONS, WALKS, Case
from benchmarks.plants import INEXACT, SLOW, Plant

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SLOWDOWN = 0.15
#: what a run compares
KINDS = {"slow": "15 % slower", "same": "identical", "inexact": "4 ulp off", "full": "identical, full form"}


def disturb(seed: int) -> None:
    """Busy half of the time, for 20 to 400 ms at once, with arithmetic or with memory."""
    chance = random.Random(seed)
    source = np.ones(4_000_000)
    target = np.empty_like(source)
    while True:
        end = time.perf_counter() + chance.uniform(0.02, 0.4)
        start = time.perf_counter()
        memory = chance.random() < 0.5
        while time.perf_counter() < end:
            if memory:
                np.copyto(target, source)
            else:
                sum(range(10_000))
        time.sleep(time.perf_counter() - start)


def git(clone: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=trial", "-c", "user.email=trial@localhost", *arguments]
    return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout.strip()


def commit(clone: Path, plant: Plant, steps: int) -> str:
    """A commit of the fault on top of the last real one."""
    git(clone, "checkout", "--quiet", "--detach", "real")
    plant.put_into(clone / "fastswl", steps)
    git(clone, "commit", "--quiet", "--all", "--message", f"Planted: {plant.walk}, {steps}")
    found = git(clone, "rev-parse", "HEAD")
    git(clone, "checkout", "--quiet", "real")
    return found


def gate(clone: Path, head: str, cache: Path | None, file: Path, *, cases: str = "", quick: bool = True) -> dict:
    command = [sys.executable, "-m", "benchmarks.gate", "real", head, "--json", str(file)]
    command += ["--quick"] if quick else []
    command += ["--cache", str(cache)] if cache else []
    command += ["--cases", cases] if cases else []
    subprocess.run(command, cwd=clone, check=False, capture_output=True)
    return json.loads(file.read_text())


def calibrated(clone: Path, plant: Plant, file: Path, cache: Path) -> tuple[str, float]:
    """The commit with a slowdown of 15 %, and the slowdown that was measured."""
    name = Case(plant.walk, OPERATIONS[0], WALKS[plant.walk]).name
    steps = plant.steps
    for _ in range(4):
        head = commit(clone, plant, steps)
        change = gate(clone, head, cache, file, cases=name)["times"][name]["change"][0]
        print(f"{plant.walk}: {steps} steps, {100 * change:+.1f} %", flush=True)
        if abs(change - SLOWDOWN) < 0.01:
            break
        steps = max(1, round(steps * SLOWDOWN / max(change, 0.01)))
    return head, change


def outcome(kind: str, walk: str, report: dict) -> dict:
    """What the gate said, and whether it is right."""
    named = report["verdicts"]
    word = {"slow": "slower", "inexact": "less exact"}.get(kind)
    # a small call is one of short rows; the row walk and the split one share their last step
    walks = {"slow": {walk, "small call"} if walk == "short" else {walk}, "inexact": {"row", "split"}}.get(kind, set())
    found = any(what == word for what in named.values())
    if kind == "slow":
        found = named.get(Case(walk, OPERATIONS[0], WALKS[walk]).name) == word
    others = {name: what for name, what in named.items() if name.split(", ")[0] not in walks or what != word}
    return {
        "kind": kind,
        "walk": walk,
        "named": named,
        "failed": report["failed"],
        "found": found if word else None,
        "others": others,
        "seconds": report["seconds"],
        "pairs": {name: entry["pairs"] for name, entry in report["times"].items()},
        "changes": {name: round(entry["change"][0], 4) for name, entry in report["times"].items()},
    }


def summary(report: dict) -> str:
    lines = []
    for kind, what in KINDS.items():
        runs = [run for run in report["runs"] if run["kind"] == kind]
        if not runs:
            continue
        text = f"{what}: {len(runs)} runs"
        if kind in ("slow", "inexact"):
            text += f", named in {sum(run['found'] for run in runs)}"
        text += f", anything else named in {sum(bool(run['others']) for run in runs)}"
        cold = [run["seconds"] for run in runs if run["cold"]]
        warm = [run["seconds"] for run in runs if not run["cold"]]
        text += f"; compiled anew {max(cold):.0f} s" if cold else ""
        text += f", else {min(warm):.0f} to {max(warm):.0f} s" if warm else ""
        lines.append(text)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate_trial",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slow", type=int, default=10, help="runs, in turn for the walks")
    parser.add_argument("--same", type=int, default=20, help="runs")
    parser.add_argument("--inexact", type=int, default=2, help="runs")
    parser.add_argument("--full", type=int, default=1, help="runs of the full form")
    parser.add_argument("--walks", nargs="+", choices=WALKS, default=list(WALKS), metavar="WALK")
    parser.add_argument("--json", type=Path, default=RESULTS / "gate_trial.json")
    parser.add_argument("--add", action="store_true", help="keep the runs that the file holds")
    args = parser.parse_args(arguments)
    report: dict = {"machine": machine.describe(), "slowdown": {}, "runs": []}
    if args.add:
        report = json.loads(args.json.read_text())
        if report["machine"] != machine.describe():
            parser.error(f"{args.json} is of another machine, or of other versions")
    plants = [plant for plant in SLOW if plant.walk in args.walks]
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        clone, cache, file = Path(folder) / "clone", Path(folder) / "cache", Path(folder) / "report.json"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        git(clone, "checkout", "--quiet", "-b", "real")
        heads = {}
        for plant in plants[: args.slow]:
            heads[plant.walk], report["slowdown"][plant.walk] = calibrated(clone, plant, file, cache)
        # from here on beside a busy process
        busy = multiprocessing.get_context("spawn").Process(target=disturb, args=(0,), daemon=True)
        busy.start()
        todo = [("inexact", INEXACT.walk, commit(clone, INEXACT, 0))] * args.inexact
        walks = list(heads)
        slow = [("slow", walks[i % len(walks)], heads[walks[i % len(walks)]]) for i in range(args.slow)]
        same = [("same", "", "real")] * args.same
        while slow or same:
            todo += slow[:1] + same[: max(1, round(args.same / max(1, args.slow)))]
            slow, same = slow[1:], same[max(1, round(args.same / max(1, args.slow))) :]
        todo += [("full", "", "real")] * args.full
        try:
            for number, (kind, walk, head) in enumerate(todo):
                cold = number == 0 or kind == "full"
                said = gate(clone, head, None if cold else cache, file, quick=kind != "full")
                found = outcome(kind, walk, said) | {"cold": cold}
                report["runs"].append(found)
                args.json.write_text(json.dumps(report, indent=1) + "\n")
                print(f"{kind} {walk}: {found['seconds']:.0f} s, {found['named'] or 'nothing named'}", flush=True)
        finally:
            busy.terminate()
    print(summary(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
