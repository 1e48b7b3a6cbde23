"""One SHA-256 over 500 varied results, to compare machines, settings and numbers of threads.

    python -m benchmarks.digest                 # prints the digest of each group and of all
    python -m benchmarks.digest --check         # compares with digests.json: exit status 1
    python -m benchmarks.digest --pin           # writes digests.json

The results are the same bits on every CPU with a fused multiply-add, whatever NUMBA_CPU_NAME,
NUMBA_CPU_FEATURES, NUMBA_OPT, NUMBA_LOOP_VECTORIZE, `--threads` and threading layer (see
tests/test_same_bits.py). Inputs are made of integers by exact arithmetic alone, so that no
machine's libm has a part in them. There are few combinations of dtypes, since each is a kernel that
has to be compiled.

A group is a dtype and a kind of layout, so that a difference says where to look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shapes import dtype_of

PINNED = Path(__file__).parent / "digests.json"
CASES = 500


class Numbers:
    """Integers by SplitMix64 (Steele, Lea & Flood 2014): integer arithmetic modulo 2**64 only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def words(self, count: int) -> np.ndarray:
        """The next `count` 64-bit words."""
        golden = 0x9E3779B97F4A7C15
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(golden)
        z = steps + np.uint64(self.seed)
        self.seed = (self.seed + count * golden) % 2**64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def below(self, limit: int, count: int) -> np.ndarray:
        """Integers in [0, limit)."""
        return (self.words(count) % np.uint64(limit)).astype(np.int64)

    def fractions(self, limit: int, bits: int, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 in [-limit, limit), multiples of 2**-bits: exact."""
        count = int(np.prod(shape))
        integers = self.below(2 * limit << bits, count) - (limit << bits)
        return (integers.astype(np.float64) * 2.0**-bits).reshape(shape)


class Group(NamedTuple):
    """Results that come from the same kernels."""

    name: str
    dtype: str
    layout: str  # "rows", "columns", "strided", "images"
    sizes: tuple[tuple[int, int], ...]  # rows, classes


#: short: up to 48 classes without options (float64: none); panel: up to 447 (float64: 350); batch: 160 to 2,048 without
#: options (float64: none); row: more, long: more than 4,096 (2,048); split: from a million on
GROUPS = (
    Group("float32 panel", "float32", "rows", ((1, 1), (5, 2), (37, 3), (128, 10), (37, 60), (33, 300))),
    Group("float32 large", "float32", "rows", ((6001, 10), (601, 127), (60, 1000))),
    Group("float32 batch", "float32", "rows", ((7, 160), (37, 447), (19, 509), (18, 1000), (5, 2048))),
    Group("float32 row", "float32", "rows", ((7, 641), (33, 700), (5, 1000), (4, 3001), (3, 5001))),
    Group("float32 split", "float32", "rows", ((1, 1_048_577),)),
    Group("float32 columns", "float32", "columns", ((1, 7), (37, 3), (35, 21), (20, 60), (20, 200))),
    Group("float32 strided", "float32", "strided", ((37, 5), (9, 700))),
    Group("float32 images", "float32", "images", ((40, 3), (64, 21))),
    Group("float64 panel", "float64", "rows", ((1, 1), (37, 3), (128, 10), (17, 100))),
    Group("float64 row", "float64", "rows", ((7, 385), (5, 1000), (2, 5001))),
    Group("float64 columns", "float64", "columns", ((37, 3), (20, 200))),
    Group("float16 panel", "float16", "rows", ((37, 3), (35, 21), (19, 100), (18, 250))),
    Group("bfloat16 row", "bfloat16", "rows", ((7, 641), (5, 1000))),
)
#: (limit, bits) of the logits: near, ordinary, wide, far from 0
RANGES = ((1, 20), (8, 12), (90, 10), (5000, 4))


def laid_out(rows: np.ndarray, layout: str) -> tuple[np.ndarray, int]:
    """The same numbers in memory of another kind, and the class axis."""
    n, classes = rows.shape
    if layout == "columns":
        return np.ascontiguousarray(rows.T), 0
    if layout == "strided":
        wide = np.zeros((n, 2 * classes), rows.dtype)
        wide[:, ::2] = rows
        return wide[:, ::2], 1
    if layout == "images":
        return np.ascontiguousarray(rows.reshape(2, n // 2, classes).transpose(0, 2, 1)), 1
    return rows, 1


class Case(NamedTuple):
    """One result: a function of fastswl and what it is called with."""

    name: str
    function: str
    x: np.ndarray
    axis: int
    targets: np.ndarray | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)
    memory: int = 0  # 0 new, 1 given and off by a few bytes from a line, 2 the input itself


def options_of(numbers: Numbers, n: int, classes: int) -> dict[str, dict]:
    """Options of the loss, from exact numbers."""
    weight = (numbers.below(15, classes) + 1) / 8
    sample_weight = numbers.below(4, n) / 4
    every = {"weight": weight, "sample_weight": sample_weight}
    return {
        "plain": {},
        "weight": {"weight": weight},
        "sample_weight": {"sample_weight": sample_weight},
        "smoothing": {"label_smoothing": 0.125},
        "z_loss": {"z_loss": 0.0625},
        "softcap": {"softcap": 30.0, "logit_scale": 1.25},
        "mask": {"class_mask": numbers.below(4, classes) > 0},
        "all": {**every, "label_smoothing": 0.25, "z_loss": 0.125},
    }


def in_shape(options: dict, x: np.ndarray, axis: int) -> dict:
    """Options of rows by classes in the shape of the layout."""
    options = dict(options)
    if "sample_weight" in options:
        rows = [size for a, size in enumerate(x.shape) if a != axis]
        options["sample_weight"] = options["sample_weight"].reshape(rows)
    if "class_mask" in options:
        places = [-1 if a == axis else 1 for a in range(x.ndim)]
        options["class_mask"] = options["class_mask"].reshape(places)
    return options


def cases_of(group: Group, n: int, classes: int, limit: int, bits: int) -> Iterator[Case]:
    """All results for logits of one size and range."""
    name = f"{group.name} {n}x{classes} {limit}"
    numbers = Numbers(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    rows = numbers.fractions(limit, bits, (n, classes)).astype(dtype_of(group.dtype))
    if limit == 90:
        rows[numbers.below(8, n * classes).reshape(n, classes) == 0] = -np.inf
        rows[np.arange(n), numbers.below(classes, n)] = 1.0
    x, axis = laid_out(rows, group.layout)
    for i, function in enumerate(("softmax", "log_softmax", "logsumexp")):
        yield Case(f"{name} {function}", function, x, axis, memory=(n + i) % 3)
    if limit <= 3:
        near_zero = rows - rows.dtype.type(round(math.log(classes) * 256) / 256)
        yield Case(f"{name} logsumexp near 0", "logsumexp", laid_out(near_zero, group.layout)[0], axis)
    indices = numbers.below(classes, n)
    indices[numbers.below(16, n) == 0] = -100
    indices = indices.reshape([size for a, size in enumerate(x.shape) if a != axis])
    soft = (numbers.below(9, n * classes) / 8).reshape(n, classes)
    soft, _ = laid_out(soft, group.layout)
    for i, (option, given) in enumerate(options_of(numbers, n, classes).items()):
        for kind, targets in (("indices", indices), ("probabilities", soft)):
            # "plain" and "all" with both kinds of targets, the others with one in turn
            if option not in ("plain", "all") and (i + limit + (kind == "indices")) % 2:
                continue
            reduction = ("none", "mean", "sum")[(i + limit + n) % 3]
            yield Case(
                f"{name} {option} {kind} {reduction}",
                "cross_entropy_value_and_grad",
                x,
                axis,
                targets,
                {"reduction": reduction, **in_shape(given, x, axis)},
                (i + n) % 3,
            )


def cases(group: Group) -> list[Case]:
    return [
        case
        for n, classes in group.sizes
        for limit, bits in RANGES
        if limit <= 100 or group.dtype != "float16"
        for case in cases_of(group, n, classes, limit, bits)
    ]


def evaluate(case: Case, threads: int) -> list[np.ndarray]:
    """The case's results; those in the shape of the logits as rows, whatever the layout."""
    import fastswl as swl

    x = case.x
    out = None
    if case.memory == 1:
        out = np.empty(x.size + 3, x.dtype)[3:].reshape(x.shape)
    elif case.memory == 2:
        out = x = x.copy()
    function = getattr(swl, case.function)
    if case.function == "logsumexp":
        return [np.asarray(function(x, case.axis, n_threads=threads))]
    if case.targets is None:
        results = [function(x, case.axis, out=out, n_threads=threads)]
    else:
        results = function(x, case.targets, case.axis, grad_out=out, n_threads=threads, **case.options)
    *values, whole = results
    return [*map(np.asarray, values), np.moveaxis(whole, case.axis, -1)]


def bits(array: np.ndarray) -> bytes:
    """The array's numbers, little-endian; every NaN the same (its sign and payload are free)."""
    array = np.ascontiguousarray(array)
    integers = array.view(f"u{array.itemsize}").copy()
    integers[np.isnan(array.astype(np.float64))] = 0x7FC0
    return str(array.dtype).encode() + integers.astype(f"<u{array.itemsize}").tobytes()


def spread(listed: list[Case], count: int) -> list[Case]:
    """So many of a list, evenly."""
    return [listed[i * len(listed) // count] for i in range(count)]


def digests(threads: int) -> dict[str, str]:
    """A SHA-256 for each group, and one over all."""
    listed = {group.name: cases(group) for group in GROUPS}
    total = sum(map(len, listed.values()))
    counts = {name: len(group_cases) * CASES // total for name, group_cases in listed.items()}
    counts[GROUPS[0].name] += CASES - sum(counts.values())
    found: dict[str, str] = {}
    everything = hashlib.sha256()
    for name, group_cases in listed.items():
        own = hashlib.sha256()
        for case in spread(group_cases, counts[name]):
            own.update(case.name.encode())
            for array in evaluate(case, threads):
                own.update(bits(array))
        found[name] = own.hexdigest()
        everything.update(own.digest())
    found["all"] = everything.hexdigest()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with digests.json")
    parser.add_argument("--pin", action="store_true", help="write digests.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    # what can be shared is, whenever the last call was
    import fastswl.threads

    fastswl.threads.AWAKE_SECONDS = math.inf
    found = digests(args.threads)
    if args.json:
        print(json.dumps(found))
    else:
        for name, digest in found.items():
            print(f"{digest}  {name}")
    if args.pin:
        PINNED.write_text(json.dumps(found, indent=1) + "\n")
    if args.check:
        pinned = json.loads(PINNED.read_text())
        different = [name for name in found if found[name] != pinned.get(name)]
        for name in different:
            print(f"DIFFERS from digests.json: {name}", file=sys.stderr)
        return int(bool(different))
    return 0


if __name__ == "__main__":
    sys.exit(main())
