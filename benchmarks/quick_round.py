"""Whether the suite runs: each benchmark once, with the first of its parameters.

python -m benchmarks.quick_round     # 0 if none failed; the figures mean nothing, and none are kept
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from asv_runner.discovery import disc_benchmarks

ROOT = Path(__file__).parents[1]


def patterns() -> list[str]:
    """For asv's --bench: each benchmark with its first parameters."""
    found = []
    for benchmark in disc_benchmarks(str(ROOT / "benchmarks")):
        first = ", ".join(values[0] for values in benchmark.params)
        found.append("^" + re.escape(f"{benchmark.name}({first})" if first else benchmark.name) + "$")
    return found


def configuration(folder: Path) -> Path:
    """That of asv with its results in a folder: it writes down benchmarks and machine in every run."""
    from asv.util import load_json

    settings = load_json(str(ROOT / "asv.conf.json"), js_comments=True)
    settings |= {"version": 1, "repo": str(ROOT), "benchmark_dir": str(ROOT / settings["benchmark_dir"])}
    settings |= {
        "results_dir": str(folder / "results"),
        "env_dir": str(folder / "env"),
        "html_dir": str(folder / "html"),
    }
    file = folder / "asv.conf.json"
    file.write_text(json.dumps(settings))
    return file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quick_round",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "asv", "--config", str(configuration(Path(folder)))]
        command += ["run", "--quick", "--python=same", "--show-stderr", "--attribute", "rounds=1"]
        for pattern in patterns():
            command += ["--bench", pattern]
        return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
