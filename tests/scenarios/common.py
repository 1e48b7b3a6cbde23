"""What the scenarios share: problems with known answers, computed in one thread."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import fastswl as swl

SHAPES = ((1, 10), (64, 10), (6000, 20), (300, 1000))


def problems():
    """Logits and targets of mixed sizes: the first two are small calls, the others are shared between threads."""
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 3, s).astype(np.float32), rng.integers(0, s[1], s[0])) for s in SHAPES]


def answers(given):
    return [swl.cross_entropy_value_and_grad(x, t, n_threads=1) for x, t in given]


def agrees(given, expected, number, n_threads=2):
    """Whether one of the problems has the answer that it had alone, bit for bit."""
    number %= len(given)
    loss, grad = swl.cross_entropy_value_and_grad(*given[number], n_threads=n_threads)
    return loss == expected[number].loss and np.array_equal(grad, expected[number].grad)


def wait_for(children, seconds=120.0):
    """Exit statuses of forked children; those that hang are killed, with status None."""
    end = time.monotonic() + seconds
    statuses = {}
    while len(statuses) < len(children) and time.monotonic() < end:
        for pid in children:
            if pid not in statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[pid] = status
        time.sleep(0.005)
    for pid in children:
        if pid not in statuses:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            statuses[pid] = None
    return list(statuses.values())


def forked(work):
    """The process id of a child that exits with 0 when `work()` is true."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            status = 0 if work() else 4
        finally:
            os._exit(status)
    return pid


def finish(failures):
    """Say what went wrong and end; the layer that was used, if nothing did."""
    if failures:
        print(*failures, sep="\n", file=sys.stderr)
        sys.exit(1)
    print(swl.threading_layer())
