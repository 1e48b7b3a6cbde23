"""Mixed calls of every public function: the resident size stays, and no array of the caller is kept.

python tests/leaks.py [calls] prints by how many bytes the resident size grew after the warm-up, and by how many blocks of
memory Python's own allocator holds more (which has room enough from compiling for small objects to go unseen).
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
        x, t, soft = given[number // 8 % len(given)]
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


class Given:
    """Arrays for every argument that takes one."""

    def __init__(self) -> None:
        self.x = np.ones((5, 7))
        self.indices = np.zeros(5, np.int64)
        self.soft = np.full((5, 7), 1 / 7)
        self.rows = np.ones(5)
        self.classes = np.ones(7)
        self.mask = np.ones((5, 7), np.bool_)
        self.full_out = np.empty((5, 7))
        self.rows_out = np.empty(5)


def kept_references() -> list[str]:
    """The calls after which an array of the caller is still alive, and which."""
    kept = []
    layer = swl.SoftmaxWithLoss()
    both = swl.cross_entropy_value_and_grad
    calls = {
        "softmax": lambda a: swl.softmax(a.x),
        "softmax into out": lambda a: swl.softmax(a.x, out=a.full_out),
        "log_softmax": lambda a: swl.log_softmax(a.x),
        "log_softmax over an axis": lambda a: swl.log_softmax(a.x, 0, out=a.full_out),
        "logsumexp": lambda a: swl.logsumexp(a.x, out=a.rows_out),
        "logsumexp with factors": lambda a: swl.logsumexp(a.x, b=a.soft, return_sign=True),
        "cross_entropy": lambda a: swl.cross_entropy(a.x, a.indices),
        "value_and_grad": lambda a: both(a.x, a.indices, grad_out=a.x),
        "value_and_grad with weights": lambda a: both(
            a.x, a.indices, weight=a.classes, sample_weight=a.rows, class_mask=a.mask, grad_out=a.full_out
        ),
        "value_and_grad of rows": lambda a: both(
            a.x, a.soft, reduction="none", upstream=a.rows, out=a.rows_out, grad_out=a.full_out
        ),
        "forward and backward": lambda a: (layer.forward(a.x, a.indices), layer.backward(out=a.full_out)),
        "forward, probabilities": lambda a: layer.forward(a.x, a.soft),
    }
    for name, call in calls.items():
        for _ in range(3):
            given = Given()
            watched = {argument: weakref.ref(array) for argument, array in vars(given).items()}
            call(given)
            del given
            gc.collect()
            kept += [f"{argument} of {name}" for argument, array in watched.items() if array() is not None]
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
    before, blocks = resident(), sys.getallocatedblocks()
    mixed_calls(given, calls)
    gc.collect()
    grown, more = resident() - before, sys.getallocatedblocks() - blocks
    kept = kept_references()
    if kept:
        sys.exit(f"kept alive: {kept}")
    print(grown, more)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
