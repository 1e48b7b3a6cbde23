"""The largest error of float32 over millions of random rows of few to many classes, in ulp, beside plain NumPy in float64.

python -m benchmarks.many_rows              # eight million rows
python -m benchmarks.many_rows --rows 1e8
"""

from __future__ import annotations

import argparse

import numpy as np

import fastswl as swl

CLASSES = (2, 3, 4, 5, 7, 10, 16, 21, 32, 48, 49, 64, 100, 200, 500)
SPREADS = (1.0, 3.0, 10.0, 20.0)
#: logits of a turn
LOGITS, ROWS = 4_000_000, 80_000


def in_float64(x: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Softmax, losses and gradient of float32 logits, with all digits that float32 can hold."""
    x, rows = x.astype(np.float64), np.arange(len(x))
    largest = x.argmax(1)
    e = np.exp(x - x[rows, largest, None])
    others = e.copy()
    others[rows, largest] = 0.0
    d = others.sum(1)
    softmax = e / (1.0 + d)[:, None]
    gradient = softmax.copy()
    gradient[rows, targets] = np.where(targets == largest, -d / (1.0 + d), softmax[rows, targets] - 1.0)
    return {"softmax": softmax, "loss": np.log1p(d) + (x[rows, largest] - x[rows, targets]), "gradient": gradient}


def errors(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in units of the last place of float32, subnormal numbers included."""
    unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32))
    return float((np.abs(got - exact) / unit).max())


def measure(rows: float) -> dict[tuple[int, str], float]:
    worst: dict[tuple[int, str], float] = {}
    done, seed = 0, 0
    while done < rows:
        seed += 1
        for classes in CLASSES:
            for spread in SPREADS:
                rng = np.random.default_rng((seed, classes))
                x = rng.normal(0, spread, (min(ROWS, LOGITS // classes), classes)).astype(np.float32)
                targets = rng.integers(0, classes, len(x))
                targets[::2] = x[::2].argmax(1)
                result = swl.cross_entropy_value_and_grad(x, targets, reduction="none")
                got = {"softmax": swl.softmax(x), "loss": result.loss, "gradient": result.grad}
                for name, exact in in_float64(x, targets).items():
                    key = classes, name
                    worst[key] = max(worst.get(key, 0.0), errors(got[name], exact))
                done += len(x)
    print(f"{done:,} rows")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_rows", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=8e6)
    worst = measure(parser.parse_args().rows)
    names = ("softmax", "loss", "gradient")
    print(f"{'classes':>8}", *(f"{name:>9}" for name in names))
    for classes in CLASSES:
        print(f"{classes:8}", *(f"{worst[classes, name]:9.2f}" for name in names))
    print(f"{'all':>8}", *(f"{max(worst[classes, name] for classes in CLASSES):9.2f}" for name in names))


if __name__ == "__main__":
    main()
