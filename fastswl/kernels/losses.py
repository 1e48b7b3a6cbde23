"""What the target of a row makes of its sums, where arithmetic is in float32: of tiles side by side, a lane a row."""

from fastswl.kernels.rows import CLASS, LOSS_VALUE, ROW_FACTOR, ROW_WEIGHT, TARGET_MASS, add_losses
from fastswl.simd import SideBySide, choose, formula, load_wide, narrow, select, store_wide, when, wide_zero, widen


def line_of(storage, tables, line):
    """For formulas: a line of several tables, in float64."""
    return SideBySide(*(load_wide(storage, table + line) for table in tables))


def index_of_rows(storage, tables):
    """For formulas: the class of each row's target, -1 of a row that is ignored."""
    return narrow(storage, line_of(storage, tables, CLASS))


@formula
def weighted(plan):
    """Whether rows may count for more or less than others."""
    own = (plan.weight != 0) | (plan.sample_weight != 0) | (plan.upstream != 0)
    return own | (plan.label_smoothing != 0.0)


def keep_losses(storage, plan, tables, sums, index, log_ratio, penalty):
    """For formulas: the losses of rows whose log(S / e) is `log_ratio`, added to the sum in the table `sums` and kept where they are
    wanted one by one. `penalty` is float64 and added to each, None for none."""
    none = wide_zero(storage)

    def plain():
        if penalty is None:
            return select(index == -1.0, narrow(storage, none), log_ratio)
        return narrow(storage, select(index == -1.0, none, widen(log_ratio) + penalty))

    def by_weight():
        mass, weight = line_of(storage, tables, TARGET_MASS), line_of(storage, tables, ROW_WEIGHT)
        # (a class without weight has no loss, however far it is)
        own = select((mass == 0.0) & (log_ratio == log_ratio), none, mass * widen(log_ratio))
        own = own if penalty is None else own + penalty
        return narrow(storage, select(weight == 0.0, none, own * weight))

    losses = widen(choose(weighted(plan), plain, by_weight))
    for one in losses:
        add_losses(storage, sums, one)

    def keep():
        for table, one in zip(tables, losses, strict=True):
            store_wide(storage, table + LOSS_VALUE, one)

    when(plan.row_values != 0, keep)


def factors_of_rows(storage, plan, tables):
    """For formulas: the mass of each row's target, and what its gradient is multiplied by."""

    def same():
        one = wide_zero(storage) + 1.0
        return one, one * plan.row_factor

    def own():
        return line_of(storage, tables, TARGET_MASS), line_of(storage, tables, ROW_FACTOR)

    return choose(weighted(plan), same, own)
