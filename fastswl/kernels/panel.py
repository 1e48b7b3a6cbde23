"""The stages of a tile of rows, with all their classes in scratch memory: one vector a class, one lane a row.

In all of them `together` says whether several tiles of rows that lie side by side are moved together, see `tiles.py`; it is None in
kernels of tiles that go alone, whose classes are known to lie side by side.
"""

import functools

import numpy as np

from fastswl.compilation import routine
from fastswl.kernels.block import (
    FAR_32,
    FAR_64,
    FAR_AHEAD,
    STRIDED_AHEAD,
    Ahead,
    Logits,
    block_maximum,
    by_low_parts,
    cap_and_scale,
    exp_and_sum,
    nan_where_any,
    no_low_parts,
    scale_block,
    subtract,
)
from fastswl.kernels.plan import (
    COMPARED_CLASSES,
    INDEX_TARGETS,
    LOG_SOFTMAX,
    LOSS,
    SOFTMAX,
    capped,
    changed,
    leaves_one_out,
    logits_of_row,
    results_of_row,
    spread_evenly,
    spread_wanted,
)
from fastswl.kernels.rows import (
    AGAIN,
    APART,
    APART_EXP,
    APART_LOW,
    CLASS,
    INVERSE,
    INVERSE_LOW,
    LEFT_OUT,
    LOG_SUM,
    MASS_AT,
    MASS_MOVES,
    ONES,
    PLACED,
    PLACES,
    POWER,
    REFERENCE,
    REFERENCE_LOW,
    REST,
    REST_LOW,
    ROW_WEIGHT,
    SCALE,
    SCALE_LOW,
    SPREAD_AT_TARGET,
    SPREAD_DISTANCE,
    SPREAD_MASS,
    SPREAD_SCALE,
    TABLE_BYTES,
    TARGET_GRADIENT,
    TOP,
    describe_tile,
    others_at_target,
    smoothing_unit,
)
from fastswl.kernels.spread import clear_ignored, fill_masked_of_tile, put_weights, spread_of_tile
from fastswl.kernels.stream import INTERLEAVED, LINE_BYTES, flush, keep_rest, lines_of_tile, write_lines
from fastswl.kernels.tiles import (
    Made,
    load_tile,
    made_on_the_way,
    store_tile,
)
from fastswl.simd import (
    VECTOR_BYTES,
    Running,
    absolute,
    any_lane,
    arithmetic_of,
    by_type,
    choose,
    fma,
    formula,
    in_float64,
    itemsize,
    lane_numbers,
    lanes,
    least,
    load,
    load_double,
    load_int64,
    load_integer,
    load_one,
    load_wide,
    narrow,
    quotient,
    result_of,
    select,
    splat_like,
    steps,
    store,
    store_double,
    store_int64,
    store_integers,
    store_one,
    store_wide,
    to_float64,
    when,
    wide_zero,
    widen,
    word,
)
from fastswl.vectormath import exp_reference, nearest_power

#: what stands in place of a class that is left out where the sum of all logits is wanted: its exponential is 0, whatever N
FAR_BELOW = -2048.0


