"""The picture that the demo leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fastswl.cli.digits import N_CLASSES, SIDE

if TYPE_CHECKING:
    from fastswl.cli.demo import Epoch

_BLUE, _ORANGE, _INK, _PALE = "#1f5fa8", "#d9822b", "#333333", "#eef1f4"
_N_WRONG = 12


def draw(
    epochs: Sequence[Epoch],
    probabilities: NDArray[Any],
    images: NDArray[Any],
    labels: NDArray[Any],
    out: Path,
) -> None:
    """Write learning curves, confusion matrix and the most confidently wrong digits as PNG."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(12, 9), dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{len(labels):,} digits the network had never seen: {epochs[-1].test_accuracy:.1%} recognised",
        fontsize=16,
        color=_INK,
    )
    upper, lower = cast(Any, figure.subfigures(2, 1, height_ratios=[1.25, 1]))
    left, right = upper.subfigures(1, 2)
    _draw_curves(left, epochs)
    predicted = probabilities.argmax(axis=1)
    _draw_confusion(right, labels, predicted)
    _draw_wrong(lower, probabilities, predicted, images, labels)
    figure.savefig(out, format="png")


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=_INK)


def _draw_curves(figure: Any, epochs: Sequence[Epoch]) -> None:
    number = np.arange(1, len(epochs) + 1)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    marker = "o" if len(epochs) <= 40 else ""
    train = [epoch.train_loss for epoch in epochs]
    test = [epoch.test_loss for epoch in epochs]
    loss.plot(number, train, color=_ORANGE, marker=marker, markersize=3, label="training")
    loss.plot(number, test, color=_BLUE, marker=marker, markersize=3, label="test")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False, labelcolor="linecolor")
    _title(loss, "Mean loss")
    percent = [100 * epoch.test_accuracy for epoch in epochs]
    accuracy.plot(number, percent, color=_BLUE, marker=marker, markersize=3)
    accuracy.annotate(
        f"{percent[-1]:.1f}%",
        (number[-1], percent[-1]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
        color=_BLUE,
    )
    _title(accuracy, "Test accuracy in %")
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in (loss, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_PALE)
        axes.set_axisbelow(True)


def _draw_confusion(figure: Any, labels: NDArray[Any], predicted: NDArray[Any]) -> None:
    counts = np.zeros((N_CLASSES, N_CLASSES), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    # the colour is for the errors: on one scale with the diagonal they would all be white
    errors = np.ma.masked_array(counts, mask=np.eye(N_CLASSES, dtype=bool))
    most = max(int(errors.max()), 1)
    axes = figure.subplots()
    axes.set_facecolor(_PALE)
    axes.imshow(errors, cmap="Blues", vmin=0, vmax=most * 1.25)
    for true, guess in zip(*np.nonzero(counts), strict=True):
        count = counts[true, guess]
        dark = true != guess and count > 0.7 * most
        axes.text(
            guess,
            true,
            str(count),
            ha="center",
            va="center",
            fontsize=10,
            color="white" if dark else _INK,
        )
    axes.set_xticks(range(N_CLASSES))
    axes.set_yticks(range(N_CLASSES))
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(0.5, N_CLASSES - 1), minor=True)
    axes.set_yticks(np.arange(0.5, N_CLASSES - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.spines[:].set_visible(False)
    n_wrong = int(errors.sum())
    _title(axes, f"Confusion matrix: {n_wrong} of {len(labels):,} wrong")


def _draw_wrong(
    figure: Any,
    probabilities: NDArray[Any],
    predicted: NDArray[Any],
    images: NDArray[Any],
    labels: NDArray[Any],
) -> None:
    confidence = probabilities[np.arange(len(labels)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:_N_WRONG]
    figure.suptitle(
        "The most confidently wrong: what the network said and what the digit is, each with its probability",
        x=0.012,
        ha="left",
        fontsize=11,
        color=_INK,
    )
    grid = figure.subplots(2, _N_WRONG // 2).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, wrong, strict=False):
        axes.imshow(images[index].reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
        guess, true = predicted[index], labels[index]
        axes.set_title(f"said {guess}: {confidence[index]:.1%}", fontsize=11, color=_ORANGE, pad=3)
        axes.text(
            0.5,
            -0.03,
            f"is {true}: {probabilities[index, true]:.2%}",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=10,
            color=_BLUE,
        )
