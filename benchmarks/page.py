"""The page of the suite over the history of the repository, from nothing to the browser.

    python -m benchmarks.page                         # measure commits that have no results, publish, preview
    python -m benchmarks.page --range NEW             # what asv's own `run` takes as a range
    python -m benchmarks.page --no-run --no-preview   # publish what is there

A name of a machine stands for one CPU: where `results/asv` has another one under it, nothing is measured (exit 2).

asv makes a virtual environment, builds each commit into it and runs the benchmarks of `HISTORY` (or
--bench) a few times each; results are kept in `results/asv`, the page in `.asv/html`. asv's page takes
its scripts from three other hosts; where npm is installed they are put beside the page instead, so
that it also opens without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import machine

ROOT = Path(__file__).parents[1]
HTML = ROOT / ".asv" / "html"
RESULTS = ROOT / "benchmarks" / "results" / "asv"
#: the machine whose results are kept
MACHINE = "epyc-zen4-2core"
#: what is measured at each commit: the walks, call overhead, exactness, and what carries to other machines
HISTORY = (
    r"^bench_inputs\.Walks",
    r"^bench_overhead\.OneRow\.time_1000_calls_of_value_and_grad$",
    r"^bench_softmax_family\.Softmax\.time_softmax\('ImageNet'\)",
    r"^bench_accuracy\.WorstError\.track_worst_ulp_of_the_gradient\('float32', (10|1000)\)",
    r"^bench_ratios\.ToACopy\.track_ratio_to_a_copy\('loss_and_grad', '1000 classes'\)",
)
#: one process for each benchmark, few samples: a page needs all commits more than it needs digits
ATTRIBUTES = ("rounds=1", "repeat=(3, 10, 1.0)", "warmup_time=0.05", "sample_time=0.01")
#: file of an npm package for each script that asv loads from elsewhere, by what its address ends in
SCRIPTS = {
    "jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js"),
    "jquery.flot.min.js": ("jquery-flot@0.8.3", "jquery.flot.js"),
    "jquery.flot.time.min.js": ("jquery-flot@0.8.3", "jquery.flot.time.js"),
    "jquery.flot.selection.min.js": ("jquery-flot@0.8.3", "jquery.flot.selection.js"),
    "jquery.flot.categories.min.js": ("jquery-flot@0.8.3", "jquery.flot.categories.js"),
    "jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    # 1.0.1, which asv names, is not on npm
    "stupidtable.min.js": ("stupid-table-plugin@1.1.3", "stupidtable.min.js"),
    "md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js"),
    "bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}
_ELSEWHERE = re.compile(r'(src|href)="https://[^"]*/([^"/]+\.(?:js|css))"([^>]*)>')


def asv(*arguments: str) -> None:
    run = subprocess.run([sys.executable, "-m", "asv", *arguments], cwd=ROOT)
    # 2: something failed at some commit, and asv wrote down what (the first commits have no README and don't build)
    if run.returncode not in (0, 2):
        raise SystemExit(run.returncode)


def this_machine() -> dict[str, str]:
    """What asv is to write about this machine."""
    about = machine.describe()
    facts = {"os": about["system"], "arch": about["target"], "cpu": about["cpu"], "num_cpu": str(about["cores"])}
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {**facts, "ram": f"{gigabytes:.0f} GB"}


def other_machine(name: str, facts: dict[str, str]) -> str:
    """What the kept results of a name were measured on, if that was another machine; else nothing."""
    file = RESULTS / name / "machine.json"
    if not file.exists():
        return ""
    kept = json.loads(file.read_text())
    return ", ".join(f"{key} {kept[key]}, not {facts[key]}" for key in ("arch", "cpu") if kept[key] != facts[key])


def describe_machine(name: str, facts: dict[str, str]) -> None:
    asv("machine", "--machine", name, "--yes", *(word for key, value in facts.items() for word in (f"--{key}", value)))


def run(commits: str, name: str, benchmarks: list[str]) -> None:
    command = ["run", commits, "--machine", name, "--skip-existing-commits", "--show-stderr"]
    for pattern in benchmarks:
        command += ["--bench", pattern]
    for attribute in ATTRIBUTES:
        command += ["--attribute", attribute]
    asv(*command)


def bring_scripts(folder: Path) -> bool:
    """Put the scripts that a published page loads from elsewhere beside it; False without npm."""
    npm = shutil.which("npm")
    if npm is None:
        return False
    packages = sorted({package for package, _ in SCRIPTS.values()})
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", temporary, *packages]
        subprocess.run(command, cwd=temporary, check=True, capture_output=True)
        for name, (package, file) in SCRIPTS.items():
            source = Path(temporary, "node_modules", package.rpartition("@")[0], file)
            shutil.copy(source, folder / name)
    for page in folder.glob("*.html"):
        # without the digests: flot is the readable file here, not the shortened one
        page.write_text(_ELSEWHERE.sub(r'\1="\2">', page.read_text()))
    return True


def publish(folder: Path = HTML) -> None:
    asv("publish", "--html-dir", str(folder))
    if not bring_scripts(folder):
        print("npm is not installed: the page takes its scripts from their hosts", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--range", default="ALL", help="of commits, as asv's run takes it; default ALL")
    parser.add_argument("--bench", nargs="+", default=list(HISTORY), metavar="PATTERN", help="other benchmarks")
    parser.add_argument("--machine", default=MACHINE, help=f"name to keep results under; default {MACHINE}")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--no-preview", action="store_true")
    args = parser.parse_args(arguments)
    if not args.no_run:
        facts = this_machine()
        other = other_machine(args.machine, facts)
        if other:
            print(
                f"{args.machine} is another machine ({other}): choose a name for this one, --machine", file=sys.stderr
            )
            return 2
        describe_machine(args.machine, facts)
        run(args.range, args.machine, args.bench)
    publish()
    if not args.no_preview:
        asv("preview")
    return 0


if __name__ == "__main__":
    sys.exit(main())