@routine
def prepare_tile(storage, target_storage, plan, table, outer, inner, count, together, is_weighed):
    """The logits of a tile, and what is known of them before their exponentials; `table` and the tile's areas lie end to end.

    Areas: logits then exponentials; mass (log_softmax: exponentials); low parts of changed logits; slopes of the change;
    softmax where it is wanted beside the gradient. With `together` the logits are in the tile. `is_weighed` is what
    `weighed_on_the_way` says, but for tiles that are not finite.
    """
    arithmetic = arithmetic_of(storage)
    n_classes = plan.n_classes
    tile = table + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    mass, low_area, slopes = tile + area, tile + 2 * area, tile + 3 * area

    active = describe_tile(storage, plan, table, outer, inner, count)
    source = logits_of_row(plan, outer, inner)
    if together is not None and together:
        top = block_maximum(arithmetic, tile, n_classes)
    else:
        class_stride = unless_alone(together, plan.logits_class)
        top = load_tile(storage, tile, source, plan.logits_inner, class_stride, n_classes, count)
    is_changed = False
    low_parts = no_low_parts(target_storage)
    if target_storage is not None and active < count and not is_weighed and (spread_wanted(plan) or changed(plan)):
        clear_ignored(arithmetic, table, tile, n_classes)
        is_changed = True
    if target_storage is not None and changed(plan):
        low_parts = low_area
        n_numbers = n_classes * lanes(storage)
        cap_and_scale(arithmetic, tile, tile, low_parts, slopes, n_numbers, plan.softcap, plan.logit_scale)
        is_changed = True
    if target_storage is not None and plan.mask != 0:
        fill_masked_of_tile(arithmetic, plan, tile, -np.inf, outer, inner, count)
        is_changed = True

    if is_changed:
        top = block_maximum(arithmetic, tile, n_classes)
    if any_lane(top == np.inf):
        top = nan_where_any(arithmetic, tile, n_classes, top)
    m, shift = shift_of_rows(arithmetic, table, top)
    if any_lane(shift != 0.0):
        subtract(arithmetic, tile, low_parts, n_classes, shift)
        m = settle_shift(arithmetic, table, shift, block_maximum(arithmetic, tile, n_classes))
    store_wide(arithmetic, table + POWER, widen(nearest_power(arithmetic, m)))

    if leaves_one_out(plan) and plan.kind != INDEX_TARGETS:
        find_largest(arithmetic, table, tile, low_parts, n_classes)
    nothing = -np.inf
    if target_storage is not None and is_weighed:
        nothing = FAR_BELOW
    elif target_storage is not None and spread_wanted(plan):
        spread_of_tile(arithmetic, target_storage, plan, table, tile, low_parts, mass, m, outer, inner, count)

    if leaves_one_out(plan):
        leave_out(arithmetic, plan, table, tile, low_parts, mass, count, nothing)


@routine
def sum_up_tile(storage, target_storage, plan, table, outer, inner, count, buffer, waiting, is_first, together):
    """From the logits of a tile, of which `prepare_tile` knows the largest, to its exponentials and their sums.

    Meanwhile the results of the tile before, which lie in `buffer`, go to `waiting`, where that is not 0; `is_first` says whether
    that tile is the first of its block. (In bites, as in the row walk.)
    """
    arithmetic = arithmetic_of(storage)
    n_classes = plan.n_classes
    tile = table + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    low_parts = no_low_parts(target_storage)
    if target_storage is not None and changed(plan):
        low_parts = tile + 2 * area
    exponentials = tile + area if plan.operation == LOG_SOFTMAX else tile
    magic, lowest = exp_reference(arithmetic, narrow(arithmetic, load_wide(arithmetic, table + POWER)))
    ahead = what_is_next(storage, plan, logits_of_row(plan, outer, inner), together)
    rest, rest_low = wide_zero(arithmetic), wide_zero(arithmetic)
    weighed = nothing_weighed(arithmetic, target_storage)
    if waiting == 0:
        rest, rest_low, weighed = exp_of_tile(
            arithmetic, plan, tile, low_parts, exponentials, word(0), n_classes, magic, lowest, ahead, rest, rest_low, weighed
        )  # fmt: skip
    else:
        # (a loop of its own: as one of a single round it cost 2 classes 10 %)
        results = result_of(storage)
        n_numbers = n_classes * lanes(storage)
        line, lines_at, n_lines = lines_of_tile(results, buffer, waiting, n_numbers, is_first)
        for first in range(0, n_classes, INTERLEAVED):
            n_now = least(INTERLEAVED, n_lines - first)
            if n_now > 0:
                write_lines(line + LINE_BYTES * first, lines_at + LINE_BYTES * first, n_now)
            end = least(first + INTERLEAVED, n_classes)
            rest, rest_low, weighed = exp_of_tile(
                arithmetic, plan, tile, low_parts, exponentials, first, end, magic, lowest, ahead, rest, rest_low, weighed
            )  # fmt: skip
        keep_rest(results, buffer, waiting, n_numbers, line, lines_at, n_lines, False)
    if target_storage is not None and weighed_on_the_way(arithmetic, plan):
        if not spread_of_weighed(arithmetic, plan, table, weighed):
            # once more, for the mass of rows that are not finite; the others keep what they have, so that no row hangs on its
            # neighbours
            known = load_wide(arithmetic, table + SPREAD_DISTANCE)
            is_loaded = unless_alone(together, False)
            prepare_tile(storage, target_storage, plan, table, outer, inner, count, is_loaded, False)
            keep_known(arithmetic, table, known)
            magic, lowest = exp_reference(arithmetic, narrow(arithmetic, load_wide(arithmetic, table + POWER)))
            rest, rest_low, _ = exp_of_tile(
                arithmetic, plan, tile, low_parts, tile, word(0), n_classes, magic, lowest, ahead, wide_zero(arithmetic),
                wide_zero(arithmetic), weighed,
            )  # fmt: skip
    if plan.operation == LOSS:
        rest = drop_ignored(arithmetic, table, tile, n_classes, rest)
    store_wide(arithmetic, table + REST, rest)
    store_wide(arithmetic, table + REST_LOW, rest_low)


