"""Whether the suite runs: each benchmark once, with the first of its parameters.

python -m benchmarks.quick_round     # 0 if none failed; the figures mean nothing
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from asv_runner.discovery import disc_benchmarks


def patterns() -> dict[str, str]:
    """For asv's --bench: each benchmark with its first parameters, by its name."""
    found = {}
    for benchmark in disc_benchmarks("benchmarks"):
        first = ", ".join(values[0] for values in benchmark.params)
        found[benchmark.name] = "^" + re.escape(f"{benchmark.name}({first})" if first else benchmark.name) + "$"
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
    listed = patterns()
    for pattern in listed.values():
        command += ["--bench", pattern]
    asv = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert asv.stdout is not None
    seen = set()
    for line in asv.stdout:
        print(line, end="", flush=True)
        seen.update(re.findall(r"[\w.]+", line))
    # a pattern that fits no benchmark is no error of asv's
    left_out = sorted(name for name in listed if name not in seen)
    for name in left_out:
        print(f"has not run: {name}", file=sys.stderr)
    return asv.wait() or int(bool(left_out))


if __name__ == "__main__":
    sys.exit(main())
