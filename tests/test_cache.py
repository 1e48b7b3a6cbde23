"""Compiled kernels on disk: whatever befalls the files costs a compilation at most."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from numba import config

import fastswl
from fastswl import cache

CALL = """
import numpy as np, fastswl as swl
loss = swl.cross_entropy(np.zeros((3, 4)), [0, 1, 2])
assert abs(loss - np.log(4.0)) < 1e-15, loss
from fastswl.kernels.panel_walks import panel_walk
hits = sum(panel_walk.stats.cache_hits.values())
print("from the cache" if hits else "compiled")
"""

pytestmark = pytest.mark.slow


def call(directory, before="", after="", **environment):
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(directory), **environment}
    program = before + CALL + after
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_second_process_compiles_nothing(tmp_path):
    assert call(tmp_path) == "compiled"
    assert call(tmp_path) == "from the cache"


def test_kernels_on_disk_need_nothing_of_numba_s_lowering(tmp_path):
    """Numba would import all that it can lower, and SciPy for it: three times `import numba`."""
    call(tmp_path)
    check = "import sys\nprint(sorted({'numba.np.linalg', 'numba.np.arraymath', 'scipy.linalg'} & set(sys.modules)))"
    assert call(tmp_path, after=check) == "from the cache\n[]"


def test_a_kernel_that_calls_what_is_not_there_is_compiled(tmp_path):
    """LLVM would end the process for a symbol that it does not find."""
    call(tmp_path)
    none = "from fastswl import cache\ncache.llvm.address_of_symbol = lambda name: None\n"
    assert call(tmp_path, before=none) == "compiled"
    few = "from fastswl import cache\nfind = cache.llvm.address_of_symbol\n"
    few += "cache.llvm.address_of_symbol = lambda name: None if name.startswith('NRT') else find(name)\n"
    assert call(tmp_path, before=few) == "compiled"
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
    files = [*package.glob("kernels/*.py"), *package.glob("simd/*.py"), package / "vectormath.py", package / "kept.py"]
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


def a_copy_of_the_package(folder):
    """The package without what was compiled, and the environment in which it is the one that is imported."""
    shutil.copytree(Path(fastswl.__file__).parent, folder / "fastswl", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run_in(settings, before="", **options):
    command = [sys.executable, "-W", "error", "-c", before + CALL]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_package_that_cannot_be_written_to(tmp_path):
    settings = a_copy_of_the_package(tmp_path / "package")
    # (a directory without the right to write does not stop an administrator; a file in its place does)
    (tmp_path / "package/fastswl/__pycache__").write_text("no directory")
    home = tmp_path / "home"
    home.mkdir()
    settings |= {"HOME": str(home)}
    settings.pop("NUMBA_CACHE_DIR", None)
    settings.pop("XDG_CACHE_HOME", None)
    assert run_in(settings, cwd=tmp_path) == "compiled"
    assert list((home / ".cache/fastswl").glob("*.nbc"))
    assert run_in(settings, cwd=tmp_path) == "from the cache"


def test_a_home_that_is_no_directory_and_nothing_that_can_be_written_to(tmp_path):
    settings = a_copy_of_the_package(tmp_path / "package")
    (tmp_path / "package/fastswl/__pycache__").write_text("no directory")
    file = tmp_path / "file"
    file.write_text("no directory")
    settings |= dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(file))
    settings.pop("NUMBA_CACHE_DIR", None)
    # (where TMPDIR is no directory, Python takes the system's)
    temporary = f"import tempfile; tempfile.tempdir = {str(file)!r}"
    for _ in range(2):
        assert run_in(settings, temporary, cwd=tmp_path) == "compiled"


def test_a_change_of_a_helper_is_noticed(tmp_path):
    settings = a_copy_of_the_package(tmp_path / "package") | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run_in(settings, cwd=tmp_path) == "compiled"
    assert run_in(settings, cwd=tmp_path) == "from the cache"
    helper = tmp_path / "package/fastswl/vectormath.py"
    helper.write_text(helper.read_text() + "\n# changed\n")
    assert run_in(settings, cwd=tmp_path) == "compiled"


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk(tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    settings = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        assert run_in(settings, preexec_fn=limit) == "compiled"
    assert call(tmp_path) == "compiled"
    assert call(tmp_path) == "from the cache"


def test_two_processes_that_compile_at_once(tmp_path):
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", CALL], env=settings, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.communicate(timeout=600)[1] == ""
        assert process.returncode == 0
    assert call(tmp_path) == "from the cache"


def test_a_cache_of_another_processor(tmp_path):
    assert call(tmp_path) == "compiled"
    haswell = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}
    assert call(tmp_path, **haswell) == "compiled"
    assert call(tmp_path, **haswell) == "from the cache"
    assert call(tmp_path) == "from the cache"
