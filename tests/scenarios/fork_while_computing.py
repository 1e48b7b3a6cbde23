"""Children forked while other threads compute: 100 by the main thread, 100 by another one."""

import sys
import threading
import warnings

from common import agrees, answers, finish, forked, problems, wait_for

if sys.version_info >= (3, 12):
    # Python's own warning, about any fork of a process with threads
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)

given = problems()
expected = answers(given)
stop = threading.Event()
failures = []


def compute(seed):
    number = seed
    while not stop.is_set():
        if not agrees(given, expected, number):
            failures.append(f"thread {seed}: another answer")
            return
        number += 1


def fork_children(who):
    for first in range(0, 100, 10):
        children = [forked(lambda n=n: agrees(given, expected, n)) for n in range(first, first + 10)]
        statuses = wait_for(children)
        failures.extend(f"child {first + i} of {who}: {s}" for i, s in enumerate(statuses) if s != 0)


agrees(given, expected, 2)
threads = [threading.Thread(target=compute, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
fork_children("the main thread")
other = threading.Thread(target=fork_children, args=("another thread",))
other.start()
other.join()
stop.set()
for thread in threads:
    thread.join()
finish(failures)
