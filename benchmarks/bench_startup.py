"""Before the first result: import, and the first call with an empty and a filled cache."""

import functools
import os
import subprocess
import sys
import tempfile

FIRST_CALL = """
import time
import numpy as np
import fastswl as swl
x, t = np.zeros((128, 10), np.float32), np.zeros(128, np.int64)
start = time.perf_counter()
swl.cross_entropy_value_and_grad(x, t)
print(time.perf_counter() - start)
"""


def timeraw_import():
    return "import fastswl"


def timeraw_import_numpy():
    """What of the import is NumPy's."""
    return "import numpy"


def _first_call(cache):
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": path}
    command = [sys.executable, "-c", FIRST_CALL]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout)


@functools.cache
def _filled_cache():
    folder = tempfile.TemporaryDirectory()
    _first_call(folder.name)
    return folder


def track_first_call_with_an_empty_cache():
    """The kernels are compiled."""
    with tempfile.TemporaryDirectory() as folder:
        return _first_call(folder)


def track_first_call_with_a_filled_cache():
    """The kernels are read from disk: the median of five processes."""
    folder = _filled_cache().name
    return sorted(_first_call(folder) for _ in range(5))[2]


track_first_call_with_an_empty_cache.unit = "s"
track_first_call_with_a_filled_cache.unit = "s"
