"""A two-layer network from scratch: affine, ReLU, affine, softmax with loss; trained by Adam.

The layers are those of the book that `SoftmaxWithLoss` comes from: `forward` keeps what `backward`
needs, and `backward` turns the gradient that arrives from above into the one that goes below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class LossLayer(Protocol):
    """The last layer: `fastswl.SoftmaxWithLoss`, or another with the same two methods."""

    def forward(self, x: Array, t: Array) -> np.float64:
        """Mean loss of the logits `x` for the targets `t`."""

    def backward(self) -> Array:
        """Gradient of the loss with respect to the logits."""


class Affine:
    """`x @ weight + bias`."""

    def __init__(self, n_in: int, n_out: int, rng: np.random.Generator) -> None:
        # He's scale keeps the variance of the activations behind a ReLU
        self.weight = rng.standard_normal((n_in, n_out), np.float32) * np.float32(np.sqrt(2 / n_in))
        self.bias = np.zeros(n_out, np.float32)

    def forward(self, x: Array) -> Array:
        """Keep `x`; return the product."""
        self.x = x
        product: Array = x @ self.weight + self.bias
        return product

    def backward(self, dout: Array) -> Array:
        """Keep the gradients of weight and bias; return that of `x`."""
        self.weight_grad = self.x.T @ dout
        self.bias_grad = dout.sum(axis=0)
        dx: Array = dout @ self.weight.T
        return dx


class Relu:
    """`max(x, 0)`."""

    def forward(self, x: Array) -> Array:
        """Keep where `x` is positive; return the rest as 0."""
        self.positive = x > 0
        return x * self.positive

    def backward(self, dout: Array) -> Array:
        """Pass the gradient where `x` was positive."""
        return dout * self.positive


class Adam:
    """Kingma and Ba's optimiser."""

    def __init__(self, parameters: list[Array]) -> None:
        self.parameters = parameters
        self.step_count = 0
        self.means = [np.zeros_like(p) for p in parameters]
        self.squares = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[Array], rate: float) -> None:
        """Change the parameters in place."""
        self.step_count += 1
        # the running means start at 0: their bias is divided out
        correction = np.sqrt(1 - 0.999**self.step_count) / (1 - 0.9**self.step_count)
        scaled_rate = np.float32(rate * correction)
        for p, g, mean, square in zip(self.parameters, gradients, self.means, self.squares, strict=True):
            mean += np.float32(0.1) * (g - mean)
            square += np.float32(0.001) * (g * g - square)
            p -= scaled_rate * mean / (np.sqrt(square) + np.float32(1e-8))


class TwoLayerNetwork:
    """Affine, ReLU, affine, and the loss layer that is handed in."""

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_classes: int,
        loss_layer: LossLayer,
        rng: np.random.Generator,
    ) -> None:
        self.first = Affine(n_in, n_hidden, rng)
        self.relu = Relu()
        self.second = Affine(n_hidden, n_classes, rng)
        self.loss_layer = loss_layer

    @property
    def parameters(self) -> list[Array]:
        """The arrays that training changes."""
        return [self.first.weight, self.first.bias, self.second.weight, self.second.bias]

    def logits(self, x: Array) -> Array:
        """Scores of the classes, before the softmax."""
        return self.second.forward(self.relu.forward(self.first.forward(x)))

    def gradients(self, x: Array, t: Array) -> tuple[np.float64, list[Array]]:
        """Mean loss of a batch, and its gradients in the order of `parameters`."""
        loss = self.loss_layer.forward(self.logits(x), t)
        self.first.backward(self.relu.backward(self.second.backward(self.loss_layer.backward())))
        return loss, [
            self.first.weight_grad,
            self.first.bias_grad,
            self.second.weight_grad,
            self.second.bias_grad,
        ]


def shuffled_batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield the indices of one epoch, in a new order, cut into batches."""
    order = rng.permutation(n)
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]
