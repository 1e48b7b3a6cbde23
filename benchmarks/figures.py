"""The pictures of the README, from what compare.py and sweep.py saved.

    python -m benchmarks.figures     # writes benchmarks/results/speed.png and sweep.png

speed.png: time in units of the parallel plain copy of the same array, by shape, ours and the
rivals', memory for the result given where a library can take it. sweep.png: cost per element from
one element to 3e8. Colours are those of Okabe & Ito, which all kinds of colour vision tell apart;
each library has its own marker beside its colour.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine

HERE = Path(__file__).parent
#: colour and marker of each library
STYLE = {
    "fastswl": ("#0072B2", "o"),
    "onnxruntime": ("#009E73", "s"),
    "PyTorch": ("#D55E00", "^"),
    "JAX": ("#CC79A7", "D"),
    "scikit-learn": ("#56B4E9", "v"),
    "SciPy": ("#E69F00", "P"),
    "NumPy": ("#7F7F7F", "X"),
}
INK = "#333333"
#: shapes of speed.png, from left to right
SHAPES = (
    "GBM",
    "65536 rows of 100",
    "256 classes",
    "1000 classes",
    "32768 classes",
    "131072 classes",
)
TITLES = {"loss_and_grad": "Loss and gradient", "softmax": "Softmax"}


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "font.size": 11,
            "text.color": INK,
            "axes.edgecolor": "#BBBBBB",
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
        }
    )
    return pyplot


def foot(figure: Any, report: dict, threads: str | int) -> None:
    """The machine, and a warning on pictures of quick runs."""
    text = f"{machine.title(report['machine'])}; {threads} threads, float32"
    if report.get("quick"):
        text += "; QUICK RUN: small arrays, the figures mean nothing"
    figure.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=8, color="#777777")


# --- speed.png ----------------------------------------------------------------------------------


def dimensions(row: dict) -> str:
    return "\u2009\u00d7\u2009".join(f"{n:,}" for n in row["dimensions"])


def in_copies(row: dict) -> dict[str, float]:
    """Times of all libraries in copies; PyTorch's is the better of its two calls."""
    copy = row["seconds"]["copy"]
    times = {"fastswl": row["seconds"]["ours"], **row["rivals"]}
    if "PyTorch by hand" in times:
        times["PyTorch"] = min(times.pop("PyTorch by hand"), times.get("PyTorch", float("inf")))
    return {name: times[name] / copy for name in STYLE if name in times}


def rows_of(results: list[dict], operation: str) -> list[dict]:
    """One row a shape, memory given, in the order of `SHAPES`."""
    found = {
        r["shape"]: r
        for r in results
        if r["operation"] == operation
        and r["given"]
        and r["dtype"] == "float32"
        and r["group"] in ("beyond the cache", "rivals")
    }
    return [found[name] for name in SHAPES if name in found]


def figure_of(time: float, digits: int) -> str:
    return f"{time:.{digits}f}" if time < 2 else f"{time:.1f}" if time < 10 else f"{time:.0f}"


