"""Exact values and kinds of rows: those of the tests (tests/reference.py, tests/ulp.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

_TESTS = str(Path(__file__).parents[1] / "tests")


def tests_module(name: str):
    """A helper module of the tests."""
    import importlib

    sys.path.insert(0, _TESTS)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(_TESTS)


class Exact(NamedTuple):
    """Results for rows of logits and class indices; loss and gradient of each row for itself."""

    softmax: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    by: str  # what computed them


def exact(x: np.ndarray, targets: np.ndarray) -> Exact:
    """By mpmath for float64 of moderate size, else in longdouble (11 digits more, in bits)."""
    ulp, reference = tests_module("ulp"), tests_module("reference")
    if x.dtype == np.float64 and x.size <= 5000 and np.isfinite(x).all():
        p, _, _, loss, gradient = ulp.mp_rows(x, targets)
        return Exact(p, loss, gradient, "mpmath")
    result = reference.reference_cross_entropy(x, targets, reduction="none")
    return Exact(reference.reference_softmax(x), result.rows, result.grad, "longdouble")


def worst_ulp(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error in units in the last place of `got`."""
    error = tests_module("ulp").ulp_error(got, expected)
    return float(error.max()) if error.size else 0.0
