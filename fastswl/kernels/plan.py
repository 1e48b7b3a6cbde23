"""What a kernel is told: 8-byte words in memory.

Addresses and strides are in bytes. Rows are numbered by (outer, inner); every array has a stride for each of the two, and
arrays with a class axis one more. A zero address is an absent array.
"""

import struct
from typing import NamedTuple

from numba import types

from fastswl.simd import Words, formula, least, quotient, select, words_at

#: operations
SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, LOSS = range(4)
#: kinds of targets of a loss
NO_TARGETS, INDEX_TARGETS, PROBABILITY_TARGETS = range(3)
#: classes up to which a row's own class is found by comparing with every class (a vector of rows at a time), not by row
COMPARED_CLASSES = 32


class Plan(NamedTuple):
    """The words of a call; whole numbers first, then floats."""

    # addresses, and what else differs between calls of the same shapes and options
    logits: int
    out: int  # softmax, log_softmax, or the gradient
    softmax: int  # softmax beside the gradient, for the layer
    targets: int
    sample_weight: int  # float64
    upstream: int  # float64
    mask: int  # one byte a class
    row_values: int  # logsumexp or per-row losses
    weight: int  # float64, one a class, with a vector of zeros behind where there is smoothing
    weight_vector: int  # the same in the arithmetic type, with a vector of zeros behind
    part_weights: int  # sums of them over the classes of each part of a row, float64
    partials: int  # (sum, rest) of the losses of each block, float64
    row_factor: float  # of every row's gradient: upstream logit_scale / divisor
    weight_total: float  # of all classes
    phase: int  # of the split walk, see `split.py`
    row_tables: int  # split walk: what is known of each row
    row_parts: int  # split walk: what is known of each part of each row
    # what shapes, strides and options say
    operation: int
    logits_outer: int
    logits_inner: int
    logits_class: int
    out_outer: int
    out_inner: int
    out_class: int
    softmax_outer: int
    softmax_inner: int
    softmax_class: int
    targets_outer: int
    targets_inner: int
    targets_class: int
    sample_weight_outer: int
    sample_weight_inner: int
    upstream_outer: int
    upstream_inner: int
    mask_outer: int
    mask_inner: int
    mask_class: int
    row_values_outer: int
    row_values_inner: int
    n_outer: int
    n_inner: int
    n_classes: int
    tile_rows: int  # rows that a step of the walk takes together
    tile_bytes: int  # of scratch memory a tile
    tiles_per_block: int  # steps in a block
    streaming: int  # whether results go past the caches
    line_buffer: int  # where in scratch memory results are gathered into lines, 0 where they are not, see `stream.py`
    gathered: int  # whether the results of all rows follow each other in memory
    kind: int  # of targets
    index_code: int  # which integer type, see `targets.py`
    ignore_index: int
    label_smoothing: float
    z_loss: float
    logit_scale: float
    softcap: float  # 0 for none


_FLOAT_FIELDS = {"row_factor", "label_smoothing", "weight_total", "z_loss", "logit_scale", "softcap"}
_FIELDS = {
    name: (number, types.float64 if name in _FLOAT_FIELDS else types.int64) for number, name in enumerate(Plan._fields)
}
#: words that differ between calls of the same shapes and options; the others are packed once
CHANGING = Plan._fields.index("operation")


def _layout(names: tuple) -> struct.Struct:
    return struct.Struct("=" + "".join("d" if name in _FLOAT_FIELDS else "q" for name in names))


