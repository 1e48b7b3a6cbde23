"""Our calls, the rivals that are installed and the plain copy, measured in turn in one process.

    python -m benchmarks.compare                      # every row, two threads and one
    python -m benchmarks.compare --rows softmax       # rows whose name holds a word (or a pattern)
    python -m benchmarks.compare --quick              # small arrays, few rounds: does it run?

Answers are compared before anything is timed; what disagrees is said and not timed. A row's ratio
is the median over the rounds of our time in units of its base (see `rows.BASES`). A row where a
rival is faster, and a goal that was missed, are marked. Each number of threads has a process of its
own, since most libraries fix theirs at the start; `--runs` repeats the whole and takes medians.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import copies, machine, problems, rivals, shapes, timing
from benchmarks.rows import BASES, RIVALS, Row, all_rows

RESULTS = Path(__file__).parent / "results"
#: elements of an array with --quick
QUICK_ELEMENTS = 20_000
#: rivals this many times slower than we are are timed in three rounds only, and in one
FAR_BEHIND, FAR_OUT = 4.0, 10.0
#: what "like" means: no more than this times the other
LIKE = 1.1


def prepared(row: Row, threads: int, quick: bool) -> tuple[Row, problems.Problem]:
    if quick:
        row = row._replace(shape=row.shape.at_most(QUICK_ELEMENTS))
    problem = problems.make(
        row.shape,
        row.operation,
        dtype=row.dtype,
        soft=row.soft,
        given=row.given,
        threads=threads,
        options=row.options,
    )
    return row, problem


def base_calls(row: Row, problem: problems.Problem) -> dict[str, timing.Call]:
    """What the row is held to, by name; the copy is always there."""
    x, threads = problem.logits, problem.threads
    out = shapes.inputs(row.shape, row.dtype).out
    calls: dict[str, timing.Call] = {"copy": copies.copy(x, out, threads)}
    if row.against == "read":
        calls["read"] = copies.read(x, threads)
    elif row.against == "two reads, one write":
        calls[row.against] = copies.add(x, problem.targets, out, threads)
    elif row.against == "fresh copy":
        calls[row.against] = copies.fresh_copy(x, threads)
    elif row.against == "plain call":
        plain = problems.make(row.shape, row.operation, dtype=row.dtype, threads=threads)
        calls[row.against] = problems.ours(plain).run
    elif row.against == "contiguous":
        plain = problems.make(row.shape.contiguous(), row.operation, dtype=row.dtype, threads=threads)
        calls[row.against] = problems.ours(plain).run
    elif row.against == "one thread":
        calls[row.against] = problems.ours(problem._replace(threads=1)).run
        calls["copy in one thread"] = copies.copy(x, out, 1)
    return calls


def rival_calls(problem: problems.Problem, expected: object) -> tuple[dict, dict[str, str]]:
    """Calls of the rivals whose answers agree with ours, and why the others are not there."""
    calls: dict[str, timing.Call] = {}
    absent: dict[str, str] = {}
    for name in rivals.RIVALS:
        try:
            contender = rivals.contender(name, problem)
        except rivals.Unavailable as reason:
            absent[name] = str(reason)
            continue
        apart = problems.difference(problem, contender.answer(contender.run()), expected)
        if apart:
            absent[name] = f"DISAGREES: {apart}"
        else:
            calls[name] = contender.run
    return calls, absent


def measure(row: Row, threads: int, plan: timing.Plan, quick: bool, with_rivals: bool) -> dict:
    """All times of a row."""
    row, problem = prepared(row, threads, quick)
    own = problems.ours(problem)
    answer = own.answer(own.run())
    if row.operation == "loss_and_grad":
        answer = (answer[0], answer[1].copy())
    elif row.operation != "loss":
        answer = answer.copy()
    others, absent = rival_calls(problem, answer) if with_rivals else ({}, {})
    del answer
    calls = {"ours": own.run, **base_calls(row, problem)}
    once = timing.interleaved({"ours": own.run, **others}, timing.Plan(1, 0.0, plan.rest))
    behind = {name: once[name][0] / once["ours"][0] for name in others}
    near = {name: call for name, call in others.items() if behind[name] <= FAR_BEHIND}
    far = {name: call for name, call in others.items() if FAR_BEHIND < behind[name] <= FAR_OUT}
    samples = {**once, **timing.interleaved({**calls, **near}, plan)}
    if far:
        samples |= timing.interleaved(far, plan._replace(rounds=min(3, plan.rounds)))
    times = timing.medians(samples)
    result = {
        "name": row.name,
        "group": row.group,
        "operation": row.operation,
        "shape": row.shape.name,
        "dimensions": list(row.shape.dimensions),
        "dtype": row.dtype,
        "given": row.given,
        "against": row.against,
        "goal": row.goal,
        "seconds": times,
        "ratio": timing.ratio(samples, "ours", row.against),
        "ratio to the copy": timing.ratio(samples, "ours", "copy"),
        "spread": [min(samples["ours"]), max(samples["ours"])],
        "rivals": {name: times[name] for name in others},
        "absent": absent,
    }
    if row.against == "one thread":
        result["ratio of the copy"] = timing.ratio(samples, "copy", "copy in one thread")
    del calls, near, far, others, own
    gc.collect()
    return result


def judge(results: list[dict]) -> None:
    """Fill in each result's numeric goal and its best rival, which may need other rows."""
    by_shape = {(r["shape"], r["operation"]): r["ratio"] for r in results if r["group"] == "beyond the cache"}
    for result in results:
        goal = result["goal"]
        if goal == "like the copy":
            goal = LIKE * result["ratio of the copy"]
        elif isinstance(goal, str):
            other = by_shape.get((goal.removeprefix("like "), result["operation"]))
            goal = LIKE * other if other is not None else None
        result["bound"] = goal
        best = min(result["rivals"], key=result["rivals"].get, default=None)
        result["best rival"] = best
        result["to the best rival"] = result["seconds"]["ours"] / result["rivals"][best] if best else None


