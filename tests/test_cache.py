"""Compiled kernels on disk: whatever befalls the files costs a compilation at most."""

import os
import subprocess
import sys

import pytest

CALL = """
import numpy as np, fastswl as swl
loss = swl.cross_entropy(np.zeros((3, 4)), [0, 1, 2])
assert abs(loss - np.log(4.0)) < 1e-15, loss
from fastswl.kernels.panel import panel_walk
hits = sum(panel_walk.stats.cache_hits.values())
print("from the cache" if hits else "compiled")
"""

pytestmark = pytest.mark.slow


def call(cache, **environment):
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    done = subprocess.run([sys.executable, "-W", "error", "-c", CALL], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_second_process_compiles_nothing(tmp_path):
    assert call(tmp_path) == "compiled"
    assert call(tmp_path) == "from the cache"


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_a_damaged_file_is_made_anew(tmp_path, ending):
    call(tmp_path)
    for path in tmp_path.rglob(f"*{ending}"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"garbage")
    assert call(tmp_path) == "compiled"
    assert call(tmp_path) == "from the cache"


def test_a_directory_that_is_none(tmp_path):
    place = tmp_path / "file"
    place.write_text("no directory")
    assert call(place / "below") == "compiled"


def test_no_home(tmp_path):
    assert call(tmp_path, HOME=str(tmp_path / "missing")) == "compiled"
