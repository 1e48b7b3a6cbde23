"""Random calls (`fuzz.py`) and many calls (`leaks.py`), each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(name, *arguments, **environment):
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    settings = {**os.environ, **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=1800)


def fuzz(path, seed, calls):
    done = run("fuzz.py", seed, calls, FUZZ_LOG=str(path))
    assert done.returncode == 0, f"{done.stderr}\nthe call: {path.read_text().splitlines()[-1:]}"
    results, errors = map(int, done.stdout.split())
    assert results + errors == calls
    assert results > calls / 2 and errors > calls / 20


def test_random_calls(tmp_path):
    fuzz(tmp_path / "log", 0, 300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_20_000_random_calls(tmp_path, seed):
    fuzz(tmp_path / "log", seed, 5000)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_100_000_calls_keep_no_memory():
    done = run("leaks.py", 100_000)
    assert done.returncode == 0, done.stderr
    grown, blocks = map(int, done.stdout.split())
    # 0.1 MB as measured; 100 bytes kept by one call in eight are 1.2, and 12,500 blocks
    assert grown < 1 << 19
    assert blocks < 1000
