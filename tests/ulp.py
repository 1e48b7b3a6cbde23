"""Errors in units in the last place, and the kinds of rows on which they are measured."""

from __future__ import annotations

import mpmath
import numpy as np
from reference import LONG, to_long

# Where longdouble is float64 (Windows, macOS on arm64), the references are exact for float32 only.
EXTENDED = np.finfo(LONG).nmant >= 63


def float_info(dtype):
    """numpy.finfo, also for bfloat16."""
    if np.dtype(dtype).kind == "f":
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def spacing(size, dtype) -> np.ndarray:
    """Distance of neighbouring floats of dtype at |size|; subnormals have that of the smallest."""
    info = float_info(dtype)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(np.abs(np.asarray(size, LONG)))
        exponent = np.maximum(exponent, int(info.minexp) + 1)
        return np.ldexp(LONG(1), exponent - 1 - int(info.nmant))


def ulp_error(got, exact, terms=None) -> np.ndarray:
    """|got - exact| in ulp of got's dtype at `terms` (default: at the exact value).

    NaN against NaN and an infinity against itself are an error of 0; any other mixture is infinite.
    """
    got, exact = np.asarray(got), np.asarray(exact, LONG)
    assert got.shape == exact.shape, (got.shape, exact.shape)
    info = float_info(got.dtype)
    got, dtype = to_long(got), got.dtype
    size = exact if terms is None else np.maximum(np.abs(terms), np.abs(exact))
    with np.errstate(all="ignore"):
        error = np.abs(got - exact) / spacing(size, dtype)
        rounded = np.where(np.abs(exact) > LONG(info.max), np.copysign(np.inf, exact), exact)
    same = (np.isnan(got) & np.isnan(exact)) | (np.isinf(got) & (got == rounded))
    ordinary = np.isfinite(got) & np.isfinite(exact)
    return np.where(same, 0, np.where(ordinary, error, np.inf)).astype(np.float64)


def assert_ulp(got, exact, bound, terms=None, what="") -> None:
    """Every entry within `bound` ulp; says where the worst one is."""
    error = ulp_error(got, exact, terms)
    if error.size == 0:
        return
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error[worst] <= bound, (
        f"{what}: {error[worst]:.2f} ulp at {tuple(int(i) for i in worst)} of {error.shape}: "
        f"got {np.asarray(got)[worst]!r}, exact {np.asarray(exact)[worst]!r}"
    )


def same_bits(a, b) -> bool:
    """Same dtype, shape and bits, NaN and signed zeros included."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def mp_rows(x, targets):
    """softmax, log_softmax, logsumexp, loss and gradient of (n, C) rows by mpmath.

    Finite rows and index targets only. Plain formulas, with so many digits that a loss of e^-gap
    keeps 40 of them. Returned as longdouble, hence rounded once to 64 bits.
    """
    n, classes = x.shape
    p, log_p, grad = (np.empty(x.shape, LONG) for _ in range(3))
    lse, loss = np.empty(n, LONG), np.empty(n, LONG)
    gap = float(np.max(x.max(axis=1) - x.min(axis=1)))
    with mpmath.workdps(60 + int(gap / np.log(10))):
        for i in range(n):
            row = [mpmath.mpf(float(v)) for v in x[i]]
            top = max(row)
            e = [mpmath.exp(v - top) for v in row]
            total = mpmath.fsum(e)
            log_total = top + mpmath.log(total)
            y = int(targets[i])
            lse[i] = to_longdouble(log_total)
            loss[i] = to_longdouble(log_total - row[y])
            for c in range(classes):
                p[i, c] = to_longdouble(e[c] / total)
                log_p[i, c] = to_longdouble(row[c] - log_total)
                grad[i, c] = to_longdouble(e[c] / total - (1 if c == y else 0))
    return p, log_p, lse, loss, grad


def to_longdouble(value) -> np.longdouble:
    """An mpf rounded to longdouble (through a decimal string: float() would keep 53 bits)."""
    return LONG(mpmath.nstr(value, 30))


# The kinds of rows. Each takes a generator, a shape (n, C) and a dtype, and gives finite logits,
# except `masked`.


def normal(scale):
    def rows(rng, shape, dtype):
        return rng.normal(0, scale, shape).astype(dtype)

    rows.__name__ = f"normal_{scale}"
    return rows


def confident(rng, shape, dtype):
    """One logit ahead of the others by 0.5 to 90 (float64: to 700)."""
    n, classes = shape
    x = rng.normal(0, 0.1, shape)
    top = 700.0 if np.dtype(dtype) == np.float64 else 90.0
    x[np.arange(n), rng.integers(0, classes, n)] += np.geomspace(0.5, top, n)
    return x.astype(dtype)


def offset(sign):
    """N(0, 5^2) moved by 1e8: the steps between float32 values there are 8."""

    def rows(rng, shape, dtype):
        return (rng.normal(0, 5, shape) + sign * 1e8).astype(dtype)

    rows.__name__ = "offset_plus" if sign > 0 else "offset_minus"
    return rows


def mixed_magnitudes(rng, shape, dtype):
    """Absolute values from 1e-12 to 1e2, both signs."""
    size = 10.0 ** rng.uniform(-12, 2, shape)
    return (size * rng.choice([-1.0, 1.0], shape)).astype(dtype)


def ties(rng, shape, dtype):
    """Few distinct values, so the maximum is met many times."""
    return rng.integers(-2, 3, shape).astype(dtype)


def equal(rng, shape, dtype):
    """Every row a constant: p is 1/C."""
    return np.broadcast_to(rng.normal(0, 10, (shape[0], 1)), shape).astype(dtype)


def masked(rng, shape, dtype):
    """A third of the logits -inf, at least one finite logit a row."""
    n, classes = shape
    x = rng.normal(0, 5, shape)
    x[rng.random(shape) < 1 / 3] = -np.inf
    x[np.arange(n), rng.integers(0, classes, n)] = rng.normal(0, 5, n)
    return x.astype(dtype)


FINITE_KINDS = (
    normal(1),
    normal(5),
    normal(20),
    normal(80),
    confident,
    offset(+1),
    offset(-1),
    mixed_magnitudes,
    ties,
    equal,
)
KINDS = (*FINITE_KINDS, masked)

CLASS_COUNTS = (1, 2, 3, 5, 10, 16, 33, 100, 128, 200, 1000, 3000, 5000, 20000)


def row_count(classes: int) -> int:
    """Enough rows for full batches of 16 and a remainder where C is small, few where large."""
    return 37 if classes <= 200 else 5 if classes <= 1000 else 3
