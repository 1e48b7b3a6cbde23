"""Other threads are kept off the caller's processor while they are woken, and may run where they might before afterwards."""

import ctypes
import os
import threading
import time

import numpy as np
import pytest

import fastswl as swl
from fastswl import regions, threads
from fastswl.kernels.region import GETAFFINITY, GETCPU, GETTID, MASK_BYTES, MOST_PLACED, PLACED, SETAFFINITY, WORKERS

pytestmark = pytest.mark.skipif(
    not regions._region[GETTID // 8] or threads._available_processors() < 2,
    reason="one processor, or no system function that says where a thread may run",
)


@pytest.fixture
def logits():
    return np.random.default_rng(3).normal(size=(30_000, 1000)).astype(np.float32)


def rest():
    time.sleep(0.02)


@pytest.fixture
def worker(logits):
    """The system's number of a thread that helps."""
    slots = slice(WORKERS // 8, WORKERS // 8 + MOST_PLACED)
    regions._region[slots] = 0
    for _ in range(100):
        swl.softmax(logits, out=logits, n_threads=2)
        known = regions._region[slots]
        if known.any():
            return int(known[known != 0][0])
    raise AssertionError("no thread has helped in 100 calls")


def affinities(logits, worker):
    """Where the worker was allowed to run, in the order seen, while a call ran and after it."""
    seen = [os.sched_getaffinity(worker)]
    done = threading.Event()

    def look():
        while not done.is_set():
            now = os.sched_getaffinity(worker)
            if now != seen[-1]:
                seen.append(now)

    looker = threading.Thread(target=look)
    looker.start()
    swl.softmax(logits, out=logits, n_threads=2)
    done.set()
    looker.join()
    return [*seen, os.sched_getaffinity(worker)]


def test_a_thread_that_sleeps_is_woken_elsewhere(logits, worker):
    for _ in range(20):
        rest()
        before, *during, after = affinities(logits, worker)
        assert after == before
        narrower = [processors for processors in during if processors < before]
        assert all(len(before - processors) == 1 for processors in narrower)
        if narrower:
            return
    raise AssertionError("allowed everywhere all the time")


def test_a_thread_that_is_awake_is_left_alone(logits, worker, monkeypatch):
    monkeypatch.setattr(threads, "AWAKE_SECONDS", 1000.0)
    for _ in range(3):
        rest()
        before = os.sched_getaffinity(worker)
        assert all(processors == before for processors in affinities(logits, worker))


@pytest.mark.parametrize("place", ["where the caller is", "elsewhere"])
def test_a_users_affinity_is_honoured(logits, worker, place):
    everywhere, own = os.sched_getaffinity(worker), os.sched_getaffinity(0)
    first, second = sorted(everywhere)[:2]
    try:
        os.sched_setaffinity(0, {first})
        os.sched_setaffinity(worker, {first if place == "where the caller is" else second})
        pinned = os.sched_getaffinity(worker)
        for _ in range(3):
            rest()
            swl.softmax(logits, out=logits, n_threads=2)
            assert os.sched_getaffinity(worker) == pinned
    finally:
        os.sched_setaffinity(worker, everywhere)
        os.sched_setaffinity(0, own)


@pytest.mark.parametrize(("own", "put_back"), [({1, 2}, [{1, 2}]), ({0, 1, 2, 3}, [])])
def test_of_four_processors(logits, own, put_back):
    """The caller is on the second; a thread that may be on all gets leave for all there are, or ever will be."""
    asked = []

    def as_set(address):
        words = np.ctypeslib.as_array((ctypes.c_uint64 * (MASK_BYTES // 8)).from_address(address))
        return {n for n in range(8 * MASK_BYTES) if int(words[n // 64]) >> n % 64 & 1}

    def get(number, size, address):
        asked.append((number, "get"))
        allowed = next((made for _, made in reversed(asked) if made != "get"), own) & {0, 1, 2, 3}
        (ctypes.c_uint64 * (size // 8)).from_address(address)[:] = [
            sum(1 << n for n in allowed),
            *[0] * (size // 8 - 1),
        ]
        return 0

    def put(number, size, address):
        asked.append((number, as_set(address)))
        return 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_int64,) * 3)
    functions = {GETCPU: function(lambda *_: 1), GETAFFINITY: function(get), SETAFFINITY: function(put)}
    before = regions._region.copy()
    try:
        for place, made in functions.items():
            regions._region[place // 8] = ctypes.cast(made, ctypes.c_void_p).value
        regions._region[WORKERS // 8 : WORKERS // 8 + MOST_PLACED] = 0
        regions._region[WORKERS // 8 + 4] = 77
        rest()
        swl.softmax(logits, out=logits, n_threads=2)
    finally:
        regions._region[:] = before
    everywhere = set(range(8 * MASK_BYTES))
    steps = [(77, "get"), (77, own - {1}), (77, everywhere), (77, "get"), *((77, made) for made in put_back)]
    assert [step for step in asked if step[0] == 77] == steps


def test_a_worker_that_is_gone_is_passed_over(logits):
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    regions._region[WORKERS // 8 : WORKERS // 8 + MOST_PLACED] = thread.native_id
    rest()
    expected = swl.softmax(logits, n_threads=1)
    np.testing.assert_array_equal(swl.softmax(logits, n_threads=2), expected)
    assert not regions._region[PLACED // 8 : PLACED // 8 + MOST_PLACED].any()


def test_a_worker_noted_twice_is_let_go(logits, worker):
    before = os.sched_getaffinity(worker)
    regions._region[WORKERS // 8 : WORKERS // 8 + MOST_PLACED] = worker
    for _ in range(3):
        rest()
        swl.softmax(logits, out=logits, n_threads=2)
        assert os.sched_getaffinity(worker) == before


def test_several_callers_at_once_leave_all_as_it_was(logits, worker):
    before = os.sched_getaffinity(worker)

    def work(part):
        for _ in range(30):
            time.sleep(0.001)
            swl.softmax(part, out=part, n_threads=4)

    callers = [threading.Thread(target=work, args=(part,)) for part in np.split(logits[:3000], 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert os.sched_getaffinity(worker) == before
    assert regions._region[0] == 0
