"""The library's own thread setting. (Many callers and forked children: `test_embedding.py`.)"""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastswl as swl


def test_the_setting_is_the_librarys_own():
    import numba

    before, numbas = swl.get_num_threads(), numba.get_num_threads()
    try:
        swl.set_num_threads(1)
        assert swl.get_num_threads() == 1
        assert numba.get_num_threads() == numbas
    finally:
        swl.set_num_threads(before)
    assert swl.get_num_threads() == before


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_number_of_threads_that_is_none(n, error):
    before = swl.get_num_threads()
    with pytest.raises(error, match=repr(n).replace("-", "-")):
        swl.set_num_threads(n)
    assert swl.get_num_threads() == before


def test_other_python_threads_run_while_a_kernel_runs():
    """Held, the GIL would stop the other thread for as long as the kernel runs; released, it has it back at once."""
    x = np.zeros((40_000, 1000), np.float32)
    swl.softmax(x[:100], out=x[:100], n_threads=1)
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    swl.softmax(x, out=x, n_threads=1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    within = [t for t in ticks if start + 0.1 * (end - start) < t < end - 0.1 * (end - start)]
    assert len(within) >= 2


def test_every_block_is_run_once():
    """In place: what a block has been made twice of is not what one thread makes."""
    logits = np.random.default_rng(5).normal(size=(20_000, 200)).astype(np.float32) * 3
    alone, shared = logits.copy(), logits.copy()
    swl.softmax(alone, out=alone, n_threads=1)
    swl.softmax(shared, out=shared, n_threads=2)
    np.testing.assert_array_equal(shared, alone)


def test_a_call_ends_after_its_last_block():
    """Of three rows one thread has two, and takes longer than the other."""
    logits = np.zeros((3, 200_000), np.float32)
    out = np.empty_like(logits)
    for _ in range(200):
        out.fill(np.nan)
        swl.softmax(logits, out=out, n_threads=2)
        assert not np.isnan(out[:, -1]).any()


@pytest.mark.parametrize(
    "code",
    ["import fastswl", "import fastswl; help(fastswl.softmax)", "import fastswl.cli as cli; cli.main(['--help'])"],
)
def test_numba_is_not_imported_to_look_at_the_library(code):
    script = f"import atexit, sys; atexit.register(lambda: print('numba' in sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "False"
