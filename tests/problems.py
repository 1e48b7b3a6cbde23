"""Logits, targets and options for the tests of the loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    logits: np.ndarray
    targets: np.ndarray
    axis: int
    options: dict


def sample_shape(logits, axis) -> tuple[int, ...]:
    """Shape of the per-sample losses."""
    shape = list(np.shape(logits))
    del shape[axis]
    return tuple(shape)


def class_indices(rng, logits, axis, dtype=np.int64) -> np.ndarray:
    classes = np.shape(logits)[axis]
    return np.asarray(rng.integers(0, classes, sample_shape(logits, axis))).astype(dtype)


def soft_targets(rng, logits, axis, dtype=None) -> np.ndarray:
    """Probabilities with some exact zeros; rows sum to about 1."""
    t = rng.exponential(1, np.shape(logits)) * (rng.random(np.shape(logits)) < 0.8)
    t = t / np.maximum(t.sum(axis=axis, keepdims=True), 1e-3)
    return t.astype(np.asarray(logits).dtype if dtype is None else dtype)


def one_hot(indices, classes, axis=-1, dtype=np.float64) -> np.ndarray:
    return np.moveaxis(np.eye(classes, dtype=dtype)[indices], -1, axis)


TARGET_KINDS = {"indices": class_indices, "probabilities": soft_targets}

# Values that float32 holds exactly, so that reading an option is no source of error.
OPTIONS = {
    "plain": lambda rng, x, axis: {},
    "weight": lambda rng, x, axis: {"weight": _eighths(rng, np.shape(x)[axis])},
    "weight_with_zeros": lambda rng, x, axis: {"weight": np.arange(np.shape(x)[axis]) % 3 / 2},
    "sample_weight": lambda rng, x, axis: {"sample_weight": _eighths(rng, sample_shape(x, axis))},
    "sample_weight_with_zeros": lambda rng, x, axis: {
        "sample_weight": rng.integers(0, 3, sample_shape(x, axis)).astype(np.float64)
    },
    "smoothing": lambda rng, x, axis: {"label_smoothing": 0.125},
    "smoothing_only": lambda rng, x, axis: {"label_smoothing": 1.0},
    "z_loss": lambda rng, x, axis: {"z_loss": 0.0625},
    "logit_scale": lambda rng, x, axis: {"logit_scale": 1.25},
    "softcap": lambda rng, x, axis: {"softcap": 6.0},
    "class_mask": lambda rng, x, axis: {"class_mask": _some(rng, (np.shape(x)[axis],))},
    "class_mask_per_row": lambda rng, x, axis: {"class_mask": _some(rng, np.shape(x))},
    "ignore_index": lambda rng, x, axis: {"ignore_index": 1},
}
ONLY_WITH_INDICES = {"ignore_index"}


def _eighths(rng, shape):
    return rng.integers(1, 17, shape) / 8


def _some(rng, shape):
    return rng.random(shape) < 0.75


def random_problem(seed: int, dtype) -> Problem:
    """Any mixture of options, target kind, number of axes and class axis."""
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 5))
    axis = int(rng.integers(-ndim, ndim))
    shape = list(rng.integers(1, 5, ndim))
    shape[axis] = int(rng.choice([1, 2, 3, 7, 10, 17, 40, 100, 130, 300, 1100]))
    logits = rng.normal(0, rng.choice([1, 5, 20]), shape).astype(dtype)
    kind = str(rng.choice(list(TARGET_KINDS)))
    options = {}
    for name, make in OPTIONS.items():
        if rng.random() < 0.25 and not (kind != "indices" and name in ONLY_WITH_INDICES):
            options |= make(rng, logits, axis)
    if rng.random() < 0.2:
        options["normalizer"] = float(rng.integers(1, 9))
    else:
        options["reduction"] = str(rng.choice(["none", "sum", "mean"]))
    options["empty"] = str(rng.choice(["nan", "zero"]))
    return Problem(logits, TARGET_KINDS[kind](rng, logits, axis), axis, options)