def human(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def table(results: list[dict], threads: int, quick: bool) -> str:
    """Markdown: one line a row. Arrays of --quick are too small to be judged."""
    lines = [
        f"| {threads} thread{'s' if threads > 1 else ''} | ours | held to | ratio | goal | best rival | ours / rival |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        bound = None if quick else r["bound"]
        verdict = "met" if bound is not None and r["ratio"] <= bound else "MISSED"
        goal = "" if bound is None else f"{bound:.2f} {verdict}"
        rival = ""
        if r["best rival"]:
            share = r["to the best rival"]
            lost = share > 1 and not quick
            rival = f"{share:.2f}" + (f" **LOST to {r['best rival']}**" if lost else "")
        disagree = [name for name, reason in r["absent"].items() if reason.startswith("DISAGREES")]
        name = r["name"] + (f" ({', '.join(disagree)}: other answers)" if disagree else "")
        lines.append(
            f"| {name} | {human(r['seconds']['ours'])} | {r['against']} | {r['ratio']:.2f} | "
            f"{goal} | {r['best rival'] or ''} | {rival} |"
        )
    return "\n".join(lines)


def chosen(patterns: list[str]) -> list[Row]:
    rows = all_rows()
    if not patterns:
        return rows
    return [
        row for row in rows if any(p in row.name or p == row.group or fnmatch.fnmatch(row.name, p) for p in patterns)
    ]


def one_process(args: argparse.Namespace) -> None:
    """Measure with one number of threads, in this process; results go to `--json`."""
    import fastswl as swl

    (threads,) = args.threads
    swl.set_num_threads(threads)
    plan = timing.QUICK if args.quick else timing.Plan(rounds=args.rounds)
    results = []
    for row in chosen(args.rows):
        if threads == 1 and row.against == "one thread":
            continue
        results.append(measure(row, threads, plan, args.quick, not args.no_rivals))
        r = results[-1]
        print(f"{row.name}: {human(r['seconds']['ours'])}, {r['ratio']:.2f}", file=sys.stderr)
    args.json.write_text(json.dumps(results))


def combine(runs: list[list[dict]]) -> list[dict]:
    """Medians over runs of every figure of a row, as far as the runs have it. A rival of the first run alone keeps its ratio to what
    ours took in that run."""
    combined = []
    first, *others = runs
    others = [{r["name"]: r for r in run} for run in others]
    for row in first:
        same = [row, *(run[row["name"]] for run in others if row["name"] in run)]
        ours = statistics.median(r["seconds"]["ours"] for r in same) / row["seconds"]["ours"]
        medians: dict = {"ratios of the runs": [r["ratio"] for r in same]}
        for key in ("ratio", "ratio to the copy", "ratio of the copy"):
            if key in row:
                medians[key] = statistics.median(r[key] for r in same)
        for key in ("seconds", "rivals"):
            of_all = set.intersection(*(set(r[key]) for r in same))
            medians[key] = {
                n: statistics.median(r[key][n] for r in same) if n in of_all else row[key][n] * ours for n in row[key]
            }
        combined.append({**row, **medians})
    judge(combined)
    return combined


def in_subprocess(args: argparse.Namespace, threads: int, run: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.compare", "--in-this-process"]
        command += ["--threads", str(threads), "--json", str(file), "--rounds", str(args.rounds)]
        command += ["--quick"] if args.quick else []
        without_rivals = args.rivals_once and run > 0
        command += ["--no-rivals"] if args.no_rivals or without_rivals else []
        rows = args.rows
        if without_rivals:
            rows = [row.name for row in chosen(args.rows) if row.group != RIVALS]
            if not rows:
                return []
        command += ["--rows", *rows] if rows else []
        environment = {**os.environ, **rivals.environment(threads)}
        subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[1])
        return json.loads(file.read_text())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORD", help="only rows like these")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1], help="default: 2 1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=1, help="processes to take the median of")
    parser.add_argument("--quick", action="store_true", help="small arrays, three rounds")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument(
        "--rivals-once", action="store_true", help="rivals, and rows that are theirs alone, in the first run only"
    )
    parser.add_argument("--list", action="store_true", help="print the rows' names and bases")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compare.json")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.list:
        for row in chosen(args.rows):
            print(f"{row.name}  [{row.group}; {BASES[row.against]}; goal {row.goal}]")
        return 0
    if not chosen(args.rows):
        print("no row has such a name; see --list", file=sys.stderr)
        return 2
    if args.in_this_process:
        one_process(args)
        return 0
    report: dict = {"machine": machine.describe(), "quick": args.quick, "threads": {}}
    print(machine.title(report["machine"]))
    for threads in args.threads:
        results = combine([in_subprocess(args, threads, run) for run in range(args.runs)])
        report["threads"][str(threads)] = results
        print("\n" + table(results, threads, args.quick), flush=True)
    file = args.json or RESULTS / ("compare-quick.json" if args.quick else "compare.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    if not args.quick:
        every = [r for rows in report["threads"].values() for r in rows]
        lost = sum((r["to the best rival"] or 0) > 1 for r in every)
        missed = sum(r["bound"] is not None and r["ratio"] > r["bound"] for r in every)
        print(f"\n{len(every)} rows; {missed} missed their goal, {lost} lost to a rival")
    print(f"saved in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
