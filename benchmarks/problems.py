"""What is computed in a comparison, and by us."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import shapes

#: operations: softmax, log_softmax, logsumexp, loss (the mean), loss_and_grad
OPERATIONS = ("softmax", "log_softmax", "logsumexp", "loss", "loss_and_grad")


class Problem(NamedTuple):
    """Everything that decides an answer, and how its memory is held."""

    operation: str
    logits: np.ndarray
    targets: np.ndarray | None  # class indices, or probabilities in the shape of the logits
    axis: int
    out: np.ndarray | None  # memory for the result; None: new memory in every call
    threads: int
    options: dict[str, Any]  # of `cross_entropy`

    @property
    def classes(self) -> int:
        return self.logits.shape[self.axis]

    @property
    def soft(self) -> bool:
        """Whether the targets are probabilities."""
        return self.targets is not None and self.targets.shape == self.logits.shape


class Contender(NamedTuple):
    """A call to be timed, and how to read what it returns.

    `answer` gives a NumPy array for the softmax family, a float for the loss, and (loss, gradient)
    for both, in the shape and order of the problem.
    """

    run: Callable[[], Any]
    answer: Callable[[Any], Any]


def make(
    shape: shapes.Shape,
    operation: str,
    *,
    dtype: str = "float32",
    soft: bool = False,
    given: bool = True,
    threads: int = 2,
    options: tuple[str, ...] = (),
) -> Problem:
    """The problem of a shape; `options` are names of `OPTIONS`."""
    data = shapes.inputs(shape, dtype)
    if operation in ("softmax", "log_softmax", "logsumexp"):
        targets = None
    elif soft:
        targets = shapes.probabilities(shape, dtype)
    else:
        targets = shapes.ignored(shape) if "ignored rows" in options else data.indices
    keywords: dict[str, Any] = {}
    for option in options:
        keywords |= OPTIONS[option](shape)
    out = data.out if given and operation not in ("loss", "logsumexp") else None
    return Problem(operation, data.logits, targets, data.axis, out, threads, keywords)


#: options of `cross_entropy` as they are measured
OPTIONS: dict[str, Callable[[shapes.Shape], dict[str, Any]]] = {
    "weight": lambda shape: {"weight": shapes.class_weights(shape.classes)},
    "smoothing": lambda shape: {"label_smoothing": 0.1},
    "ignored rows": lambda shape: {},  # they stand in the targets
    "z-loss": lambda shape: {"z_loss": 1e-4},
    "softcap": lambda shape: {"softcap": 30.0},
    "scale": lambda shape: {"logit_scale": 0.5},
}


def ours(problem: Problem) -> Contender:
    """The call of this library."""
    import fastswl as swl

    common = {"axis": problem.axis, "n_threads": problem.threads}
    x, t = problem.logits, problem.targets
    if problem.operation in ("softmax", "log_softmax", "logsumexp"):
        function = getattr(swl, problem.operation)
        if problem.operation != "logsumexp":
            common["out"] = problem.out
        return Contender(functools.partial(function, x, **common), np.asarray)
    common |= problem.options
    if problem.operation == "loss":
        return Contender(functools.partial(swl.cross_entropy, x, t, **common), float)
    common["grad_out"] = problem.out
    run = functools.partial(swl.cross_entropy_value_and_grad, x, t, **common)
    return Contender(run, lambda result: (float(result.loss), result.grad))


def sample(array: np.ndarray, count: int = 200_000) -> np.ndarray:
    """Some entries of a large array, spread over it, as float64."""
    if array.size > count:
        places = np.linspace(0, array.size - 1, count).astype(np.int64)
        array = array[np.unravel_index(places, array.shape)]
    return array.reshape(-1).astype(np.float64)


def difference(problem: Problem, got: Any, expected: Any) -> str:
    """In words how far two answers are apart; empty if they agree to what the dtype can show."""
    tolerance = {"float64": 1e-9, "float32": 1e-4}.get(problem.logits.dtype.name, 3e-2)
    if problem.operation == "loss_and_grad":
        loss = difference(problem._replace(operation="loss"), got[0], expected[0])
        return loss or difference(problem._replace(operation="softmax"), got[1], expected[1])
    got_numbers, numbers = sample(np.asarray(got)), sample(np.asarray(expected))
    if got_numbers.shape != numbers.shape:
        return f"shapes {np.shape(got)} and {np.shape(expected)}"
    scale = np.abs(numbers).max()
    worst = np.abs(got_numbers - numbers).max() / (scale or 1.0)
    return "" if worst <= tolerance else f"apart by {worst:.1e} of the largest entry"