CHANGING_LAYOUT, FIXED_LAYOUT = _layout(Plan._fields[:CHANGING]), _layout(Plan._fields[CHANGING:])
PLAN_BYTES = 8 * len(Plan._fields)
#: for kernels: the plan that lies at an address; and one that is still being filled in
load_plan, plan_to_fill_in = (words_at(Words("plan", _FIELDS, fixed)) for fixed in (True, False))
#: where the words stand that differ between calls of the same shapes
LOGITS_WORD, TARGETS_WORD, WEIGHT_WORD, SAMPLE_WEIGHT_WORD = (
    8 * Plan._fields.index(name) for name in ("logits", "targets", "weight", "sample_weight")
)
OUT_WORD, SOFTMAX_WORD, ROW_VALUES_WORD, PARTIALS_WORD, ROW_FACTOR_WORD = (
    8 * Plan._fields.index(name) for name in ("out", "softmax", "row_values", "partials", "row_factor")
)
#: a place behind the words of a plan, at a multiple of 64: the partial sums of a kept call
BEHIND_PLAN = (PLAN_BYTES + 63) // 64 * 64


@formula
def steps_of_outer(plan):
    """Of how many steps the rows of one outer number are."""
    return quotient(plan.n_inner + plan.tile_rows - 1, plan.tile_rows)


@formula
def first_row_of_step(plan, steps_per_outer, step):
    """The outer number of a step, and the inner number of its first row."""
    outer = quotient(step, steps_per_outer)
    return outer, (step - outer * steps_per_outer) * plan.tile_rows


@formula
def steps_of_blocks(plan, first, last):
    """The first step of the blocks from `first` on, and that after the last."""
    n_steps = plan.n_outer * steps_of_outer(plan)
    return first * plan.tiles_per_block, least(last * plan.tiles_per_block, n_steps)


@formula
def results_of_steps(plan, first, last):
    """Where the results of such steps begin and end, if they follow each other in memory; else 0 for both."""
    begin = plan.out + first * plan.tile_rows * plan.out_inner
    end = plan.out + least(last * plan.tile_rows, plan.n_inner) * plan.out_inner
    return select(plan.gathered != 0, begin, 0), select(plan.gathered != 0, end, 0)


@formula
def logits_of_row(plan, outer, inner):
    """Address of a row's first logit."""
    return plan.logits + outer * plan.logits_outer + inner * plan.logits_inner


@formula
def results_of_row(plan, outer, inner):
    """Address of a row's first result."""
    return plan.out + outer * plan.out_outer + inner * plan.out_inner


@formula
def targets_of_row(plan, outer, inner):
    """Address of a row's target, or of its first one."""
    return plan.targets + outer * plan.targets_outer + inner * plan.targets_inner


@formula
def spread_wanted(plan):
    """Whether every class may have target mass, not the row's own alone."""
    return (plan.kind == PROBABILITY_TARGETS) | ((plan.kind == INDEX_TARGETS) & (plan.label_smoothing != 0.0))


@formula
def spread_evenly(plan):
    """Whether that mass is the same for every row: smoothing of class indices without a mask."""
    return (plan.kind == INDEX_TARGETS) & (plan.label_smoothing != 0.0) & (plan.mask == 0)


@formula
def leaves_one_out(plan):
    """Whether one class is left out of a row's sum: the target, or the largest where there is no target.

    A logsumexp needs that only near 0, where rows of few classes often are; one of many classes is summed up again there (see
    `near_zero.py`), and all others are spared looking for the largest (256 classes: 0.235 to 0.185 ns an element).
    """
    few = (plan.operation != LOGSUMEXP) | (plan.n_classes <= COMPARED_CLASSES)
    return (plan.operation != SOFTMAX) & few


@formula
def capped(plan):
    """Whether the derivative of the change of variable differs from class to class; that of a scale is in `row_factor`."""
    return plan.softcap != 0.0


@formula
def slopes_on_the_way(plan):
    """Whether the exponentials of changed logits are multiplied by the derivative of the change as soon as they are known: where they
    serve the gradient alone, and nothing else is in it."""
    return (plan.operation == LOSS) & changed(plan) & ~spread_wanted(plan) & (plan.softmax == 0)


@formula
def changed(plan):
    """Whether the logits go through a change of variable."""
    return (plan.softcap != 0.0) | (plan.logit_scale != 1.0)
