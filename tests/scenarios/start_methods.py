"""Pools of processes by every start method, after parallel use in the parent; what is passed are the problems' numbers."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from common import agrees, answers, finish, problems

given = problems()
expected = answers(given)


def right(number):
    return agrees(given, expected, number)


def main():
    failures = [] if all(map(right, range(4))) else ["other answers in the parent"]
    for method in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            if not all(pool.map(right, range(20))):
                failures.append(f"other answers in a pool by {method}")
        with ProcessPoolExecutor(2, context) as executor:
            if not all(executor.map(right, range(20))):
                failures.append(f"other answers in an executor by {method}")
    with ThreadPoolExecutor(8) as executor:
        if not all(executor.map(right, range(100))):
            failures.append("other answers in threads")
    finish(failures)


if __name__ == "__main__":
    main()