def bars(axes: Any, rows: list[dict], operation: str) -> None:
    """A group of bars a shape, shortest first, with figures on ours and on the best rival."""
    from matplotlib.transforms import offset_copy

    width = 0.125
    highest = max(max(in_copies(row).values()) for row in rows)
    for place, row in enumerate(rows):
        times = sorted(in_copies(row).items(), key=lambda item: item[1])
        start = place - width * (len(times) - 1) / 2
        best = next(name for name, _ in times if name != "fastswl") if len(times) > 1 else None
        for i, (name, time) in enumerate(times):
            colour, marker = STYLE[name]
            x = start + i * width
            axes.bar(x, time, width * 0.86, color=colour)
            above = offset_copy(axes.transData, axes.figure, y=5, units="points")
            axes.plot(x, time, marker, color=colour, markersize=4.5, transform=above)
            if name in ("fastswl", best):
                axes.annotate(
                    figure_of(time, 2 if name == "fastswl" else 1),
                    (x, time),
                    xytext=(0, 9),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    fontweight="bold" if name == "fastswl" else "normal",
                )
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(len(rows) - 0.5, 1, "copy", ha="left", va="center", fontsize=9, color=INK, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(0.5, highest * 2)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= highest * 2]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(rows)), [dimensions(row) for row in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_title(TITLES[operation], loc="left", fontweight="bold")
    axes.set_ylabel("time, in plain copies")


def speed(report: dict, threads: str, file: Path) -> bool:
    plt = pyplot()
    results = report["threads"][threads]
    panels = [(operation, rows_of(results, operation)) for operation in TITLES]
    panels = [(operation, rows) for operation, rows in panels if rows]
    if not panels:
        return False
    figure, all_axes = plt.subplots(len(panels), 1, figsize=(11, 4.1 * len(panels) + 0.5), squeeze=False)
    for axes, (operation, rows) in zip(all_axes[:, 0], panels, strict=True):
        bars(axes, rows, operation)
    seen = {name for _, rows in panels for row in rows for name in in_copies(row)}
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=name)
        for name, (colour, marker) in STYLE.items()
        if name in seen
    ]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), handletextpad=0.2)
    figure.tight_layout(rect=(0, 0.02, 0.98, 0.955))
    foot(figure, report, threads)
    figure.savefig(file)
    plt.close(figure)
    return True


# --- sweep.png ----------------------------------------------------------------------------------

#: classes whose curves are drawn, light to dark (a sequence, so one hue in steps of brightness)
CURVES = {
    2: "#B9D7EA",
    10: "#86BADB",
    100: "#4D9AC9",
    1000: "#1F77B0",
    10_000: "#0B5488",
    131_072: "#07365A",
    1_000_000: "#021B30",
}
CURVE_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curve(axes: Any, points: list[dict], colour: str, marker: str, label: str) -> None:
    x = [p["elements"] for p in points]
    y = [p["seconds"] / p["elements"] * 1e9 for p in points]
    axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)


def sweep(report: dict, file: Path) -> bool:
    plt = pyplot()
    operations = [o for o in TITLES if any(p["operation"] == o for p in report["points"])]
    if not operations:
        return False
    figure, all_axes = plt.subplots(1, len(operations), figsize=(11, 5), sharey=True, squeeze=False)
    for axes, operation in zip(all_axes[0], operations, strict=True):
        points = [p for p in report["points"] if p["operation"] == operation]
        plain = sorted({p["elements"]: p for p in points}.values(), key=lambda p: p["elements"])
        axes.plot(
            [p["elements"] for p in plain],
            [p["copy"] / p["elements"] * 1e9 for p in plain],
            color="#D55E00",
            linestyle=(0, (4, 2)),
            linewidth=1.8,
            label="plain copy",
        )
        for (classes, colour), marker in zip(CURVES.items(), CURVE_MARKERS, strict=True):
            same = [p for p in points if p["classes"] == classes]
            if same:
                curve(axes, same, colour, marker, f"{classes:,} classes")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(axis="x")
        axes.set_xlabel("elements")
        axes.set_title(TITLES[operation], loc="left", fontweight="bold")
    all_axes[0][0].set_ylabel("ns an element")
    all_axes[0][-1].legend(loc="upper right", fontsize=9)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    foot(figure, report, report["threads"])
    figure.savefig(file)
    plt.close(figure)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compare", type=Path, default=HERE / "results" / "compare.json")
    parser.add_argument("--sweep", type=Path, default=HERE / "results" / "sweep.json")
    parser.add_argument("--threads", default="2", help="of speed.png; default 2")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    missing = False
    for source, name, draw in (
        (args.compare, "speed.png", lambda r, f: speed(r, args.threads, f)),
        (args.sweep, "sweep.png", sweep),
    ):
        file = args.out / name
        if not source.exists():
            print(f"{source} is not there: {file.name} not drawn", file=sys.stderr)
            missing = True
        elif draw(json.loads(source.read_text()), file):
            print(file)
        else:
            print(f"{source} has nothing for {file.name}", file=sys.stderr)
            missing = True
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