@formula
def unless_alone(together, value):
    """A value, and None in kernels of tiles that go alone."""
    return None if together is None else value


@formula
def weighed_on_the_way(storage, plan):
    """Whether the logits times the class weights are added up while their exponentials are computed, for a smoothing that is even: a
    difference of sums without the largest logit, for which float64 arithmetic has no digits."""
    return by_type(storage, spread_evenly(plan) & ~changed(plan), False)


@formula
def nothing_weighed(storage, target_storage):
    return None if target_storage is None else wide_zero(storage)


@formula
def exp_of_tile(storage, plan, tile, low_parts, exponentials, first, end, magic, lowest, ahead, high, low, weighed):
    """`exp_and_sum` of logits that are all in the tile; and, where `weighed` is not None, the sum of them times the class weights, if
    that is asked for."""
    logits = Logits(storage, tile, low_parts)

    def add_up(asked=False, weights=None):
        total = None if weighed is None else Running(weighed)

        def watch(c, x):
            if weights is None:
                total.value = total.value + widen(x)
            else:
                total.value = fma(load_double(weights + 8 * c), widen(x), total.value)

        sums = exp_and_sum(
            storage, logits, exponentials, None, first, end, magic, lowest, ahead, high, low, watch if asked else None
        )
        return *sums, None if total is None else total.value

    if weighed is None or in_float64(storage):
        return add_up()
    # (where logits are loaded and transposed it takes longer: half of what widens them is shuffles, too)
    way = select(weighed_on_the_way(storage, plan), select(plan.weight == 0, 1, 2), 0)
    return choose(way, add_up, functools.partial(add_up, True), functools.partial(add_up, True, plan.weight))


@formula
def spread_of_weighed(storage, plan, table, weighed):
    """What `spread_of_tile` stores, from the sum of w x, in which `FAR_BELOW` stands for the target; whether all rows are finite. The
    distance of others is NaN."""
    m, apart = load_wide(storage, table + REFERENCE), load_wide(storage, table + APART)
    has_target = load_wide(storage, table + CLASS) >= 0.0
    unit = smoothing_unit(plan)
    own = load_wide(storage, table + SPREAD_AT_TARGET) * (apart - FAR_BELOW)
    away = unit * (plan.weight_total * m - weighed) - select(has_target, own, wide_zero(storage))
    serves = absolute(away) < np.inf
    store_wide(storage, table + SPREAD_MASS, splat_like(away, unit * plan.weight_total))
    store_wide(storage, table + SPREAD_DISTANCE, select(serves, away, splat_like(away, np.nan)))
    weighted = plan.weight != 0
    store_int64(table + MASS_AT, select(weighted, plan.weight_vector, table + ONES))
    store_int64(table + MASS_MOVES, select(weighted, 1, 0))
    return ~any_lane(~serves)


@formula
def keep_known(storage, table, known):
    """The distances that are `known`, and those in the table where these are NaN."""
    store_wide(
        storage, table + SPREAD_DISTANCE, select(known == known, known, load_wide(storage, table + SPREAD_DISTANCE))
    )


@formula
def drop_ignored(storage, table, tile, n_classes, rest):
    """The sums of exponentials, but 0 of ignored rows that are not finite: these are as if they were 0."""
    drop = (load_wide(storage, table + ROW_WEIGHT) == 0.0) & ~(absolute(rest) < np.inf)
    when(any_lane(drop), functools.partial(clear_ignored, storage, table, tile, n_classes))
    return select(drop, wide_zero(storage), rest)


