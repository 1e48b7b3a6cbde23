"""The rows of the comparison: what is measured, to what it is held, and how near it is to come.

Arrays lie at least four times beyond a last cache of 32 MB where a row's goal is about memory.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.shapes import SHAPES, Shape

#: what our call is held to: copies of the logits' memory, or another call of ours
BASES = {
    "copy": "parallel plain copy of the logits into warm memory",
    "read": "parallel plain sum of the logits",
    "two reads, one write": "parallel plain sum of two arrays into a third",
    "fresh copy": "parallel plain copy of the logits into new memory",
    "plain call": "the same call without options",
    "contiguous": "the same rows with the classes side by side",
    "one thread": "the same call in one thread",
}


class Row(NamedTuple):
    """One line of the table."""

    group: str
    operation: str
    shape: Shape
    against: str = "copy"
    goal: float | str | None = None  # a ratio; "like <shape>", "like the copy"; None: rivals only
    dtype: str = "float32"
    soft: bool = False  # probability targets
    given: bool = True  # memory for the result is given
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        parts = [self.operation, self.shape.name]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += ["probabilities"] if self.soft else []
        parts += self.options
        parts += ["fresh"] if not self.given else []
        parts += [f"over {self.against}"] if self.against in ("one thread", "contiguous") else []
        return ", ".join(parts)


BOTH = ("loss_and_grad", "softmax")
EVERYTHING = ("weight", "smoothing", "ignored rows")


def _classes(count: int) -> Shape:
    return SHAPES[f"{count} classes"]


def _beyond_the_cache():
    for count in (256, 512, 1000, 32768, 131072):
        for operation in BOTH:
            yield Row("beyond the cache", operation, _classes(count), goal=1.0)
    for count in (32, 64, 100, 128):
        for operation in BOTH:
            yield Row("beyond the cache", operation, _classes(count), goal=1.15)
    yield Row("beyond the cache", "loss_and_grad", _classes(10), goal=1.8)
    yield Row("beyond the cache", "softmax", _classes(10), goal=1.45)
    for count in (2, 3):
        for operation in BOTH:
            yield Row("beyond the cache", operation, _classes(count), goal=2.2)


def _values_only():
    for count in (256, 1000, 32768):
        for operation in ("loss", "logsumexp"):
            yield Row("value only", operation, _classes(count), "read", 1.1)


def _layouts():
    for name in ("segmentation", "large segmentation", "GBM in columns", "10 classes in columns"):
        for operation in BOTH:
            yield Row("class axis not last", operation, SHAPES[name], "contiguous", 1.15)


def _dtypes():
    for operation in BOTH:
        yield Row("dtype", operation, _classes(1000), goal=1.15, dtype="float64")
        for dtype in ("float16", "bfloat16"):
            yield Row("dtype", operation, _classes(1000), goal=1.6, dtype=dtype)


def _probabilities():
    for count in (100, 1000, 32768):
        shape = _classes(count)
        yield Row("targets", "loss_and_grad", shape, "two reads, one write", 1.15, soft=True)


def _options():
    for count in (10, 100, 1000):
        shape = _classes(count)
        for options, goal in ((EVERYTHING, 1.1), (("z-loss",), 1.1), (("softcap",), 1.6)):
            yield Row("options", "loss_and_grad", shape, "plain call", goal, options=options)


def _few_rows():
    for name in ("one long row", "four long rows"):
        for operation in BOTH:
            yield Row("few rows", operation, SHAPES[name], goal="like 131072 classes")


def _fresh():
    for count in (10, 100, 1000, 32768):
        for operation in BOTH:
            yield Row("new memory", operation, _classes(count), "fresh copy", 1.1, given=False)


def _threads():
    for name in ("GBM", "65536 rows of 100", "10 classes"):
        for operation in BOTH:
            yield Row("threads", operation, SHAPES[name], "one thread", 1 / 1.8)
    for count in (1000, 32768):
        for operation in BOTH:
            yield Row("threads", operation, _classes(count), "one thread", "like the copy")


#: rows that other libraries alone are measured for
RIVALS = "rivals"


def _rivals():
    for name in (
        "one row",
        "32 rows",
        "digits",
        "128 rows of 1000",
        "ImageNet",
        "GBM",
        "65536 rows of 100",
        "1000 classes",
        "32768 classes",
        "131072 classes",
        "language model",
    ):
        for operation in BOTH:
            for given in (True, False):
                row = Row(RIVALS, operation, SHAPES[name], given=given)
                if given:
                    yield row
                else:
                    yield row._replace(against="fresh copy")
        for operation in ("log_softmax", "logsumexp", "loss"):
            against = "copy" if operation == "log_softmax" else "read"
            yield Row(RIVALS, operation, SHAPES[name], against)


def all_rows() -> list[Row]:
    """Every row once, in the order of the table."""
    groups = (
        _beyond_the_cache,
        _values_only,
        _layouts,
        _dtypes,
        _probabilities,
        _options,
        _few_rows,
        _fresh,
        _threads,
        _rivals,
    )
    found: dict[str, Row] = {}
    for group in groups:
        for row in group():
            found.setdefault(row.name, row)
    return list(found.values())
