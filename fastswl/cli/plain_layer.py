"""The same layer in plain NumPy: what the demo compares with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class PlainSoftmaxWithLoss:
    """Softmax and mean cross entropy of rows of logits; targets are class indices."""

    def forward(self, x: Array, t: Array) -> np.float64:
        """Keep the softmax and the targets; return the mean loss."""
        shifted = x - x.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1)
        self.y = e / total[:, None]
        self.t = t
        losses = np.log(total) - shifted[np.arange(len(t)), t]
        return np.float64(losses.mean(dtype=np.float64))

    def backward(self) -> Array:
        """`(y - t) / batch size`."""
        dx: Array = self.y.copy()
        dx[np.arange(len(self.t)), self.t] -= 1
        dx /= len(self.t)
        return dx