@formula
def shift_of_rows(storage, table, top):
    """From the largest logit of each row to the reference m; what is subtracted from rows far from 0 first, 0 of others."""
    zero = splat_like(top, 0.0)
    m = select(absolute(top) < np.inf, top, zero)
    store_wide(storage, table + TOP, widen(top))
    store_wide(storage, table + REFERENCE, widen(m))
    return m, select(absolute(m) >= by_type(storage, FAR_32, FAR_64), m, zero)


@formula
def settle_shift(storage, table, shift, top):
    """The same of rows from which `shift` was subtracted: `top` is 0 now, but for what low parts have added."""
    far, top = widen(shift) != 0.0, widen(top)
    store_wide(storage, table + TOP, select(far, widen(shift) + top, load_wide(storage, table + TOP)))
    m = select(far, top, load_wide(storage, table + REFERENCE))
    store_wide(storage, table + REFERENCE, m)
    return narrow(storage, m)


@formula
def what_is_next(storage, plan, source, together):
    """The lines of the next tile, where rows follow each other; those of the next step, where they lie side by side."""

    def next_step():
        far = least(quotient(STRIDED_AHEAD, plan.n_classes), FAR_AHEAD)
        return Ahead(source + itemsize(storage) * plan.tile_rows, plan.logits_class, far)

    def next_tile():
        return Ahead(source + plan.logits_inner * lanes(storage), VECTOR_BYTES, FAR_AHEAD)

    if together is None:
        return next_tile()
    return choose(plan.logits_inner == itemsize(storage), next_tile, next_step)


@routine
def finish_tile(storage, target_storage, plan, table, buffer, outer, inner, count, first, last, together, waits):
    """From the exponentials and the factors of each row to the results, by way of `buffer` where it is not 0; with `together`
    they stay in the tile, and if it `waits` in the buffer."""
    arithmetic = arithmetic_of(storage)
    n_classes = plan.n_classes
    tile = table + TABLE_BYTES
    area = VECTOR_BYTES * n_classes
    slopes = tile + 3 * area
    out = results_of_row(plan, outer, inner)
    softmax_out = plan.softmax + outer * plan.softmax_outer + inner * plan.softmax_inner
    results = result_of(storage)
    made, in_place = made_as_they_are(arithmetic, target_storage, table), False
    if plan.operation == SOFTMAX:
        made = made_of_exponentials(arithmetic, target_storage, table, INVERSE, INVERSE_LOW)
    elif plan.operation == LOG_SOFTMAX:
        put_back(arithmetic, table, tile, table + APART, n_classes)
        made = made_of_logits(arithmetic, target_storage, table)
    else:
        if plan.softmax != 0 or plan.kind != INDEX_TARGETS:
            put_back(arithmetic, table, tile, table + APART_EXP, n_classes)
        if plan.softmax != 0:
            inverse, inverse_low = two_parts(arithmetic, table, INVERSE, INVERSE_LOW)
            probabilities = slopes + area
            scale_block(arithmetic, tile, probabilities, n_classes, inverse, inverse_low)
            store_tile(
                results,
                probabilities,
                table + AGAIN,
                softmax_out,
                plan.softmax_inner,
                plan.softmax_class,
                n_classes,
                count,
                None,
            )
        scale, scale_low = two_parts(arithmetic, table, SCALE, SCALE_LOW)
        if target_storage is not None and (spread_wanted(plan) or capped(plan)):
            is_placed = place_targets(arithmetic, plan, table)
            if is_placed:
                put_back(arithmetic, table, tile, table + PLACED, n_classes)
            if is_placed and made_by_weights(arithmetic, plan, table):
                made = made_of_both(arithmetic, plan, table)
            else:
                gradient_of_tile(arithmetic, plan, table, tile, slopes, scale, scale_low, n_classes, count)
                in_place = True
        elif n_classes <= COMPARED_CLASSES:
            index, at_target = two_parts(arithmetic, table, CLASS, TARGET_GRADIENT)
            scale_and_place(arithmetic, tile, n_classes, scale, scale_low, index, at_target)
            in_place = True
        elif plan.z_loss != 0.0:
            scale_block(arithmetic, tile, tile, n_classes, scale, scale_low)
            put_back(arithmetic, table, tile, table + TARGET_GRADIENT, n_classes)
            in_place = True
        else:
            others_at_target(arithmetic, table)
            put_back(arithmetic, table, tile, table + TARGET_GRADIENT, n_classes)
            made = made_of_exponentials(arithmetic, target_storage, table, SCALE, SCALE_LOW)
        if target_storage is not None and plan.mask != 0:
            if not in_place:
                make_in_place(arithmetic, tile, n_classes, made)
            in_place, made = True, made_as_they_are(arithmetic, target_storage, table)
            fill_masked_of_tile(arithmetic, plan, tile, 0.0, outer, inner, count)
    if together is not None and together:
        if not in_place:
            make_in_place(arithmetic, tile, n_classes, made)
        return
    class_stride = unless_alone(together, plan.out_class)
    if not in_place and not made_on_the_way(results, plan.out_inner, class_stride, n_classes, count):
        make_in_place(arithmetic, tile, n_classes, made)
    place = select(buffer == 0, out, buffer + out % LINE_BYTES)
    store_tile(results, tile, table + AGAIN, place, plan.out_inner, class_stride, n_classes, count, made)
    if buffer != 0 and not waits:
        flush(results, buffer, out, n_classes * count, first, last)


