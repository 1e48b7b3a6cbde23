"""The shapes that are measured, each written once, and their data.

`SHAPES` maps a name to a `Shape`; `inputs` makes its arrays. The arrays are cached, because asv
calls `setup` again before every sample.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Logits of one kind of work."""

    name: str
    dimensions: tuple[int, ...]
    axis: int = -1  # of the classes
    order: str = "C"  # "F": Fortran order

    @property
    def classes(self) -> int:
        return self.dimensions[self.axis]

    @property
    def rows_shape(self) -> tuple[int, ...]:
        axis = self.axis % len(self.dimensions)
        return self.dimensions[:axis] + self.dimensions[axis + 1 :]

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)

    def at_most(self, elements: int) -> Shape:
        """The same kind of work, smaller: the longest axis is halved until it fits."""
        dimensions = list(self.dimensions)
        while math.prod(dimensions) > elements:
            rows = [n for i, n in enumerate(dimensions) if i != self.axis % len(dimensions)]
            # rows go first: the number of classes decides which kernel runs
            longest = max(rows) if max(rows, default=1) > 1 else max(dimensions)
            dimensions[dimensions.index(longest)] = max(1, longest // 2)
        return self._replace(dimensions=tuple(dimensions))

    def contiguous(self) -> Shape:
        """The same rows and classes with the classes side by side in memory."""
        rows = math.prod(self.rows_shape)
        return Shape(f"{self.name}, contiguous", (rows, self.classes))


SHAPES = {
    shape.name: shape
    for shape in (
        # real work
        Shape("digits", (128, 10)),
        Shape("ImageNet", (256, 1000)),
        Shape("segmentation", (8, 21, 256, 256), axis=1),
        Shape("GBM", (1_000_000, 10)),
        Shape("GBM in columns", (1_000_000, 10), order="F"),
        Shape("language model", (2048, 131072)),
        # small calls
        Shape("one row", (1, 10)),
        Shape("32 rows", (32, 10)),
        Shape("128 rows of 1000", (128, 1000)),
        # within the second-level cache, one for each walk: no other process takes part in their time
        Shape("2048 rows of 10", (2048, 10)),
        Shape("256 rows of 100", (256, 100)),
        Shape("picture of 24 x 24", (1, 100, 24, 24), axis=1),
        Shape("24 rows of 1000", (24, 1000)),
        Shape("8 rows of 3000", (8, 3000)),
        Shape("one row of 1100000", (1, 1_100_000)),
        # at least four times a last cache of 32 MB in float32, by the number of classes
        Shape("2 classes", (24_000_000, 2)),
        Shape("3 classes", (16_000_000, 3)),
        Shape("10 classes", (4_000_000, 10)),
        Shape("32 classes", (1_250_000, 32)),
        Shape("64 classes", (600_000, 64)),
        Shape("100 classes", (400_000, 100)),
        Shape("128 classes", (320_000, 128)),
        Shape("256 classes", (160_000, 256)),
        Shape("512 classes", (80_000, 512)),
        Shape("1000 classes", (65_536, 1000)),
        Shape("32768 classes", (8192, 32768)),
        Shape("131072 classes", (1024, 131072)),
        # between the last cache and the memory
        Shape("65536 rows of 100", (65_536, 100)),
        # few rows
        Shape("one long row", (1, 67_108_864)),
        Shape("four long rows", (4, 1_000_000)),
        # class axis not innermost, beyond the last cache
        Shape("large segmentation", (24, 21, 256, 256), axis=1),
        Shape("10 classes in columns", (4_000_000, 10), order="F"),
    )
}


class Inputs(NamedTuple):
    """Arrays of one problem; nobody may write `logits` and `targets`."""

    logits: np.ndarray
    indices: np.ndarray  # class indices, int64
    axis: int
    out: np.ndarray  # memory for a result in the shape of the logits


def dtype_of(name: str) -> np.dtype:
    """numpy.dtype, also of "bfloat16"."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _fill(shape: Shape, dtype: np.dtype, block: np.ndarray) -> np.ndarray:
    """An array of a shape and order with a block of numbers repeated over it."""
    flat = np.resize(block.astype(dtype), shape.size)
    if shape.order == "F":
        return flat.reshape(shape.dimensions[::-1]).T
    return flat.reshape(shape.dimensions)


@functools.lru_cache(maxsize=2)
def inputs(shape: Shape, dtype: str = "float32") -> Inputs:
    """Logits from N(0, 3**2) and class indices of a shape.

    A million numbers repeat (their count is prime to all shapes here), which makes arrays of a
    gigabyte in a moment. Times hang on the kind of numbers: from 160 classes on a kernel reads rows
    twice that are spread over more than about 85, hold -inf, or whose largest logits differ by more
    than about 20 from row to row. None here do.
    """
    rng = np.random.default_rng(0)
    numbers = 3 * rng.standard_normal(1_000_003, dtype=np.float32)
    logits = _fill(shape, dtype_of(dtype), numbers)
    indices = rng.integers(0, shape.classes, shape.rows_shape)
    out = np.empty_like(logits)
    out.fill(0)  # its pages exist before the clock runs
    for array in (logits, indices):
        array.flags.writeable = False
    return Inputs(logits, indices, shape.axis, out)


@functools.lru_cache(maxsize=2)
def probabilities(shape: Shape, dtype: str = "float32") -> np.ndarray:
    """Soft targets of a shape, each row's sum near 1."""
    rng = np.random.default_rng(1)
    numbers = rng.random(1_000_003, dtype=np.float32) * np.float32(2 / shape.classes)
    targets = _fill(shape, dtype_of(dtype), numbers)
    targets.flags.writeable = False
    return targets


@functools.lru_cache(maxsize=2)
def class_weights(classes: int) -> np.ndarray:
    """Weights of classes from 0.5 to 1.5."""
    return np.random.default_rng(2).uniform(0.5, 1.5, classes)


@functools.lru_cache(maxsize=2)
def ignored(shape: Shape) -> np.ndarray:
    """The class indices of a shape with every tenth row ignored."""
    indices = inputs(shape).indices.copy()
    indices.reshape(-1)[::10] = -100
    return indices
