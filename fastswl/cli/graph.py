"""A computational graph of scalars with reverse-mode gradients, by the rules of the book.

>>> graph = Graph()
>>> x, y = graph.value("x", 3.0), graph.value("y", 2.0)
>>> product = graph.multiply("x y", x, y)
>>> total = graph.add("x y + x", [product, x])
>>> graph.backward(total)
>>> float(total.forward), float(x.gradient), float(y.gradient)
(9.0, 3.0, 3.0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Node:
    """One value of the graph, how it came about and what flowed back to it."""

    name: str
    operation: str
    rule: str
    """How this node passes a gradient on to its inputs."""
    forward: np.float64
    inputs: Sequence[Node] = ()
    local_gradients: Sequence[np.float64] = ()
    """Derivative of `forward` by each input."""
    arrived: list[np.float64] = field(default_factory=list)
    """What each node that uses this one sent back."""

    @property
    def gradient(self) -> np.float64:
        """Gradient of the result with respect to this value: the sum of all that arrived."""
        return np.float64(sum(self.arrived))


class Graph:
    """Nodes in the order in which they were computed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _append(
        self,
        name: str,
        operation: str,
        rule: str,
        inputs: Sequence[Node],
        function: Callable[..., np.float64],
        gradients: Callable[..., Sequence[np.float64]],
    ) -> Node:
        values = [node.forward for node in inputs]
        # overflow and log(0) are part of what the graph shows
        with np.errstate(all="ignore"):
            forward = function(*values)
            node = Node(name, operation, rule, forward, inputs, gradients(*values))
        self.nodes.append(node)
        return node

    def value(self, name: str, value: float) -> Node:
        """Return a node that is given from outside."""
        return self._append(name, "given", "", (), lambda: np.float64(value), lambda: ())

    def exp(self, name: str, x: Node) -> Node:
        """Return exp(x); going back, a gradient is multiplied by exp(x)."""
        return self._append(name, "exp", "times exp", [x], np.exp, lambda x: [np.exp(x)])

    def log(self, name: str, x: Node) -> Node:
        """Return log(x); going back, a gradient is divided by x."""
        return self._append(name, "log", "divided by x", [x], np.log, lambda x: [1 / x])

    def divide(self, name: str, x: Node) -> Node:
        """Return 1/x; going back, a gradient is multiplied by -1/x**2."""
        return self._append(name, "divide", "times -1/x^2", [x], lambda x: 1 / x, lambda x: [-1 / (x * x)])

    def add(self, name: str, terms: Sequence[Node]) -> Node:
        """Return the sum; going back, a gradient passes unchanged to every term."""
        return self._append(
            name,
            "sum",
            "passes",
            terms,
            lambda *terms: np.float64(sum(terms)),
            lambda *terms: [np.float64(1)] * len(terms),
        )

    def multiply(self, name: str, x: Node, y: Node) -> Node:
        """Return x y; going back, each factor gets the gradient times the other factor."""
        return self._append(name, "multiply", "times the other", [x, y], lambda x, y: x * y, lambda x, y: [y, x])

    def backward(self, result: Node) -> None:
        """Send the gradient 1 into `result` and let it flow back to every node."""
        for node in self.nodes:
            node.arrived.clear()
        result.arrived.append(np.float64(1))
        with np.errstate(all="ignore"):
            # users of a node stand behind it, so all its gradients have arrived when it is reached
            for node in reversed(self.nodes):
                for source, local in zip(node.inputs, node.local_gradients, strict=True):
                    source.arrived.append(node.gradient * local)


@dataclass
class SoftmaxWithLossGraph:
    """The graph of the appendix, for one row of logits and a target that is one class."""

    graph: Graph
    logits: list[Node]
    probabilities: list[Node]
    targets: list[Node]
    loss: Node


def softmax_with_loss(logits: Sequence[float], target: int) -> SoftmaxWithLossGraph:
    """Build the graph forward, then let the gradient flow back."""
    graph = Graph()
    row = range(1, len(logits) + 1)
    a = [graph.value(f"a{k}", logit) for k, logit in zip(row, logits, strict=True)]
    e = [graph.exp(f"exp a{k}", node) for k, node in zip(row, a, strict=True)]
    total = graph.add("S", e)
    inverse = graph.divide("1/S", total)
    y = [graph.multiply(f"y{k}", node, inverse) for k, node in zip(row, e, strict=True)]
    t = [graph.value(f"t{k}", float(k - 1 == target)) for k in row]
    log_y = [graph.log(f"log y{k}", node) for k, node in zip(row, y, strict=True)]
    terms = [graph.multiply(f"t{k} log y{k}", t_k, log_k) for k, t_k, log_k in zip(row, t, log_y, strict=True)]
    weighted = graph.add("sum t log y", terms)
    loss = graph.multiply("L", weighted, graph.value("-1", -1.0))
    graph.backward(loss)
    return SoftmaxWithLossGraph(graph, a, y, t, loss)
