"""Children forked while other threads compile, kernels of the library and of the program, that need other kernels.

Run with an empty NUMBA_CACHE_DIR. In a child two threads ask for them: the thread that forked may take a lock again that it
held over the fork, another one may not.
"""

import threading
import time

import numba
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


def compile_own():
    number = 0
    while library.is_alive():
        number += 1
        numba.njit(lambda x, number=number: x + number)(1.0)


def in_two_threads():
    rights = []
    other = threading.Thread(target=lambda: rights.append(right("float64")))
    other.start()
    rights.append(right("float64"))
    other.join()
    return rights == [True, True]


library = threading.Thread(target=compile_some)
program = threading.Thread(target=compile_own)
library.start()
program.start()
children = []
while library.is_alive() and len(children) < 4:
    time.sleep(0.3)
    children.append(forked(in_two_threads))
library.join()
program.join()
failures = [f"child {i}: {status}" for i, status in enumerate(wait_for(children, 300.0)) if status != 0]
if not children:
    failures.append("nothing was compiled")
finish(failures)
