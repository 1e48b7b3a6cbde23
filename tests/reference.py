"""The contract of fastswl in plain NumPy: slow, readable, and independent of the kernels.

Everything is computed in `numpy.longdouble` (64 bits of mantissa on x86), and in an order that does
not cancel, so that the result may serve as the exact value for float32 and float64:

* with m = max x, e_c = exp(x_c - m) and rest = the sum of the e_c without one of the maxima,
  logsumexp is m + log1p(rest), and -log p_c = (m - x_c) + log1p(rest) is a sum of two terms >= 0;
* the loss is sum_c q_c (-log p_c), where q says how much target mass lies on class c;
* its gradient is Q p_c - q_c with Q = sum_c q_c, written as
  (e_c (Q - q_c) - q_c (S - e_c)) / S, where the first bracket vanishes for a single target class.

Where a result is a difference that may cancel all the same, the `*_terms` arrays hold the size of
the larger term: an error is measured against them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LONG = np.longdouble


class Rows(NamedTuple):
    """What every function needs to know about rows of logits, shape (n, C)."""

    largest: np.ndarray  # m, (n,)
    below: np.ndarray  # x - m rounded to LONG, (n, C)
    below_error: np.ndarray  # what that rounding lost
    e: np.ndarray  # exp(x - m)
    first: np.ndarray  # position of (one of) the maxima, (n,)
    rest: np.ndarray  # sum of e without that one, (n,)
    ordinary: np.ndarray  # bool (n,): m is finite, so no NaN, no +inf, not all -inf


class Reference(NamedTuple):
    """Per-sample losses, gradient and reduced loss, with the sizes of the terms they come from."""

    rows: np.ndarray
    grad: np.ndarray
    loss: np.ndarray
    rows_terms: np.ndarray
    grad_terms: np.ndarray


def to_long(array) -> np.ndarray:
    """As the library reads it: integers and bool as float64, every float exactly."""
    array = np.asarray(array)
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    if array.dtype.kind not in "f":  # ml_dtypes' bfloat16 is of kind "V"
        array = array.astype(np.float32)
    return array.astype(LONG)


def analyse(x: np.ndarray) -> Rows:
    """Maximum, shifted exponentials and their sum for rows x of shape (n, C), C >= 1."""
    n = x.shape[0]
    largest = x.max(axis=1)  # NaN wins
    first = x.argmax(axis=1)
    ordinary = np.isfinite(largest)
    shift = np.where(ordinary, largest, 0)[:, None]
    with np.errstate(all="ignore"):
        below = x - shift
        # TwoSum: below + below_error is x - m exactly
        shift_seen = below - x
        below_error = (x - (below - shift_seen)) - (shift + shift_seen)
        below_error = np.where(np.isfinite(below), below_error, 0)
        e = np.exp(below) * (1 + below_error)
        others = e.copy()
        others[np.arange(n), first] = 0
        rest = others.sum(axis=1)
    return Rows(largest, below, below_error, e, first, rest, ordinary)


def _log_sum(rows: Rows) -> np.ndarray:
    """log S, S = 1 + rest; meaningless where not ordinary."""
    with np.errstate(all="ignore"):
        return np.log1p(rows.rest)


def _as_rows(x, axis):
    """(n, C) rows of x, and a function that puts an (n, C) array back into the shape of x."""
    x = np.asarray(x)
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(a % x.ndim for a in axes)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = np.moveaxis(x, axes, last)
    classes = int(np.prod([x.shape[a] for a in axes]))
    count = int(np.prod(moved.shape[: x.ndim - len(axes)]))

    def restore(flat):
        return np.moveaxis(flat.reshape(moved.shape), last, axes)

    kept_shape = moved.shape[: x.ndim - len(axes)]
    return moved.reshape(count, classes), restore, kept_shape, axes


def reference_softmax(x, axis=-1) -> np.ndarray:
    x = to_long(x)
    if x.size == 0:
        return x
    flat, restore, _, _ = _as_rows(x, axis)
    rows = analyse(flat)
    with np.errstate(all="ignore"):
        p = rows.e / (1 + rows.rest)[:, None]
    return restore(np.where(rows.ordinary[:, None], p, np.nan))


def reference_log_softmax(x, axis=-1) -> np.ndarray:
    x = to_long(x)
    if x.size == 0:
        return x
    flat, restore, _, _ = _as_rows(x, axis)
    rows = analyse(flat)
    with np.errstate(all="ignore"):
        log_p = rows.below + (rows.below_error - _log_sum(rows)[:, None])
    infinite = np.isposinf(rows.largest)[:, None] & ~np.isposinf(flat)
    special = np.where(infinite, -np.inf, np.nan)
    return restore(np.where(rows.ordinary[:, None], log_p, special))


def reference_logsumexp(x, axis=-1, *, b=None, keepdims=False, return_sign=False):
    """As `scipy.special.logsumexp`; with return_sign a pair."""
    x = to_long(x)
    b_long = np.ones((), LONG) if b is None else to_long(b)
    x, factor = np.broadcast_arrays(x, b_long)
    flat, _, kept_shape, axes = _as_rows(x, axis)
    factor, _, _, _ = _as_rows(factor, axis)
    flat = np.where(factor == 0, -np.inf, flat)  # a factor of 0 drops the entry, NaN or not
    if flat.shape[1] == 0:
        result = np.full(flat.shape[0], -np.inf, LONG)
        sign = np.zeros(flat.shape[0], LONG)
    else:
        rows = analyse(flat)
        with np.errstate(all="ignore"):
            others = factor * rows.e
            index = np.arange(flat.shape[0]), rows.first
            # log of the factor at the maximum taken apart, so that log1p sees only the rest
            head = factor[index]
            others[index] = 0
            ratio = others.sum(axis=1) / head
            total = head * (1 + ratio)
            small = np.abs(ratio) < 0.5
            log_ratio = np.where(small, np.log1p(ratio), np.log(np.abs(1 + ratio)))
            result = rows.largest + (np.log(np.abs(head)) + log_ratio)
            sign = np.sign(total)
            # +inf: its sign is that of the factors there; NaN when these disagree
            at_infinity = np.where(np.isposinf(flat), np.sign(factor), 0)
            mixed = (at_infinity.max(axis=1) > 0) & (at_infinity.min(axis=1) < 0)
            infinite = np.isposinf(rows.largest)
            result = np.where(rows.ordinary, result, np.where(mixed, np.nan, rows.largest))
            sign_there = np.where(mixed, np.nan, np.sign(at_infinity.sum(axis=1)))
            sign = np.where(rows.ordinary, sign, np.where(infinite, sign_there, rows.largest))
            sign = np.where(np.isneginf(rows.largest), 0, sign)
    if not return_sign:
        result = np.where(sign < 0, np.nan, result)
    shape = kept_shape
    if keepdims:
        shape = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    result, sign = result.reshape(shape), sign.reshape(shape)
    return (result, sign) if return_sign else result


def logsumexp_terms(x, axis=-1) -> np.ndarray:
    """The larger of |m| and |log S|: what the error of a logsumexp near zero is measured by."""
    flat, _, kept_shape, _ = _as_rows(to_long(x), axis)
    if flat.size == 0:
        return np.zeros(kept_shape, LONG)
    rows = analyse(flat)
    return np.maximum(np.abs(rows.largest), np.abs(_log_sum(rows))).reshape(kept_shape)


def target_mass(targets, shape, *, weight, label_smoothing, ignore_index, kept):
    """q of shape (n, C), the rows that are not ignored, and each row's share of the divisor."""
    n, classes = shape
    w = np.ones(classes, LONG) if weight is None else to_long(weight)
    eps = LONG(label_smoothing)
    left = kept.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        spread = np.where(kept, eps / left, LONG(0)) if eps != 0 else np.zeros(shape, LONG)
    if targets.ndim == 1:
        active = targets != ignore_index
        y = np.where(active, targets, 0).astype(np.intp)
        t = np.zeros(shape, LONG)
        t[np.arange(n), y] = 1
        share = w[y] * active
    else:
        active = np.ones(n, bool)
        t = to_long(targets)
        share = np.ones(n, LONG)
    return w * (t * (1 - eps) + spread), active, share


