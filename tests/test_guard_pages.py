"""Arrays beside memory that may not be touched: `guarded.py`, in a process that a read too far would end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("guarded.py")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX")


def run(path, seed, calls):
    settings = {**os.environ, "GUARDED_LOG": str(path)}
    command = [sys.executable, str(SCRIPT), str(seed), str(calls)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{done.stderr}\nthe call:\n" + "".join(path.read_text().splitlines(True)[-3:])
    assert done.stdout.strip() == str(calls)


def test_nothing_beside_the_arrays_is_read_or_written(tmp_path):
    run(tmp_path / "log", 0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_beside_the_arrays_is_read_or_written_in_many_calls(tmp_path, seed):
    run(tmp_path / "log", seed, 1500)
