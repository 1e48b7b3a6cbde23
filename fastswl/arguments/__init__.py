"""Checks of what callers pass: array-likes, axes and options become a validated plan. NumPy only.

Each file has one concern: `arrays` (dtypes), `scalars` (numbers and words), `axes`, `targets`,
`outputs` (writeable arrays and overlap), `plan` (the loss as a whole). Nothing here writes to an
array of the caller.
"""

from fastswl.arguments.arrays import (
    LOSS_DTYPE,
    RESULT_DTYPE,
    Array,
    as_array,
    as_float64,
    promoted_dtype,
)
from fastswl.arguments.axes import axis_last, by_descending_stride, class_axes, merge_last_axes
from fastswl.arguments.outputs import check_output, in_place_or_apart, overlaps, require_apart
from fastswl.arguments.plan import (
    LossPlan,
    OwnedBuffers,
    check_upstream,
    empty_error,
    loss_plan,
    read_logits,
)
from fastswl.arguments.scalars import (
    DEFAULT_AXIS,
    DEFAULT_EMPTY,
    DEFAULT_IGNORE_INDEX,
    DEFAULT_LABEL_SMOOTHING,
    DEFAULT_LOGIT_SCALE,
    DEFAULT_REDUCTION,
    DEFAULT_UPSTREAM,
    DEFAULT_Z_LOSS,
    loss_scalars,
    thread_count,
)
from fastswl.arguments.targets import index_error

__all__ = [
    "DEFAULT_AXIS",
    "DEFAULT_EMPTY",
    "DEFAULT_IGNORE_INDEX",
    "DEFAULT_LABEL_SMOOTHING",
    "DEFAULT_LOGIT_SCALE",
    "DEFAULT_REDUCTION",
    "DEFAULT_UPSTREAM",
    "DEFAULT_Z_LOSS",
    "LOSS_DTYPE",
    "RESULT_DTYPE",
    "Array",
    "LossPlan",
    "OwnedBuffers",
    "as_array",
    "as_float64",
    "axis_last",
    "by_descending_stride",
    "check_output",
    "check_upstream",
    "class_axes",
    "empty_error",
    "in_place_or_apart",
    "index_error",
    "loss_plan",
    "loss_scalars",
    "merge_last_axes",
    "overlaps",
    "promoted_dtype",
    "read_logits",
    "require_apart",
    "thread_count",
]
