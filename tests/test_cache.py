"""Compiled kernels on disk: whatever befalls the files costs a compilation at most."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from numba import config

from fastswl import cache

CALL = """
import numpy as np, fastswl as swl
loss = swl.cross_entropy(np.zeros((3, 4)), [0, 1, 2])
assert abs(loss - np.log(4.0)) < 1e-15, loss
from fastswl.kernels.panel import panel_walk
hits = sum(panel_walk.stats.cache_hits.values())
print("from the cache" if hits else "compiled")
"""

pytestmark = pytest.mark.slow


def call(directory):
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(directory)}
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


def test_a_flipped_bit_is_found(tmp_path):
    """Whole files, but for one bit in the middle, in the machine code: running them could do anything."""
    call(tmp_path)
    for path in tmp_path.rglob("*.nbc"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert call(tmp_path) == "compiled"
    assert call(tmp_path) == "from the cache"


def test_every_source_of_a_kernel_counts(tmp_path, monkeypatch):
    package = tmp_path / "fastswl"
    shutil.copytree(cache._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "_PACKAGE", package)
    digests = {cache.sources_digest.__wrapped__()}
    files = [*package.glob("kernels/*.py"), *package.glob("simd/*.py"), package / "vectormath.py"]
    for path in files:
        path.write_text(path.read_text("utf-8") + "\n# changed\n", "utf-8")
        digests.add(cache.sources_digest.__wrapped__())
    assert len(digests) == len(files) + 1 > 10


def test_the_first_directory_that_can_be_written_to(tmp_path, monkeypatch):
    file = tmp_path / "file"  # below a file nothing can be written
    file.write_text("no directory")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    find = cache.cache_directory.__wrapped__
    monkeypatch.setattr(cache, "_PACKAGE", tmp_path / "package")
    assert find() == tmp_path / "package" / "__pycache__"
    monkeypatch.setattr(cache, "_PACKAGE", file)
    assert find() == tmp_path / "home" / "fastswl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    if os.name == "posix":
        assert find() == tmp_path / "user" / ".cache" / "fastswl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert find().parent == tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    assert find() is None
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "asked for"))
    assert find() == tmp_path / "asked for" / "fastswl"


def test_a_directory_that_is_none(tmp_path):
    place = tmp_path / "file"
    place.write_text("no directory")
    assert call(place / "below") == "compiled"