def nothing_taken(target_storage, zero, table):
    """For formulas: the fields of `Made` that kernels for plain calls have not, of results from which nothing is taken."""
    return () if target_storage is None else (zero, table + ONES, 0)


@formula
def made_as_they_are(storage, target_storage, table):
    """Results that lie in the tile."""
    zero = splat_like(load(storage, table + ONES), 0.0)
    return Made(True, zero + 1.0, zero, zero, zero, *nothing_taken(target_storage, zero, table))


@formula
def made_of_exponentials(storage, target_storage, table, scale, scale_low):
    """Results that are exponentials times a number of each row in two parts."""
    scale, scale_low = two_parts(storage, table, scale, scale_low)
    zero = splat_like(scale, 0.0)
    return Made(False, scale, scale_low, zero, zero, *nothing_taken(target_storage, zero, table))


@formula
def made_of_logits(storage, target_storage, table):
    """Results of log_softmax."""
    reference, log_sum = two_parts(storage, table, REFERENCE, LOG_SUM)
    zero = splat_like(reference, 0.0)
    return Made(True, zero + 1.0, zero, reference, log_sum, *nothing_taken(target_storage, zero, table))


@formula
def made_of_both(storage, plan, table):
    """Gradients with an even smoothing: alpha e - beta w."""
    scale, scale_low = two_parts(storage, table, SCALE, SCALE_LOW)
    zero = splat_like(scale, 0.0)
    taken = narrow(storage, load_wide(storage, table + SPREAD_SCALE) * smoothing_unit(plan))
    return Made(False, scale, scale_low, zero, zero, taken, load_int64(table + MASS_AT), load_int64(table + MASS_MOVES))


@formula
def place_targets(storage, plan, table):
    """Put into the table what has to stand for the target's exponential, so that the gradient there is computed like all others, of a
    smoothing that is even; NaN of a row where nothing serves. Whether there is any.

    (Row by row, whichever way the results are made: no row hangs on its neighbours.)
    """

    def values():
        at_target, scale = load_wide(storage, table + TARGET_GRADIENT), load_wide(storage, table + SCALE)
        own = load_wide(storage, table + SPREAD_AT_TARGET) * load_wide(storage, table + SPREAD_SCALE)
        # (of a target of -inf the mass is struck)
        own = select(load_wide(storage, table + APART) == -np.inf, wide_zero(storage), own)
        value = (at_target + own) / (scale + load_wide(storage, table + SCALE_LOW))
        size = absolute(value)
        serves = (value == 0.0) | ((size < 1e30) & (size > 1e-18)) | (load_wide(storage, table + CLASS) < 0.0)
        # (a row where nothing is finite is not to be looked at)
        store_wide(storage, table + PLACED, select(serves, value, splat_like(value, np.nan)))
        return True

    def nothing():
        store_wide(storage, table + PLACED, splat_like(wide_zero(storage), np.nan))
        return False

    return choose(spread_evenly(plan) & ~capped(plan) & (plan.n_classes > COMPARED_CLASSES), nothing, values)


