"""Children forked while another thread compiles kernels, that need other kernels (run with an empty NUMBA_CACHE_DIR)."""

import threading
import time

import numpy as np
from common import finish, forked, wait_for

import fastswl as swl

x = np.random.default_rng(0).normal(0, 3, (20, 10))


def right(dtype):
    p = swl.softmax(x.astype(dtype))
    return abs(float(p[0].sum()) - 1.0) < 0.01


def compile_some():
    for dtype in ("float32", "float16", "int8"):
        right(dtype)


thread = threading.Thread(target=compile_some)
thread.start()
children = []
while thread.is_alive() and len(children) < 4:
    time.sleep(0.3)
    children.append(forked(lambda: right("float64")))
thread.join()
failures = [f"child {i}: {status}" for i, status in enumerate(wait_for(children)) if status != 0]
finish(failures)
