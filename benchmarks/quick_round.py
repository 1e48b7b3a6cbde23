"""Whether the suite runs: each benchmark once, with the first of its parameters.

python -m benchmarks.quick_round     # 0 if none failed; the figures mean nothing
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from asv_runner.discovery import disc_benchmarks


def patterns() -> list[str]:
    """For asv's --bench: each benchmark with its first parameters."""
    found = []
    for benchmark in disc_benchmarks("benchmarks"):
        first = ", ".join(values[0] for values in benchmark.params)
        found.append("^" + re.escape(f"{benchmark.name}({first})" if first else benchmark.name) + "$")
    return found


def main() -> int:
    command = [
        sys.executable,
        "-m",
        "asv",
        "run",
        "--quick",
        "--python=same",
        "--show-stderr",
        "--attribute",
        "rounds=1",
    ]
    for pattern in patterns():
        command += ["--bench", pattern]
    return subprocess.run(command, cwd=Path(__file__).parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
