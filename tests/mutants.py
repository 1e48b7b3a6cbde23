"""Break the library on purpose and see the tests fail: python -m tests.mutants [-l] [words].

Each entry of the table in tests/mutant_table.py is a small error in one file. This copies the library and its tests to a
temporary directory, makes one error at a time and runs the tests that have to notice it: `killed` if every one of them
fails, `SURVIVED` if one passes. Words choose the entries that have one of them in their name, file or tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
#: what the machine code of a kernel can come from; other files leave the compiled kernels as they are
KERNEL_SOURCES = ("kernels/", "simd/", "vectormath.py", "compilation.py", "cache.py", "kept.py")
#: a test that takes longer has been made to wait for ever
SECONDS = 900
PYTEST = "-x -q -rfE --tb=no -p no:cacheprovider --hypothesis-profile=mutants".split()


def copy_of_library(place: Path) -> None:
    for name in ("fastswl", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)


def run_test(test: str, place: Path, cache: Path | str) -> str:
    """Why the test failed; empty if it passed or could not be run."""
    # no files of byte code: an error of the same length in the same second would go unseen
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "NUMBA_CACHE_DIR": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment["COLUMNS"] = "250"
    command = [sys.executable, "-m", "pytest", *PYTEST, f"tests/{test}"]
    try:
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "did not end"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode}"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed:
        print(f"{done.stdout}{done.stderr}\n    {test} cannot be run")
        return ""
    return failed[0]


def run_mutant(mutant: Mutant, place: Path, digest: str, shared_cache: Path | str) -> bool:
    """Whether every test of a mutant fails; `place` is as it was before afterwards."""
    source, cache_module = place / "fastswl" / mutant.file, place / "fastswl" / "cache.py"
    before, cache_before = source.read_text("utf-8"), cache_module.read_text("utf-8")
    assert before.count(mutant.old) == 1, mutant
    source.write_text(before.replace(mutant.old, mutant.new), "utf-8")
    cache = shared_cache
    if mutant.file.startswith(KERNEL_SOURCES):
        cache = place / "cache"
    else:
        with cache_module.open("a", encoding="utf-8") as file:
            file.write(f"\n\ndef sources_digest():\n    return {digest!r}\n")
    try:
        reasons = {test: run_test(test, place, cache) for test in mutant.tests}
    finally:
        cache_module.write_text(cache_before, "utf-8")
        source.write_text(before, "utf-8")
        shutil.rmtree(place / "cache", ignore_errors=True)
    for test, reason in reasons.items():
        print(f"    {'killed' if reason else 'SURVIVED'}  {reason or test}", flush=True)
    return all(reasons.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only entries with one of these in their name, file or tests")
    parser.add_argument("-l", "--list", action="store_true", help="name the entries and run nothing")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.words or any(w in " ".join(map(str, m)) for w in arguments.words)]
    if arguments.list:
        print(*(f"{mutant.name}  ({mutant.file})" for mutant in chosen), sep="\n")
        return 0
    from fastswl.cache import sources_digest

    survivors = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        copy_of_library(place)
        shared_cache = os.environ.get("NUMBA_CACHE_DIR") or place / "shared"
        for number, mutant in enumerate(chosen, 1):
            print(f"{number}/{len(chosen)} {mutant.name}  ({mutant.file})", flush=True)
            begin = time.perf_counter()
            if not run_mutant(mutant, place, sources_digest(), shared_cache):
                survivors.append(mutant.name)
            print(f"    {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{len(chosen) - len(survivors)} killed, {len(survivors)} survived")
    print(*(f"SURVIVED: {name}" for name in survivors), sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
