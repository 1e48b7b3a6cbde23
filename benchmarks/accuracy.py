"""The worst errors in ulp, ours and the rivals', by dtype and kind of row.

    python -m benchmarks.accuracy            # saves results/accuracy.json and results/accuracy.md
    python -m benchmarks.accuracy --quick    # up to 100 classes, nothing saved but by --json

Softmax, the loss of each row, and its gradient, on the kinds of rows of tests/ulp.py, for 1 to a
million classes, against values from mpmath (float64, up to 5000 logits at a time) or longdouble.
Half of the targets are the largest logit (where the loss is small and p - 1 cancels), half random.
The unit is that of the exact result in the result's dtype; a result of 0 or inf in place of a
number is as wrong as it is far away in that unit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.exact import exact, tests_module, worst_ulp
from benchmarks.shapes import dtype_of

RESULTS = Path(__file__).parent / "results"
CLASSES = (1, 2, 3, 10, 33, 100, 1000, 32_768, 131_072, 1_000_000)
DTYPES = ("float32", "float64", "float16", "bfloat16")
RESULT_NAMES = ("softmax", "loss", "gradient")
#: (logits, class indices) -> softmax, losses of the rows, gradient of their sum
Library = Callable[[np.ndarray, np.ndarray], tuple]


def _fastswl() -> Library:
    import fastswl as swl

    def run(x, t):
        return swl.softmax(x), *swl.cross_entropy_value_and_grad(x, t, reduction="none")

    return run


def _torch() -> Library:
    import torch
    from torch.nn import functional

    def to_torch(x):
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    def to_numpy(tensor, dtype):
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(dtype)
        return tensor.numpy()

    def run(x, t):
        z = to_torch(x).requires_grad_(True)
        loss = functional.cross_entropy(z, torch.from_numpy(t), reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), z)
        return tuple(to_numpy(v, x.dtype) for v in (torch.softmax(z, -1), loss, grad))

    return run


def _jax() -> Library:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    row_losses = optax.softmax_cross_entropy_with_integer_labels
    softmax = jax.jit(lambda x: jax.nn.softmax(x, axis=-1))
    losses = jax.jit(row_losses)
    gradient = jax.jit(jax.grad(lambda x, t: row_losses(x, t).sum()))

    def run(x, t):
        return tuple(np.asarray(v) for v in (softmax(x), losses(x, t), gradient(x, t)))

    return run


def _scipy() -> Library:
    from scipy import special

    def run(x, t):
        if x.dtype.name == "bfloat16":
            return None, None, None
        p = special.softmax(x, axis=-1)
        rows = np.arange(len(x))
        gradient = p.copy()
        gradient[rows, t] -= 1
        return p, -special.log_softmax(x, axis=-1)[rows, t], gradient

    return run


def _onnxruntime() -> Library:
    from benchmarks import rivals
    from benchmarks.problems import Problem

    def run(x, t):
        results = []
        for operation in ("softmax", "log_softmax"):
            try:
                contender = rivals.contender("onnxruntime", Problem(operation, x, None, 1, None, 1, {}))
            except rivals.Unavailable:
                return None, None, None
            results.append(contender.answer(contender.run()))
        return results[0], -results[1][np.arange(len(x)), t], None

    return run


LIBRARIES: dict[str, Callable[[], Library]] = {
    "fastswl": _fastswl,
    "PyTorch": _torch,
    "JAX": _jax,
    "SciPy": _scipy,
    "onnxruntime": _onnxruntime,
}


def installed() -> dict[str, Library]:
    found = {}
    for name, load in LIBRARIES.items():
        try:
            found[name] = load()
        except ImportError as error:
            print(f"{name}: not installed ({error.name})", file=sys.stderr)
    return found


def rows_of(kind: Callable, classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a kind, and class indices."""
    rng = np.random.default_rng(classes)
    n = 37 if classes <= 100 else 5 if classes <= 1000 else 2
    x = np.ascontiguousarray(kind(rng, (n, classes), dtype_of(dtype)))
    t = rng.integers(0, classes, n)
    t[::2] = x.astype(np.float64).argmax(axis=1)[::2]
    return x, t


def suits(kind: Callable, dtype: str) -> bool:
    """Whether a kind of row can be held by a dtype."""
    return not (kind.__name__.startswith("offset") and dtype == "float16")


def measure(classes: tuple[int, ...], dtypes: tuple[str, ...]) -> list[dict]:
    libraries = installed()
    found = []
    for dtype in dtypes:
        for kind in tests_module("ulp").KINDS:
            if not suits(kind, dtype):
                continue
            for count in classes:
                x, t = rows_of(kind, count, dtype)
                expected = exact(x, t)
                for name, run in libraries.items():
                    with np.errstate(all="ignore"):
                        results = run(x, t)
                    for what, result in zip(RESULT_NAMES, results, strict=True):
                        if result is None:
                            continue
                        error = worst_ulp(np.asarray(result), getattr(expected, what))
                        found.append(
                            {
                                "library": name,
                                "dtype": dtype,
                                "kind": kind.__name__,
                                "classes": count,
                                "result": what,
                                "ulp": error if math.isfinite(error) else "inf",
                                "against": expected.by,
                            }
                        )
            print(f"{dtype}, {kind.__name__}", file=sys.stderr)
    return found


def human(ulp: float | None) -> str:
    if ulp is None:
        return "-"
    return f"{ulp:.1f}" if ulp < 100 else f"{ulp:.0f}" if ulp < 1e5 else f"{ulp:.0e}"


def tables(found: list[dict]) -> str:
    """Markdown: for each dtype a line a kind of row; a cell is the worst over all numbers of
    classes of softmax / loss / gradient."""
    worst: dict[tuple, float] = {}
    for entry in found:
        key = (entry["dtype"], entry["kind"], entry["library"], entry["result"])
        worst[key] = max(worst.get(key, 0.0), float(entry["ulp"]))
    libraries = list(dict.fromkeys(entry["library"] for entry in found))
    kinds = list(dict.fromkeys(entry["kind"] for entry in found))
    parts = []
    for dtype in dict.fromkeys(entry["dtype"] for entry in found):
        lines = [
            f"Worst error in ulp, {dtype}: softmax / loss / gradient",
            "",
            "| rows | " + " | ".join(libraries) + " |",
            "| --- |" + " --- |" * len(libraries),
        ]
        for kind in kinds:
            if not any(key[:2] == (dtype, kind) for key in worst):
                continue
            cells = [
                " / ".join(human(worst.get((dtype, kind, name, what))) for what in RESULT_NAMES) for name in libraries
            ]
            lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--quick", action="store_true", help="up to 100 classes")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/accuracy.json")
    args = parser.parse_args(arguments)
    classes = tuple(c for c in CLASSES if not args.quick or c <= 100)
    found = measure(classes, tuple(args.dtypes))
    text = tables(found)
    print(text)
    file = args.json or (None if args.quick else RESULTS / "accuracy.json")
    if file is not None:
        report = {"machine": machine.describe(), "classes": classes, "errors": found}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(report, indent=0) + "\n")
        file.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
