"""All walks against the reference, in a process whose environment says how kernels are compiled.

Prints the worst error in ulp for float32 and for float64.
"""

from __future__ import annotations

import sys

import numpy as np
from reference import reference_cross_entropy, reference_log_softmax, reference_softmax
from ulp import ulp_error

import fastswl as swl

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def problems():
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        for shape, axis in (
            ((70, 3), -1),
            ((70, 10), -1),
            ((21, 40), 0),
            ((9, 100), -1),
            ((5, 700), -1),
            ((2, 9001), -1),
        ):
            x = rng.normal(0, 5, shape).astype(dtype)
            x[rng.random(shape) < 0.05] = -np.inf
            rows = tuple(np.delete(shape, axis))
            yield x, rng.integers(0, shape[axis], rows), axis


def main():
    if "--flushed" in sys.argv:
        import torch

        assert torch.set_flush_denormal(True)
    worst = dict.fromkeys(DTYPES, 0.0)

    def note(dtype, error):
        worst[dtype] = max(worst[dtype], float(error.max(initial=0.0)))

    for x, targets, axis in problems():
        # results below the normal range are 0 where these are flushed
        smallest = float(np.finfo(x.dtype).tiny)
        for got, exact in (
            (swl.softmax(x, axis), reference_softmax(x, axis)),
            (swl.log_softmax(x, axis), reference_log_softmax(x, axis)),
        ):
            error = ulp_error(got, exact)
            note(x.dtype, error[np.abs(exact) >= smallest])
        for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.25}):
            result = swl.cross_entropy_value_and_grad(x, targets, axis, reduction="none", **options)
            exact = reference_cross_entropy(x, targets, axis, reduction="none", **options)
            error = ulp_error(result.loss, exact.rows, exact.rows_terms)
            note(x.dtype, error)
            error = ulp_error(result.grad, exact.grad, exact.grad_terms)
            note(x.dtype, error[exact.grad_terms >= smallest])
    print(*worst.values())


main()