def reference_cross_entropy(
    logits,
    targets,
    axis=-1,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    normalizer=None,
    empty="nan",
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    class_mask=None,
    upstream=1.0,
) -> Reference:
    """Losses and the gradient of sum(upstream * loss) with every option of the contract."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    axis = axis % logits.ndim
    by_index = targets.ndim == logits.ndim - 1
    kept = np.ones((), bool) if class_mask is None else np.asarray(class_mask)
    if kept.ndim == 1:  # (C,) lies along the class axis, wherever that is
        kept = kept.reshape([-1 if a == axis else 1 for a in range(logits.ndim)])
    kept, _, _, _ = _as_rows(np.broadcast_to(kept, logits.shape), axis)
    x, restore, kept_shape, _ = _as_rows(to_long(logits), axis)
    n = x.shape[0]
    flat_targets = targets.reshape(n) if by_index else _as_rows(targets, axis)[0]
    samples = np.ones((), LONG) if sample_weight is None else to_long(sample_weight)
    samples = np.broadcast_to(samples, kept_shape).reshape(n)
    arriving = np.broadcast_to(to_long(upstream), kept_shape).reshape(n)

    # change of variable: softcap, then scale, then mask; `slope` is its derivative
    scale = LONG(logit_scale)
    with np.errstate(all="ignore"):
        if softcap is None:
            z, slope = x * scale, np.full(x.shape, scale)
        else:
            cap = LONG(softcap)
            z = cap * np.tanh(x / cap) * scale
            slope = scale / np.cosh(x / cap) ** 2
    z = np.where(kept, z, -np.inf)

    q, active, share = target_mass(
        flat_targets,
        x.shape,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        kept=kept,
    )
    active = active & (samples != 0)  # a row of sample_weight 0 counts as ignored
    share = np.where(active, share * samples, 0)
    if x.size:
        one_target = by_index and label_smoothing == 0
        losses, loss_terms, grad, grad_terms = _loss_and_gradient(z, q, LONG(z_loss), slope, one_target)
    else:
        losses, loss_terms, grad, grad_terms = np.zeros(n, LONG), np.zeros(n, LONG), x, x

    with np.errstate(all="ignore"):
        losses = np.where(active, samples * losses, 0)
        loss_terms = np.where(active, samples * loss_terms, 0)
    factor = np.where(active, arriving * samples, 0)
    if reduction == "mean":
        divisor = share.sum() if normalizer is None else LONG(normalizer)
        if divisor == 0:
            if empty == "raise":
                raise ValueError("the mean of no samples")
            loss = LONG(0) if empty == "zero" else LONG(np.nan)
            factor = np.where(active, loss, 0)
            active = active & (empty != "zero")  # no gradient at all, whatever the rows hold
        else:
            loss = losses.sum() / divisor
            factor = factor / divisor
    else:
        loss = losses.sum() if reduction == "sum" else losses.reshape(kept_shape)
    with np.errstate(all="ignore"):
        grad = np.where(active[:, None] & kept, factor[:, None] * grad, 0)
        grad_terms = np.where(active[:, None], np.abs(factor[:, None]) * grad_terms, 0)
    return Reference(
        losses.reshape(kept_shape),
        restore(np.asarray(grad)),
        loss,
        loss_terms.reshape(kept_shape),
        restore(np.asarray(grad_terms)),
    )


def _loss_and_gradient(z, q, z_loss, slope, one_target):
    """Unweighted losses (n,), gradients (n, C) and the sizes of the terms of both.

    With one target class a row the gradient at it is minus the sum of the others; with more, it is
    a true difference Q p - q, also where the probabilities happen to be one-hot.
    """
    rows = analyse(z)
    log_s = _log_sum(rows)
    lse = rows.largest + log_s
    lse_size = np.maximum(np.abs(rows.largest), log_s)
    mass = q.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        minus_log_p = log_s[:, None] - rows.below_error - rows.below
        parts = np.where(q == 0, 0, q * minus_log_p)  # no mass adds 0, also at -inf
        losses = parts.sum(axis=1) + z_loss * lse**2
        loss_terms = np.abs(parts).sum(axis=1) + z_loss * lse_size**2

        s = (1 + rows.rest)[:, None]
        at_first = np.arange(q.shape[1]) == rows.first[:, None]
        without = np.where(at_first, rows.rest[:, None], s - rows.e)  # S - e_c
        pushed, pulled = rows.e * (mass - q) / s, q * without / s
        p = rows.e / s
        grad = pushed - pulled + 2 * z_loss * lse[:, None] * p
        difference = (q != 0) & (not one_target)
        grad_terms = np.where(difference, np.maximum(np.abs(mass * p), np.abs(q)), np.abs(pushed - pulled))
        grad_terms = np.maximum(grad_terms, 2 * z_loss * lse_size[:, None] * p)
        grad = np.where(np.isneginf(z), 0, grad) * slope  # 0 at -inf, also where the target is
        grad_terms = grad_terms * np.abs(slope)
    # the rows of the table without an ordinary maximum
    losses = np.where(rows.ordinary, losses, np.nan)
    special = np.where(np.isneginf(rows.largest), 0, np.nan)[:, None]  # all -inf: no gradient
    grad = np.where(rows.ordinary[:, None], grad, special)
    return losses, loss_terms, grad, grad_terms
