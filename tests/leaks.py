"""Mixed calls of every public function: the resident size stays, and no array of the caller is kept.

python tests/leaks.py [calls] prints by how many bytes the resident size grew after the warm-up.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref

import numpy as np

import fastswl as swl

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def problems():
    rng = np.random.default_rng(0)
    for shape in ((1, 10), (64, 10), (3, 200), (16, 1000)):
        for dtype in (np.float32, np.float64, np.float16):
            x = rng.normal(size=shape).astype(dtype)
            t = rng.integers(0, shape[1], shape[0])
            yield x, t, np.eye(shape[1], dtype=dtype)[t]


def mixed_calls(given, count):
    layer = swl.SoftmaxWithLoss()
    for number in range(count):
        x, t, soft = given[number % len(given)]
        match number % 8:
            case 0:
                swl.softmax(x)
            case 1:
                swl.log_softmax(x, out=np.empty_like(x))
            case 2:
                swl.logsumexp(x, n_threads=2)
            case 3:
                swl.cross_entropy(x, t)
            case 4:
                swl.cross_entropy_value_and_grad(x, t, reduction="none", label_smoothing=0.1)
            case 5:
                swl.cross_entropy_value_and_grad(x, soft, weight=np.ones(x.shape[1]))
            case 6:
                layer.forward(x, t)
                layer.backward()
            case 7:
                try:
                    swl.cross_entropy(x, t + x.shape[1])
                except IndexError:
                    pass


def kept_references() -> list[str]:
    """The functions after which an array of the caller is still alive."""
    kept = []
    layer = swl.SoftmaxWithLoss()
    calls = {
        "softmax": lambda x, t: swl.softmax(x),
        "logsumexp": lambda x, t: swl.logsumexp(x),
        "cross_entropy": lambda x, t: swl.cross_entropy(x, t),
        "value_and_grad": lambda x, t: swl.cross_entropy_value_and_grad(x, t, grad_out=x),
        "forward": lambda x, t: layer.forward(x, t),
    }
    for name, call in calls.items():
        for _ in range(3):
            x = np.ones((5, 7))
            t = np.zeros(5, np.int64)
            watched = [weakref.ref(x), weakref.ref(t)]
            call(x, t)
            del x, t
            gc.collect()
            if any(reference() is not None for reference in watched):
                kept.append(name)
    watched_layer = swl.SoftmaxWithLoss()
    watched_layer.forward(np.ones((5, 7)), np.zeros(5, np.int64))
    buffer = weakref.ref(watched_layer._buffers.grad)
    del watched_layer
    if buffer() is not None:
        kept.append("the layer's buffers")
    return kept


def main(calls: int = 100_000) -> None:
    given = list(problems())
    mixed_calls(given, 2000)
    gc.collect()
    before = resident()
    mixed_calls(given, calls)
    gc.collect()
    grown = resident() - before
    kept = kept_references()
    if kept:
        sys.exit(f"kept alive: {kept}")
    print(grown)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
