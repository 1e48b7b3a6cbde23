"""Hypothesis profiles, and the zoo of layouts and dtypes that every function passes through."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, settings

from fastswl import lazy, walks

# the benchmarks are no part of the package; behind all else, since their folder holds the package, too
sys.path.append(str(Path(__file__).parents[1]))

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
# for code that is broken on purpose: which example fails is of no interest
settings.register_profile(
    "mutants", deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class Sample(NamedTuple):
    """Logits as a caller might hold them; `close` ends what they need (a file)."""

    logits: object
    axis: int


def _values(rng, shape, dtype) -> np.ndarray:
    return rng.normal(0, 5, shape).astype(dtype)


def c_order(rng, n, classes, dtype, path):
    return Sample(_values(rng, (n, classes), dtype), -1)


def fortran_order(rng, n, classes, dtype, path):
    return Sample(np.asfortranarray(_values(rng, (n, classes), dtype)), -1)


def sliced_rows(rng, n, classes, dtype, path):
    return Sample(_values(rng, (2 * n, classes), dtype)[::2], -1)


def sliced_classes(rng, n, classes, dtype, path):
    return Sample(_values(rng, (n, classes + 1), dtype)[:, :-1], -1)


def every_second_class(rng, n, classes, dtype, path):
    return Sample(_values(rng, (n, 2 * classes), dtype)[:, ::2], -1)


def negative_strides(rng, n, classes, dtype, path):
    return Sample(_values(rng, (n, classes), dtype)[::-1, ::-1], -1)


def zero_stride_rows(rng, n, classes, dtype, path):
    return Sample(np.broadcast_to(_values(rng, (1, classes), dtype), (n, classes)), -1)


def zero_stride_classes(rng, n, classes, dtype, path):
    return Sample(np.broadcast_to(_values(rng, (n, 1), dtype), (n, classes)), -1)


def class_axis_first(rng, n, classes, dtype, path):
    return Sample(_values(rng, (classes, n), dtype), 0)


def images(rng, n, classes, dtype, path):
    """(N, C, H, W), classes on axis 1."""
    return Sample(_values(rng, (n, classes, 2, 3), dtype), 1)


def images_class_last(rng, n, classes, dtype, path):
    """(N, C, H, W) as a transposed view of (N, H, W, C)."""
    return Sample(_values(rng, (n, 2, 3, classes), dtype).transpose(0, 3, 1, 2), 1)


def images_turned(rng, n, classes, dtype, path):
    """(N, C, H, W) whose memory order is (H, C, W, N), and a negative axis."""
    return Sample(_values(rng, (2, classes, 3, n), dtype).transpose(3, 1, 0, 2), -3)


def byte_swapped(rng, n, classes, dtype, path):
    x = _values(rng, (n, classes), dtype)
    return Sample(x.astype(x.dtype.newbyteorder("S")), -1)


def unaligned(rng, n, classes, dtype, path):
    x = _values(rng, (n, classes), dtype)
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(dtype).reshape(x.shape)
    view[...] = x
    return Sample(view, -1)


def read_only(rng, n, classes, dtype, path):
    x = _values(rng, (n, classes), dtype)
    x.flags.writeable = False
    return Sample(x, -1)


def memmap(rng, n, classes, dtype, path):
    x = _values(rng, (n, classes), dtype)
    x.tofile(path)
    return Sample(np.memmap(path, dtype, "r", shape=x.shape), -1)


def nested_list(rng, n, classes, dtype, path):
    """Python floats, so float64 whatever the dtype asked for."""
    return Sample(_values(rng, (n, classes), np.float64).tolist(), -1)


def one_row(rng, n, classes, dtype, path):
    """A single sample without a batch axis."""
    return Sample(_values(rng, (classes,), dtype), 0)


def no_rows(rng, n, classes, dtype, path):
    return Sample(_values(rng, (0, classes), dtype), -1)


LAYOUTS: dict[str, Callable] = {
    make.__name__: make
    for make in (
        c_order,
        fortran_order,
        sliced_rows,
        sliced_classes,
        every_second_class,
        negative_strides,
        zero_stride_rows,
        zero_stride_classes,
        class_axis_first,
        images,
        images_class_last,
        images_turned,
        byte_swapped,
        unaligned,
        read_only,
        memmap,
        nested_list,
        one_row,
        no_rows,
    )
}

INTEGER_DTYPES = tuple(np.dtype(f"{sign}int{bits}") for bits in (8, 16, 32, 64) for sign in ("", "u"))


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """make(n, classes, dtype) -> Sample, in one of the layouts of the zoo."""

    def make(n, classes, dtype, seed=0):
        rng = np.random.default_rng(seed)
        return LAYOUTS[request.param](rng, n, classes, np.dtype(dtype), tmp_path / "logits")

    return make


#: integers whose kernels are compiled in the short run of the tests; those of the others (half a minute each) are in the long one
SHORT_RUN = ("int8", "int64")


def integer_parameters() -> list:
    """Every integer dtype."""
    return [str(d) if str(d) in SHORT_RUN else pytest.param(str(d), marks=pytest.mark.slow) for d in INTEGER_DTYPES]


@pytest.fixture(params=["float16", "bfloat16", "float32", "float64", "bool", *integer_parameters()])
def any_dtype(request) -> np.dtype:
    """Every dtype that logits may have."""
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(request.param)


#: NUMBA_CPU_NAME alone leaves the features of the host: only with NUMBA_CPU_FEATURES is a machine with AVX-512 held to AVX2
HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt"}


@pytest.fixture
def cache_of(tmp_path_factory) -> Callable[[dict[str, str]], Path]:
    """The cache of kernels compiled under settings of Numba's: one for all tests of this run that have the same."""

    def directory(settings: dict[str, str]) -> Path:
        base = tmp_path_factory.getbasetemp()
        run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        words = "".join(c if c.isalnum() else "_" for k, v in sorted(settings.items()) for c in f"{k} {v} ")
        path = run / f"kernels {words}"
        path.mkdir(exist_ok=True)
        return path

    return directory


@pytest.fixture
def by_tiles(monkeypatch):
    """A function that runs another one with the walk of more classes."""

    def run(function):
        monkeypatch.setattr(walks, "SHORT_CLASSES", 1)
        walks.find_route.cache_clear()
        lazy.prepared.clear()
        try:
            return function()
        finally:
            monkeypatch.undo()
            walks.find_route.cache_clear()
            lazy.prepared.clear()

    return run
