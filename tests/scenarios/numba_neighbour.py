"""A program with parallel Numba kernels of its own: neither side's thread count touches the other's."""

import threading

import numba
import numpy as np
from common import agrees, answers, finish, problems

import fastswl as swl

failures = []


@numba.njit(parallel=True)
def threads_used(n):
    used = np.zeros(n, np.int64)
    for i in numba.prange(n):
        used[i] = numba.get_thread_id()
    return numba.get_num_threads()


def expect(what, value, wanted):
    if value != wanted:
        failures.append(f"{what} is {value}, not {wanted}")


most = numba.config.NUMBA_NUM_THREADS
given = problems()
expected = answers(given)
swl.set_num_threads(1)
expect("Numba's count after ours was set to 1", numba.get_num_threads(), most)
expect("that of its kernels", threads_used(1000), most)
swl.set_num_threads(most)
numba.set_num_threads(1)
for number in range(8):
    expect("the answer", agrees(given, expected, number, most), True)
expect("Numba's count after calls of ours", numba.get_num_threads(), 1)
expect("that of its kernels", threads_used(1000), 1)
expect("ours", swl.get_num_threads(), most)
numba.set_num_threads(most)


def elsewhere():
    # a thread of its own: Numba keeps a count for each
    numba.set_num_threads(1)
    for number in range(8):
        expect("the answer in a thread", agrees(given, expected, number, most), True)
    expect("Numba's count in a thread", numba.get_num_threads(), 1)


thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
expect("Numba's count", numba.get_num_threads(), most)
finish(failures)