@formula
def made_by_weights(storage, plan, table):
    """Whether all gradients can be made on their way out: something is placed for each row, and the mass of the classes is one number
    each."""
    at, moves = load_int64(table + MASS_AT), load_int64(table + MASS_MOVES)
    placed = load_wide(storage, table + PLACED)
    absent = load_wide(storage, table + CLASS) < 0.0
    return ((moves == 0) | (at == plan.weight_vector)) & ~any_lane((placed != placed) & ~absent)


@formula
def make_in_place(storage, tile, n_classes, made):
    """The results in place of what they are made of."""

    def work(made):
        for c in steps(0, n_classes):
            place = tile + VECTOR_BYTES * c
            store(storage, place, made.of(storage, load(storage, place), c))

    made.by_kind(work)


@formula
def leave_out_class(storage, tile, low_parts, index, c, apart, low, nothing):
    """Take a class out of the rows that leave it out (`index`), `nothing` in its place: the logits left out so far, and their low
    parts."""
    place = tile + VECTOR_BYTES * c
    x = load(storage, place)
    here = index == c
    store(storage, place, select(here, splat_like(x, nothing), x))
    low = by_low_parts(low_parts, lambda: low, lambda: select(here, load(storage, low_parts + VECTOR_BYTES * c), low))
    return select(here, x, apart), low


@formula
def store_left_out(storage, table, apart, low):
    """The logits left out, as sums of two (float64); of -inf there is no rest."""
    nothing = apart == -np.inf
    whole = select(nothing, apart, apart + low)
    store_wide(storage, table + APART, whole)
    store_wide(storage, table + APART_LOW, select(nothing, wide_zero(storage), (apart - whole) + low))


@formula
def find_places(storage, table):
    """Where in the tile the class lies that is left out of each row; of a row that leaves none out, and of lanes without a row, beside
    it, where -inf is found."""
    index = load_wide(storage, table + CLASS)
    store(storage, table + LEFT_OUT, narrow(storage, splat_like(index, -np.inf)))
    place = select(index < 0.0, splat_like(index, LEFT_OUT), index * VECTOR_BYTES + TABLE_BYTES)
    store_integers(storage, table + PLACES, place + lane_numbers(storage) * itemsize(storage))


@formula
def place_of_row(table, row):
    """What `find_places` has found."""
    return table + load_integer(table + PLACES + 4 * row, 32, True)


@formula
def leave_out_of_row(storage, table, tile, low_parts, row, nothing):
    """The same of one row: number by number, the two as they are."""
    place = place_of_row(table, row)
    store_double(table + APART + 8 * row, to_float64(load_one(storage, place)))
    store_one(storage, place, nothing)

    def keep_low_part():
        store_double(table + APART_LOW + 8 * row, to_float64(load_one(storage, low_parts - tile + place)))

    by_low_parts(low_parts, lambda: None, keep_low_part)


@formula
def leave_out(storage, plan, table, tile, low_parts, mass, count, nothing):
    """Take one class of each row out of its sum, `nothing` in its place: the target, or the largest where there is no target."""
    n_classes = plan.n_classes
    own_mass_is_known = (plan.kind != INDEX_TARGETS) | ~spread_wanted(plan) | spread_evenly(plan)

    def by_class():
        index = narrow(storage, load_wide(storage, table + CLASS))
        apart, low = Running(splat_like(index, -np.inf)), Running(splat_like(index, 0.0))
        for c in steps(0, n_classes):
            apart.value, low.value = leave_out_class(
                storage, tile, low_parts, index, c, apart.value, low.value, nothing
            )
        store_left_out(storage, table, widen(apart.value), widen(low.value))

    def own_masses():
        for row in steps(0, count):
            place = place_of_row(table, row)

            def keep_mass(row=row, place=place):
                own = to_float64(load_one(storage, mass - tile + place))
                store_double(table + SPREAD_AT_TARGET + 8 * row, own)

            when(place >= tile, keep_mass)

    def by_row():
        find_places(storage, table)
        for row in range(lanes(storage)):
            leave_out_of_row(storage, table, tile, low_parts, row, nothing)

        def settle():
            store_left_out(storage, table, load_wide(storage, table + APART), load_wide(storage, table + APART_LOW))

        by_low_parts(low_parts, lambda: None, settle)
        if low_parts is not None:
            when(~own_mass_is_known, own_masses)

    choose((n_classes <= COMPARED_CLASSES) & own_mass_is_known, by_row, by_class)


