"""Many callers at once, forked children, the library's own thread setting; each layer in a process of its own."""

import os
import subprocess
import sys

import pytest

import fastswl as swl

CONCURRENT = """
import threading, numpy as np, fastswl as swl
rng = np.random.default_rng(0)
problems = [(rng.normal(0, 3, shape).astype(np.float32), rng.integers(0, shape[1], shape[0]))
            for shape in ((1, 10), (64, 10), (5000, 20), (300, 1000))]
alone = [swl.cross_entropy_value_and_grad(x, t, n_threads=1) for x, t in problems]
wrong = []
def work(seed):
    for i in range(60):
        k = (seed + i) % len(problems)
        loss, grad = swl.cross_entropy_value_and_grad(*problems[k], n_threads=2)
        if loss != alone[k].loss or not np.array_equal(grad, alone[k].grad):
            wrong.append((seed, i))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not wrong, wrong
print(swl.threading_layer())
"""

FORKED = """
import os, numpy as np, fastswl as swl
x = np.random.default_rng(0).normal(0, 3, (5000, 20)).astype(np.float32)
expected = swl.softmax(x, n_threads=2)
children = []
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        ok = np.array_equal(swl.softmax(x, n_threads=2), expected)
        os._exit(0 if ok else 3)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert np.array_equal(swl.softmax(x, n_threads=2), expected)
print(swl.threading_layer())
"""

LAYERS = ["tbb", "omp", "workqueue"]


def run(script, layer):
    settings = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    if layer == "tbb":
        del settings["NUMBA_THREADING_LAYER"]  # the library finds it by itself
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == layer


@pytest.mark.parametrize("layer", LAYERS)
def test_sixteen_python_threads_at_once(layer):
    run(CONCURRENT, layer)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_children_after_parallel_use(layer):
    run(FORKED, layer)


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
