"""Faults that are put into a copy of the package on purpose, to see whether somebody notices.

Each plant is a list of replacements in source files; the text that is replaced has to be there
once. A slow one runs a chain of multiplications that nothing overlaps, some for each vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_IDLE = """

@routine
def planted(place, steps):
    value = float(steps)
    for _ in range(steps):
        value = value * 0.999 + 0.001
    store_double(place, value)

"""


class Plant(NamedTuple):
    """Replacements (file, old, new); `{steps}` in a new text stands for how slow it is to be."""

    walk: str
    replacements: tuple[tuple[str, str, str], ...]
    steps: int = 0  # 15 % on a Zen 4; to begin with elsewhere

    def put_into(self, package: Path, steps: int) -> None:
        """Change the sources of a package."""
        for name, old, new in self.replacements:
            file = package / name
            text = file.read_text()
            if text.count(old) != 1:
                raise LookupError(f"{name} holds this {text.count(old)} times, not once: {old!r}")
            file.write_text(text.replace(old, new.replace("{steps}", str(steps))))


def _in_walk_over_tiles(walk: str, end_of_step: str, tiles: str, steps: int) -> Plant:
    """The panel walk and the strided one have kernels in one module."""
    file = "kernels/panel_walks.py"
    return Plant(
        walk,
        (
            (file, "import block_kernel\n", "import block_kernel, routine\n"),
            (file, "import finish_rows,", "import AGAIN, finish_rows,"),
            (file, "result_of, word\n", "result_of, store_double, word\n"),
            (file, "\n@block_kernel\ndef tile_walk", _IDLE + "\n@block_kernel\ndef tile_walk"),
            (
                file,
                end_of_step,
                f"{end_of_step}            planted(scratch + AGAIN, plan.n_classes * {tiles} * {{steps}} // 64)\n",
            ),
        ),
        steps,
    )


_END_OF_SHORT_STEP = "        if plan.partials != 0:\n            store_partial(arithmetic, plan, scratch, block)\n"
_END_OF_ROW_STEP, _END_OF_BATCH = (
    f"            settle_step(storage, target_storage, plan, {table}, scratch, outer, inner, count, {step})\n"
    for table, step in (("here", "tile, last_tile"), ("table", "number, last_batch"))
)
_SPLIT_STEP = "        split_step(storage, target_storage, plan, scratch, unit, n_parts)\n"


def _with_idle(file: str, before: str = "\n@block_kernel\n") -> tuple[str, str, str]:
    return file, before, _IDLE + before


#: a slowdown of each walk
SLOW = (
    Plant(
        "short",
        (
            ("kernels/short.py", "    steps,\n", "    steps,\n    store_double,\n"),
            ("kernels/short.py", "\n@routine\ndef walk_over_steps(", _IDLE + "\n@routine\ndef walk_over_steps("),
            (
                "kernels/short.py",
                _END_OF_SHORT_STEP,
                "            planted(scratch + AGAIN, plan.n_classes * (plan.tile_rows // lanes(storage)) * {steps} // 64)\n"
                + _END_OF_SHORT_STEP,
            ),
        ),
        253,
    ),
    _in_walk_over_tiles("panel", "            table, next_table, count = next_table, table, next_count\n", "1", 253),
    _in_walk_over_tiles(
        "strided", "            end = least(inner + step_rows, plan.n_inner)\n", "(step_rows // rows)", 149
    ),
    Plant(
        "batch",
        (
            ("kernels/batch_walk.py", "import block_kernel\n", "import block_kernel, routine\n"),
            ("kernels/batch_walk.py", "import describe_tile, settle", "import AGAIN, describe_tile, settle"),
            (
                "kernels/batch_walk.py",
                "import arithmetic_of, least, store_wide,",
                "import arithmetic_of, least, store_double, store_wide,",
            ),
            _with_idle("kernels/batch_walk.py"),
            (
                "kernels/batch_walk.py",
                _END_OF_BATCH,
                _END_OF_BATCH + "            planted(scratch + AGAIN, plan.n_classes * count // 16 * {steps} // 64)\n",
            ),
        ),
        121,
    ),
    Plant(
        "row",
        (
            _with_idle("kernels/row.py", "\n@routine\ndef row_tile("),
            (
                "kernels/row.py",
                _END_OF_ROW_STEP,
                _END_OF_ROW_STEP
                + "            planted(scratch + AGAIN, vectors_of(storage, plan.n_classes) * count * {steps} // 64)\n",
            ),
        ),
        121,
    ),
    Plant(
        "split",
        (
            _with_idle("kernels/split.py"),
            (
                "kernels/split.py",
                _SPLIT_STEP,
                _SPLIT_STEP + "        planted(scratch, PART_VECTORS * {steps} // 64)\n",
            ),
        ),
        51,
    ),
    Plant(
        "small call",
        tuple(
            (file, old, "    for _ in range({steps}):\n        pass\n" + old)
            for file, old in (
                ("functions.py", "    key = (dtype, shape, targets.dtype, targets.shape, int(with_grad), scalars)\n"),
                ("softmax_family.py", "    key = (operation, dtype, shape)\n"),
            )
        ),
        26,
    ),
)

#: up to 4 ulp off the gradient; what finishes a part of a row is the split walk's, too
INEXACT = Plant(
    "row",
    (
        (
            "kernels/results.py",
            "            factor.value, factor_low.value = in_units(SCALE), in_units(SCALE_LOW)\n",
            "            off = 1.0 + by_type(arithmetic, 4 * 2.0**-24, 4 * 2.0**-53)\n"
            "            factor.value = in_units(SCALE) * off\n"
            "            factor_low.value = in_units(SCALE_LOW)\n",
        ),
    ),
)
