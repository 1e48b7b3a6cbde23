"""A child forked while another thread holds LLVM's lock, as one does that frees compiled code.

Run with an empty NUMBA_CACHE_DIR: the child has to compile.
"""

import threading
import time

import numpy as np
from common import finish, forked, wait_for
from llvmlite.binding import ffi

import fastswl as swl

held = threading.Event()


def hold():
    with ffi.lib._lock:
        held.set()
        time.sleep(0.5)


def compiles():
    return abs(float(swl.softmax(np.ones((3, 4)))[0].sum()) - 1.0) < 0.01


swl.threading_layer()  # Numba is there
freeing = threading.Thread(target=hold)
freeing.start()
held.wait()
children = [forked(compiles)]
freeing.join()
finish([f"child {i}: {status}" for i, status in enumerate(wait_for(children, 60.0)) if status != 0])
