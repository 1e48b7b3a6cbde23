"""joblib's processes (loky, multiprocessing) and threads; a worker asks for its share of processors only."""

import os

from common import agrees, answers, finish, problems
from joblib import Parallel, delayed

import fastswl as swl


def right(number):
    given = problems()
    return agrees(given, answers(given), number)


def share():
    return swl.get_num_threads()


def main():
    failures = [] if right(2) else ["other answers in the parent"]
    for backend in ("loky", "multiprocessing", "threading"):
        if not all(Parallel(n_jobs=2, backend=backend)(delayed(right)(number) for number in range(20))):
            failures.append(f"other answers by {backend}")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for threads in set(Parallel(n_jobs=2, backend="loky")(delayed(share)() for _ in range(8))):
        if threads > max(1, processors // 2):
            failures.append(f"{threads} threads in each of 2 workers on {processors} processors")
    finish(failures)


if __name__ == "__main__":
    main()
