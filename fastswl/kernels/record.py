"""What is known of a part of a row: its record."""

from fastswl.kernels.rows import (
    APART,
    APART_EXP,
    APART_LOW,
    CLASS,
    LINE,
    MASS_AT,
    MASS_MOVES,
    POWER,
    REFERENCE_LOW,
    REST,
    REST_LOW,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    TOP,
    UNITS,
)
from fastswl.simd import formula, lanes

#: vectors in a part of a row: 16 KB, half of the smallest first-level cache in use
PART_VECTORS = 256
#: what is known of a part: float64 words, `step` bytes apart. A record of its own has them side by side; a row of one part has
#: them in the row's column of its table
RECORD_STEP, COLUMN_STEP = 8, LINE
(
    PART_TOP,
    PART_POWER,
    PART_UNITS,
    PART_REST,
    PART_REST_LOW,
    PART_APART,
    PART_APART_LOW,
    PART_APART_EXP,
    PART_CLASS,
    PART_REFERENCE_LOW,
    PART_MASS,
    PART_DISTANCE,
    PART_MASS_AT,
    PART_MASS_MOVES,
) = (
    line // LINE
    for line in (
        TOP,
        POWER,
        UNITS,
        REST,
        REST_LOW,
        APART,
        APART_LOW,
        APART_EXP,
        CLASS,
        REFERENCE_LOW,
        SPREAD_MASS,
        SPREAD_DISTANCE,
        MASS_AT,
        MASS_MOVES,
    )
)
PART_BYTES = 14 * RECORD_STEP
#: what a part that is being computed has come to so far, in each lane, a line each: sum of e in two parts, the largest and the
#: smallest logits, sum of logits times class weights
SO_FAR, SO_FAR_LOW, SO_FAR_BOUNDS, SO_FAR_WEIGHED = range(0, 4 * LINE, LINE)
SO_FAR_BYTES = 4 * LINE


@formula
def record_step(n_parts):
    """How far apart the words of a record are: `n_parts` is None in kernels for rows of one part."""
    return COLUMN_STEP if n_parts is None else RECORD_STEP


@formula
def parts_of(storage, n_classes):
    """How many parts a row has."""
    part_classes = PART_VECTORS * lanes(storage)
    return (n_classes + part_classes - 1) >> (part_classes.bit_length() - 1)
