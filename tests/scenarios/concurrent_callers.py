"""16 Python threads that call at mixed sizes, each call asking for all threads; never more than 2 regions a processor."""

import threading

import numba
from common import agrees, answers, finish, problems

given = problems()
expected = answers(given)
failures = []


def work(seed):
    for i in range(60):
        if not agrees(given, expected, seed + i, numba.config.NUMBA_NUM_THREADS):
            failures.append(f"thread {seed}, call {i}: another answer")


threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
finish(failures)
