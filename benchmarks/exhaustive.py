"""Proof of the accuracy of exp and log: the worst error in ulp over all, or very many, inputs.

    python -m benchmarks.exhaustive                     # everything: half an hour on two cores
    python -m benchmarks.exhaustive --sample 1000000    # so many inputs for each function

- float32 exp: `vectormath.exp` on all 2**32 inputs, subnormal results and specials included.
- float32 exp in the kernels: `block.exp_above`, relative to the power of two of a reference m, on
  all inputs of at most FAR_32 in size, with m at the input and 1, 20, 60 and 100 above it.
- float64 exp and log: 1e8 inputs, a third spread evenly over the bits (so over all exponents), a
  third over where results are ordinary, a third beside the breakpoints: where the reduction turns
  to the next power of two, where the result becomes subnormal, 0 or inf, and near 1 for log.

Errors are measured against longdouble (64 bits of mantissa on x86) in units in the last place of
the exact result, subnormal results in those of their spacing; the worst float64 inputs are then
settled by mpmath. Exit status 1 if a bound is passed.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import machine

LONG = np.longdouble
#: inputs worked on at once
CHUNK = 1 << 20
#: how far m lies above x
GAPS = (0.0, 1.0, 20.0, 60.0, 100.0)
#: the library's bound, with what the reference itself may be off
BOUND = 1.0 + 2.0**-9
FLOAT64_INPUTS = 100_000_000


class Worst(NamedTuple):
    """The largest error seen, where, and over how many inputs."""

    ulp: float = 0.0
    at: tuple[float, ...] = ()
    inputs: int = 0

    def __or__(self, other: Worst) -> Worst:
        best = self if self.ulp >= other.ulp else other
        return best._replace(inputs=self.inputs + other.inputs)


# --- the functions, compiled over arrays ----------------------------------------------------------


@functools.cache
def compiled(name: str) -> Callable:
    """`vectormath`'s function over vectors that lie end to end: (source, target, vectors)."""
    from numba import njit

    from fastswl import simd, vectormath
    from fastswl.kernels.block import exp_above
    from fastswl.simd import load, store, store_wide

    storage = simd.FLOAT32 if name.endswith("32") else simd.FLOAT64
    step = simd.VECTOR_BYTES
    options = {"error_model": "numpy", "nogil": True}

    if name.startswith("exp_above"):
        exp_reference, exp_unit, nearest_power = vectormath.exp_reference, vectormath.exp_unit, vectormath.nearest_power

        @njit(**options)
        def run_above(source, reference, target, powers, n):
            unit = exp_unit(storage)
            for i in range(n):
                x = load(storage, source + step * i)
                power = nearest_power(storage, load(storage, reference + step * i))
                magic, lowest = exp_reference(storage, power)
                store(storage, target + step * i, exp_above(storage, x, magic, lowest))
                store(storage, powers + step * i, power)
            return unit

        return run_above
    if name == "exp float32" or name == "exp float64":
        exp = vectormath.exp

        @njit(**options)
        def run_exp(source, target, n):
            for i in range(n):
                store(storage, target + step * i, exp(storage, load(storage, source + step * i)))

        return run_exp
    log = vectormath.log

    @njit(**options)
    def run_log(source, target, n):
        for i in range(n):
            store_wide(storage, target + step * i, log(load(storage, source + step * i)))

    return run_log