@formula
def find_largest(storage, table, tile, low_parts, n_classes):
    """The first class of each row whose logit is the reference, and the low part of that logit, into the table; -1 where there
    is none."""
    reference = narrow(storage, load_wide(storage, table + REFERENCE))
    index, low = Running(splat_like(reference, -1.0)), Running(splat_like(reference, 0.0))
    for i in steps(0, n_classes):
        c = n_classes - 1 - i
        here = load(storage, tile + VECTOR_BYTES * c) == reference
        index.value = select(here, splat_like(reference, c), index.value)

        def low_part(here=here, c=c):
            low.value = select(here, load(storage, low_parts + VECTOR_BYTES * c), low.value)

        by_low_parts(low_parts, lambda: None, low_part)
    store_wide(storage, table + CLASS, widen(index.value))
    store_wide(storage, table + REFERENCE_LOW, widen(low.value))


@formula
def scale_and_place(storage, tile, n_classes, scale, scale_low, index, at_target):
    """`scale_block`, and the gradient at the class that was left out."""
    for c in steps(0, n_classes):
        place = tile + VECTOR_BYTES * c
        e = load(storage, place)
        store(storage, place, select(index == c, at_target, fma(e, scale, e * scale_low)))


@routine
def gradient_of_tile(storage, plan, table, tile, slopes, scale, scale_low, n_classes, count):
    """(alpha e - beta q) dz/dx, and the gradient at the target, where that is a class."""
    index, at_target = two_parts(storage, table, CLASS, TARGET_GRADIENT)
    mass, mass_moves, slopes_move = table + ONES, word(0), word(1)
    beta = wide_zero(storage)
    if spread_wanted(plan):
        mass, mass_moves = load_int64(table + MASS_AT), load_int64(table + MASS_MOVES)
        if mass == plan.weight_vector:
            mass = tile + VECTOR_BYTES * n_classes
            put_weights(storage, plan, table, mass)
        beta = load_wide(storage, table + SPREAD_SCALE)
        if spread_evenly(plan):
            beta = beta * smoothing_unit(plan)
    if not capped(plan):
        slopes, slopes_move = table + ONES, word(0)
    compared = plan.kind == INDEX_TARGETS and n_classes <= COMPARED_CLASSES
    if not compared:
        index = splat_like(index, -1.0)
    taken = narrow(storage, -beta)
    for c in range(n_classes):
        place = tile + VECTOR_BYTES * c
        e = load(storage, place)
        gradient = fma(taken, load(storage, mass + mass_moves * VECTOR_BYTES * c), fma(e, scale, e * scale_low))
        gradient = select(index == c, at_target, gradient)
        store(storage, place, gradient * load(storage, slopes + slopes_move * VECTOR_BYTES * c))
    if plan.kind == INDEX_TARGETS and not compared:
        for row in range(count):
            place, placed = place_of_row(table, row), load_double(table + PLACED + 8 * row)
            if place >= tile and placed != placed:
                slope = load_one(storage, slopes + slopes_move * (place - tile))
                store_one(storage, place, load_double(table + TARGET_GRADIENT + 8 * row) * np.float64(slope))


@formula
def put_back(storage, table, tile, value, n_classes):
    """Put a row's number (the line `value` of the table) at the class that was left out."""

    def by_class():
        index, number = two_parts(storage, table, CLASS, value - table)
        for c in steps(0, n_classes):
            place = tile + VECTOR_BYTES * c
            store(storage, place, select(index == c, number, load(storage, place)))

    def by_row():
        store(storage, table + LEFT_OUT, narrow(storage, load_wide(storage, value)))
        for row in range(lanes(storage)):
            number = load_one(storage, table + LEFT_OUT + itemsize(storage) * row)
            store_one(storage, place_of_row(table, row), number)

    choose(n_classes <= COMPARED_CLASSES, by_row, by_class)


@formula
def two_parts(storage, table, high, low):
    return narrow(storage, load_wide(storage, table + high)), narrow(storage, load_wide(storage, table + low))
