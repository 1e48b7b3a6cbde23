"""Ctrl-C at 300 moments of a loop of calls: what comes after is right, and no count or setting is another."""

import os
import signal
import sys
import threading
import time

import numpy as np
from common import agrees, answers, finish, problems

import fastswl as swl
from fastswl import forks, regions

# a shell may have it ignored in what runs in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
given = problems()
expected = answers(given)
failures = []
before = (swl.get_num_threads(), regions._region[0], forks.pool.locked(), forks.serial_only)
layer = swl.SoftmaxWithLoss()
rng = np.random.default_rng(1)
n_interrupts = int(sys.argv[1]) if len(sys.argv) > 1 else 300
for number in range(8):
    # all that is to be compiled; else the interrupts would meet nothing but that
    agrees(given, expected, number)
    layer.forward(*given[number % 4])
    layer.backward()


def interrupt():
    for _ in range(n_interrupts):
        ready.wait()
        ready.clear()
        time.sleep(rng.random() * 0.003)
        os.kill(os.getpid(), signal.SIGINT)


ready = threading.Event()
thread = threading.Thread(target=interrupt)
thread.start()
caught = 0
number = 0
while caught < n_interrupts:
    try:
        ready.set()
        while True:
            number += 1
            x, t = given[number % 4]
            if not agrees(given, expected, number):
                failures.append(f"call {number}: another answer")
                break
            layer.forward(x, t)
            layer.backward()
    except KeyboardInterrupt:
        caught += 1
thread.join()
for number in range(8):
    if not agrees(given, expected, number):
        failures.append("another answer after the interrupts")
after = (swl.get_num_threads(), regions._region[0], forks.pool.locked(), forks.serial_only)
if after != before:
    failures.append(f"{before} became {after}")
finish(failures)
