"""Walk the computational graph of softmax with cross-entropy loss on one row of logits.

Every node is shown with its forward value and the gradient that flows back to it by the rules of
the book: 1 arrives at the loss, a product swaps its factors, a sum passes, a log divides, and a
value that went to several places adds up what comes back. What arrives at the logits is y - t;
beside it stands what the kernel gives.
"""

from __future__ import annotations

import argparse
import decimal
import math
from collections.abc import Sequence

from fastswl.cli.console import CommandError, table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fastswl explain`."""
    parser.add_argument(
        "logits",
        nargs="*",
        type=float,
        default=[0.3, 2.9, 4.0],
        help="a score for each class, any finite number; softmax makes probabilities of them (default: 0.3 2.9 4.0)",
    )
    parser.add_argument("--target", type=int, default=0, help="the right class, counted from 0 (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Print the nodes, then the gradient beside the kernel's."""
    logits, target = arguments.logits, arguments.target
    for logit in logits:
        if not math.isfinite(logit):
            raise CommandError(f"logits must be finite, not {logit}")
    if not 0 <= target < len(logits):
        raise CommandError(f"--target must be a class between 0 and {len(logits) - 1}, not {target}")
    import numpy as np

    import fastswl
    from fastswl.cli.graph import softmax_with_loss

    computed = softmax_with_loss(logits, target)
    result = fastswl.cross_entropy_value_and_grad(np.array([logits]), np.array([target]))
    by_graph = [float(computed.loss.forward), *(float(a.gradient) for a in computed.logits)]
    by_kernel = [float(result.loss), *map(float, result.grad[0])]
    names = ["L", *(f"y{k} - t{k}" for k in range(1, len(logits) + 1))]
    exact = _exact_loss_and_gradient(logits, target)

    print(f"Logits {', '.join(f'{logit:g}' for logit in logits)}; target: class {target}\n")
    rows = []
    for node in computed.graph.nodes:
        forward, came_back = (f"{value + 0.0:.10g}" for value in (node.forward, node.gradient))
        parts = " + ".join(f"{part + 0.0:.6g}" for part in node.arrived) if len(node.arrived) > 1 else ""
        rows.append([node.name, node.operation, forward, node.rule, came_back, parts])
    headers = ["node", "operation", "forward", "passes back", "gradient here", "as a sum of"]
    print(table(headers, rows, "llrlrl"), end="\n\n")
    rows = [
        [
            name,
            f"{graph + 0.0:.16e}",
            f"{kernel:.16e}",
            _ulp(graph, kernel),
            _ulp(graph, value),
            _ulp(kernel, value),
        ]
        for name, graph, kernel, value in zip(names, by_graph, by_kernel, exact, strict=True)
    ]
    headers = ["", "graph", "kernel", "ulp between", "graph's error", "kernel's error"]
    print(table(headers, rows, "lrrrrr"))
    print("\nErrors are in ulp, the distance of neighbouring float64, from the value to 60 digits.")
    if not all(map(math.isfinite, by_graph)):
        print("An exp overflowed or a probability fell to 0 in the graph; not so in the kernel.")


def _exact_loss_and_gradient(logits: Sequence[float], target: int) -> list[decimal.Decimal]:
    """Loss and gradient, right to 60 digits of each value, however small.

    Only what has one sign is added up, so nothing cancels: the loss is (max - x_t) + log(1 + rest), where rest sums exp(x - max)
    over all logits but one that is the largest.
    """
    # more digits than are promised: log(1 + rest) loses the 40 by which rest may be smaller than 1
    with decimal.localcontext(prec=140):
        row = [decimal.Decimal(logit) for logit in logits]
        largest = row.index(max(row))
        e = [(logit - row[largest]).exp() for logit in row]
        rest = _sum_without(e, largest)
        total = 1 + rest
        # in this 1e-174 would vanish; of the series, the third term is below 1e-80 of the first
        log_total = total.ln() if rest > decimal.Decimal("1e-40") else rest - rest * rest / 2
        gradient = [value / total for value in e]
        gradient[target] = -_sum_without(e, target) / total
        return [(row[largest] - row[target]) + log_total, *gradient]


def _sum_without(terms: Sequence[decimal.Decimal], index: int) -> decimal.Decimal:
    return sum((term for k, term in enumerate(terms) if k != index), decimal.Decimal())


def _ulp(value: float, reference: float | decimal.Decimal) -> str:
    """Distance of a value from a reference, in ulp of the reference."""
    rounded = float(reference)
    if not (math.isfinite(value) and math.isfinite(rounded)):
        # inf is right where the reference is beyond the largest float64
        return "0.00" if value == rounded else f"{abs(value - rounded)}"
    with decimal.localcontext(prec=60):
        distance = abs(decimal.Decimal(value) - decimal.Decimal(reference))
        ulps = distance / decimal.Decimal(math.ulp(rounded))
    return f"{ulps:.2f}" if ulps < 1000 else f"{ulps:.1e}"