def _whole_vectors(x: np.ndarray) -> np.ndarray:
    """Filled up with its last number to whole vectors."""
    lanes = 64 // x.itemsize
    return np.concatenate([x, np.full(-x.size % lanes, x[-1])])


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    """The library's "exp" or "log" of a flat array."""
    source = _whole_vectors(x)
    target = np.empty_like(source)
    run = compiled(f"{name} {x.dtype}")
    run(source.ctypes.data, target.ctypes.data, source.nbytes // 64)
    return target[: x.size]


def evaluate_above(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The kernels' exp(x) 2**-N, and N, for references m; the unit of the former."""
    source, reference = _whole_vectors(x), _whole_vectors(m)
    target, powers = np.empty_like(source), np.empty_like(source)
    arrays = (source, reference, target, powers)
    run = compiled(f"exp_above {x.dtype}")
    unit = run(*(array.ctypes.data for array in arrays), source.nbytes // 64)
    return target[: x.size], powers[: x.size], unit


# --- errors ---------------------------------------------------------------------------------------


def ulp_errors(got: np.ndarray, exact: np.ndarray, subnormal: bool = True) -> np.ndarray:
    """|got - exact| in ulp; inf where one is special and the other is not."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = exact.astype(got.dtype)
        _, exponent = np.frexp(exact)
        if subnormal:
            exponent = np.maximum(exponent, info.minexp + 1)
        unit = np.ldexp(LONG(1), exponent - 1 - info.nmant)
        errors = np.abs(got - exact) / unit
        ordinary = np.isfinite(got) & np.isfinite(rounded)
        # at the edge of overflow the largest number and inf are one step apart
        edge = np.isinf(rounded) & (got == info.max) & (exact < np.ldexp(LONG(1), info.maxexp + 1))
        same = (got == rounded) | (np.isnan(got) & np.isnan(exact)) | edge
    return np.where(ordinary, errors, np.where(same, 0, np.inf)).astype(np.float64)


def worst_of(errors: np.ndarray, *inputs: np.ndarray) -> Worst:
    if not errors.size:
        return Worst()
    i = int(errors.argmax())
    return Worst(float(errors[i]), tuple(float(array[i]) for array in inputs), errors.size)


def exp_errors(x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return ulp_errors(evaluate("exp", x), np.exp(x.astype(LONG)))


def log_errors(x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return ulp_errors(evaluate("log", x), np.log(x.astype(LONG)))


def exp_above_worst(x: np.ndarray, gap: float) -> Worst:
    """Errors of the scaled exponential; it is 0 where its unit's normal range ends."""
    from fastswl.kernels.panel import FAR_32

    x = x[np.abs(x) < FAR_32]
    m = x + np.float32(gap)
    inside = np.abs(m) < FAR_32
    x, m = x[inside], m[inside]
    if not x.size:
        return Worst()
    got, power, unit = evaluate_above(x, m)
    exact = np.ldexp(np.exp(x.astype(LONG)) * LONG(unit), -power.astype(np.int64))
    errors = ulp_errors(got, exact, subnormal=False)
    # flushed to an exact 0: right only below the normal numbers, which is 2**-166 of the maximum
    flushed = (got == 0) & (exact < np.ldexp(LONG(1), -125))
    return worst_of(np.where(flushed, 0, errors), x, m)


# --- inputs ---------------------------------------------------------------------------------------


def float32_chunks(sample: int | None) -> Iterator[np.ndarray]:
    """All float32, or every so many-th of them, in pieces."""
    stride = 1 if sample is None else max(1, 2**32 // sample)
    for start in range(0, 2**32, CHUNK * stride):
        stop = min(start + CHUNK * stride, 2**32)
        yield np.arange(start, stop, stride, dtype=np.uint32).view(np.float32)


def _beside(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 64 floats to each side of the points."""
    return (points.view(np.int64) + rng.integers(-64, 65, points.size)).view(np.float64)


def exp_inputs(rng: np.random.Generator, n: int) -> np.ndarray:
    bits = rng.integers(0, 2**64, n // 3, dtype=np.uint64).view(np.float64)
    ordinary = rng.uniform(-746, 710, n // 3)
    half_powers = (rng.integers(-1080, 1025, n // 4) + 0.5) * np.log(2.0)
    ends = rng.choice([-745.13, -744.44, -708.396, -708.4, 709.78, 709.7827128933841], n // 12)
    beside = np.concatenate([_beside(half_powers, rng), ends + rng.uniform(-1e-2, 1e-2, n // 12)])
    return np.concatenate([bits, ordinary, beside])


def log_inputs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Positive normal numbers."""
    smallest = np.float64(2.0**-1022).view(np.int64)
    largest = np.float64(np.inf).view(np.int64)
    bits = rng.integers(smallest, largest, n // 3).view(np.float64)
    ordinary = rng.uniform(0.0, 4.0, n // 3)
    exponents = np.ldexp(1.0, rng.integers(-1000, 1000, n // 9))
    beside = [
        _beside(np.sqrt(0.5) * exponents, rng),
        _beside(exponents, rng),
        1 + rng.choice([-1, 1], n // 9) * 10.0 ** rng.uniform(-15, -1, n // 9),
    ]
    found = np.concatenate([bits, ordinary, *beside])
    return found[(found >= 2.0**-1022) & np.isfinite(found)]


def settled(name: str, x: float) -> float:
    """The error at x by mpmath."""
    import mpmath

    got = float(evaluate(name, np.array([x]))[0])
    with mpmath.workdps(50):
        exact = getattr(mpmath, name)(mpmath.mpf(x))
        if exact == 0:
            return 0.0 if got == 0 else float("inf")
        _, exponent = mpmath.frexp(exact)
        unit = mpmath.ldexp(1, max(exponent, -1021) - 53)
        return float(abs(mpmath.mpf(got) - exact) / unit)


# --- proofs ---------------------------------------------------------------------------------------


def reduce_chunks(work: Callable, chunks: Iterator, threads: int) -> Worst:
    """The worst over chunks, a few at a time (a plain map would make all chunks at once)."""
    worst = Worst()
    with ThreadPoolExecutor(threads) as pool:
        pending: list = []
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) > threads:
                worst |= pending.pop(0).result()
        for future in pending:
            worst |= future.result()
    return worst


def prove_exp_float32(sample: int | None, threads: int) -> Worst:
    return reduce_chunks(lambda x: worst_of(exp_errors(x), x), float32_chunks(sample), threads)


def prove_exp_above(sample: int | None, threads: int) -> Worst:
    def work(x: np.ndarray) -> Worst:
        return functools.reduce(Worst.__or__, (exp_above_worst(x, gap) for gap in GAPS))

    return reduce_chunks(work, float32_chunks(sample), threads)


def prove_float64(name: str, sample: int | None, threads: int) -> Worst:
    errors_of, inputs_of = {"exp": (exp_errors, exp_inputs), "log": (log_errors, log_inputs)}[name]
    total = sample or FLOAT64_INPUTS
    generators = np.random.default_rng(0).spawn(-(-total // CHUNK))

    def work(rng: np.random.Generator) -> Worst:
        x = inputs_of(rng, min(CHUNK, total))
        errors = errors_of(x)
        worst = worst_of(errors, x)
        if np.isfinite(worst.ulp) and worst.at:
            worst = worst._replace(ulp=settled(name, worst.at[0]))
        return worst

    return reduce_chunks(work, iter(generators), threads)


PROOFS: dict[str, Callable[[int | None, int], Worst]] = {
    "float32 exp": prove_exp_float32,
    "float32 exp in the kernels": prove_exp_above,
    "float64 exp": functools.partial(prove_float64, "exp"),
    "float64 log": functools.partial(prove_float64, "log"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exhaustive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sample", type=int, metavar="N", help="about N inputs for each function")
    parser.add_argument("--only", choices=PROOFS, nargs="+", default=list(PROOFS))
    parser.add_argument("--threads", type=int, default=machine.core_count())
    parser.add_argument("--json", type=Path, help="save what was found")
    args = parser.parse_args(arguments)
    if np.finfo(LONG).nmant < 63:
        parser.error("longdouble has no more digits than float64 on this machine")
    report = {}
    failed = False
    for name in args.only:
        start = time.perf_counter()
        worst = PROOFS[name](args.sample, args.threads)
        passed = worst.ulp <= BOUND
        failed = failed or not passed
        report[name] = worst._asdict()
        where = ", ".join(repr(number) for number in worst.at)
        print(
            f"{name}: {worst.ulp:.4f} ulp at ({where}), {worst.inputs:,} inputs, "
            f"{time.perf_counter() - start:.0f} s{'' if passed else '  OVER THE BOUND'}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine.describe(), **report}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
