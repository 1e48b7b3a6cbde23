"""Random calls, valid and not: the right result or the right error, and nothing else changed.

python tests/fuzz.py [seed [calls]] prints how many calls gave a result and how many an error. The call that ended the process
is the last line of the file named by FUZZ_LOG; each call is made from its own seed, (seed, number).
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import tempfile
import warnings

import numpy as np
from problems import OPTIONS, class_indices, random_problem, soft_targets
from reference import (
    reference_cross_entropy,
    reference_log_softmax,
    reference_logsumexp,
    reference_softmax,
    to_long,
)
from ulp import ulp_error

import fastswl as swl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import ml_dtypes
    except ImportError:
        ml_dtypes = None
    try:
        import torch
    except ImportError:
        torch = None
    try:
        import pandas
    except ImportError:
        pandas = None
    try:
        import xarray
    except ImportError:
        xarray = None

BOUND = 8  # ulp; the bounds themselves are tested elsewhere
FLOATS = ["float32", "float64", "float16", *(["bfloat16"] if ml_dtypes else [])]
OTHERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
REFUSED = ["complex64", "longdouble", "object", "datetime64[s]", "U3"]
ERRORS = (TypeError, ValueError, IndexError)


def dtype_named(name):
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class OnlyDLPack:
    """What offers its memory by DLPack and in no other way."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Call:
    """One random call; `wrong` names the arguments that make it invalid."""

    def __init__(self, seed: int, number: int, folder: str) -> None:
        self.rng = np.random.default_rng((seed, number))
        self.folder = folder
        self.wrong: list[str] = []
        self.maps = 0
        self.watched: list[tuple[np.ndarray, bytes]] = []

    def chance(self, p):
        return bool(self.rng.random() < p)

    def pick(self, values):
        return values[int(self.rng.integers(len(values)))]

    def values(self, shape, dtype):
        x = self.rng.normal(0, self.pick([1, 5, 30]), shape)
        if dtype.kind in "ui":
            x = np.clip(np.abs(x) if dtype.kind == "u" else x, -100, 100)
        with np.errstate(all="ignore"):
            x = np.asarray(x).astype(dtype)
        if dtype.kind in "fV" and x.size and self.chance(0.15):
            flat = x.reshape(-1)
            flat[self.rng.integers(x.size, size=self.pick([1, 3]))] = self.pick(
                [np.inf, -np.inf, np.nan, 0.0, 1e4, -1e4]
            )
        return x

    def laid(self, x):
        """The same numbers in another layout."""
        if x.ndim == 0:
            return x
        way = self.pick(
            ["as it is"] * 5 + ["fortran", "backwards", "steps", "swapped", "unaligned", "read-only", "broadcast"]
        )
        if way == "fortran":
            return np.asfortranarray(x)
        if way == "backwards":
            back = (slice(None, None, -1),) * x.ndim
            return np.ascontiguousarray(x[back])[back].reshape(x.shape)
        if way == "steps" and x.ndim:
            return np.repeat(x, 2, axis=-1)[..., ::2]
        if way == "swapped" and x.dtype.kind in "fiu":
            return x.astype(x.dtype.newbyteorder("S"))
        if way == "unaligned":
            memory = np.zeros(x.nbytes + 1, np.uint8)
            view = memory[1:].view(x.dtype).reshape(x.shape)
            view[...] = x
            return view
        if way == "read-only":
            x = x.copy()
            x.flags.writeable = False
            return x
        if way == "broadcast" and x.ndim and x.shape[0]:
            return np.broadcast_to(x[:1], x.shape)
        return x

    def wrapped(self, x):
        """(what is passed, the same as an array) as another kind of object."""
        kinds = ["list", "masked", "matrix", "memmap", "dlpack", "pandas", "xarray", "torch"]
        kind = self.pick(kinds) if self.chance(0.25) else "array"
        ordinary = x.dtype.kind in "fiub"
        native = ordinary and x.dtype.isnative
        if kind == "list" and ordinary and x.size:
            return x.tolist(), np.asarray(x.tolist())
        if kind == "masked" and ordinary:
            return np.ma.masked_array(x, mask=self.rng.random(x.shape) < 0.3), x
        if kind == "matrix" and ordinary and x.ndim == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PendingDeprecationWarning)
                return np.matrix(x, copy=False), x
        if kind == "memmap" and native and x.size:
            self.maps += 1  # those of one call are in files of their own
            path = os.path.join(self.folder, f"map{self.maps}")
            np.ascontiguousarray(x).tofile(path)
            return np.memmap(path, x.dtype, "r", shape=x.shape), x
        if kind == "dlpack" and native and x.flags.writeable and x.flags.aligned:
            return OnlyDLPack(x), x
        if kind == "pandas" and pandas is not None and native and x.size and x.ndim in (1, 2) and x.dtype != np.float16:
            return (pandas.Series(x.copy()) if x.ndim == 1 else pandas.DataFrame(x.copy())), x
        if kind == "xarray" and xarray is not None and native:
            return xarray.DataArray(x), x
        if kind == "torch" and torch is not None and native and x.dtype.kind == "f":
            return torch.from_numpy(np.ascontiguousarray(x).copy().reshape(x.shape)), x
        return x, x

    def watch(self, array):
        """Remember an array's memory (that of its base, too)."""
        while isinstance(array, np.ndarray):
            if array.dtype != object:
                self.watched.append((array, np.ndarray.tobytes(array)))
            array = array.base

    def unchanged(self, apart=()):
        # views of what was written are expected to change with it
        return all(
            np.ndarray.tobytes(array) == bits
            for array, bits in self.watched
            if not any(np.may_share_memory(array, other) for other in apart)
        )

    def invalid(self, name):
        self.wrong.append(name)

    def refused_input(self, x):
        kind = self.pick([*REFUSED, "ragged", "none", "text"])
        if kind == "ragged":
            return [[1.0, 2.0], [3.0]]
        if kind == "none":
            return None
        if kind == "text":
            return "logits"
        if kind == "datetime64[s]":
            return np.zeros(x.shape, kind)
        return np.asarray(x).astype(np.float64).astype(kind)

    def output(self, shape, dtype, name):
        """An array for a result; now and then one that can't be."""
        out = self.laid_output(shape, dtype)
        if not self.chance(0.1):
            return out
        self.invalid(name)
        kind = self.pick(["shape", "dtype", "read-only", "list", "itself"])
        if kind == "shape":
            return np.full((*shape, 2), 7, dtype)
        if kind == "dtype":
            return np.full(shape, 7, "float32" if dtype == np.float64 else "float64")
        if kind == "read-only":
            out = np.full(shape, 7, dtype)
            out.flags.writeable = False
            return out
        if kind == "itself" and len(shape) and shape[0] > 1 and np.prod(shape):
            return np.lib.stride_tricks.as_strided(np.full(shape, 7, dtype), strides=(0,) * len(shape), shape=shape)
        return np.full(shape, 7).tolist()

    def laid_output(self, shape, dtype):
        way = self.pick(["as it is", "as it is", "fortran", "backwards", "steps"])
        if way == "fortran":
            return np.full(shape, 7, dtype, order="F")
        if way == "backwards" and shape:
            return np.full(shape, 7, dtype)[(slice(None, None, -1),) * len(shape)].reshape(shape)
        if way == "steps" and shape:
            return np.full((*shape[:-1], 2 * shape[-1]), 7, dtype)[..., ::2]
        return np.full(shape, 7, dtype)

    def thread_count(self):
        if self.chance(0.02):
            self.invalid("n_threads")
            return self.pick([0, -1, 1.5, "two", True])
        return self.pick([None, None, 1, 2, 7])


def result_dtype(dtype):
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype.newbyteorder("=")


def check(got, exact, terms=None, dtype=None):
    got = np.asarray(got)
    assert got.shape == np.shape(exact), (got.shape, np.shape(exact))
    assert dtype is None or got.dtype == dtype, (got.dtype, dtype)
    if got.size:
        error = ulp_error(got, exact, terms)
        worst = np.unravel_index(np.argmax(error), error.shape)
        assert error[worst] <= BOUND, f"{error[worst]} ulp at {worst}: {got[worst]!r} for {exact[worst]!r}"


def expect_error(call, function, *arguments, **options):
    """Make an invalid call: its error names an argument that is wrong, and no memory of the caller has changed.

    The name counts as a word of its own: "b" and "x" are letters of any message.
    """
    try:
        function(*arguments, **options)
    except ERRORS as error:
        named = [name for name in call.wrong if re.search(rf"\b{name}\b", str(error))]
        assert named, f"none of {call.wrong} named: {error!r}"
        assert call.unchanged(), f"memory changed, though {error!r}"
        return "error"
    raise AssertionError(f"no error, though {call.wrong} is wrong")


def family_call(call):
    ndim = int(call.rng.integers(0, 5))
    shape = [int(call.pick([0, 1, 2, 3, 5])) if call.chance(0.9) else 0 for _ in range(ndim)]
    if ndim:
        shape[int(call.rng.integers(ndim))] = int(call.pick([1, 2, 3, 10, 17, 64, 129, 700]))
    dtype = dtype_named(call.pick(FLOATS * 3 + OTHERS))
    x, plain = call.wrapped(call.laid(call.values(tuple(shape), dtype)))
    name = call.pick(["softmax", "log_softmax", "logsumexp"])
    options = {"n_threads": call.thread_count()}
    axis = None if call.chance(0.1) else int(call.rng.integers(-ndim, ndim)) if ndim else -1
    if ndim >= 2 and call.chance(0.1):
        axis = tuple(int(a) for a in call.rng.permutation(ndim)[:2])
    if ndim == 0 or call.chance(0.03):
        axis = None
    if call.chance(0.03):
        call.invalid("axis")
        axis = call.pick([ndim + 1, -ndim - 2, 1.5, "rows", (0, 0)])
    elif call.chance(0.04):
        call.invalid("x")
        x = call.refused_input(plain)
    axes = tuple(range(ndim)) if axis is None or call.wrong else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(a % ndim for a in axes) if not call.wrong else axes
    keepdims = name == "logsumexp" and call.chance(0.3)
    if name == "logsumexp":
        options["keepdims"] = keepdims
    written = []
    if call.chance(0.5) and not call.wrong:
        result_shape = plain.shape
        if name == "logsumexp":
            lengths = [1 if i in axes else n for i, n in enumerate(plain.shape)]
            result_shape = tuple(n for i, n in enumerate(lengths) if keepdims or i not in axes)
        in_place = isinstance(x, np.ndarray) and type(x) is np.ndarray and name != "logsumexp" and call.chance(0.3)
        if in_place and x.flags.carray and x.dtype == result_dtype(plain.dtype):
            options["out"] = x
            plain = plain.copy()
        else:
            options["out"] = call.output(result_shape, result_dtype(plain.dtype), "out")
        written = [options["out"]]
    call.watch(x)
    call.watch(options.get("out"))
    function = getattr(swl, name)
    if call.wrong:
        return expect_error(call, function, x, axis, **options)
    got = function(x, axis, **options)
    assert call.unchanged(written), "an input has changed"
    assert "out" not in options or got is options["out"]
    if name == "softmax":
        check(got, reference_softmax(plain, axis), dtype=result_dtype(plain.dtype))
    elif name == "log_softmax":
        check(got, reference_log_softmax(plain, axis), dtype=result_dtype(plain.dtype))
    else:
        exact = reference_logsumexp(plain, axis, keepdims=keepdims)
        with np.errstate(all="ignore"):
            size = np.abs(np.where(np.isfinite(to_long(plain)), to_long(plain), 0))
        check(got, exact, np.maximum(np.abs(exact), size.max(initial=1)), result_dtype(plain.dtype))
    return "result"


def loss_call(call):
    problem = random_problem(int(call.rng.integers(2**31)), np.float64)
    axis = problem.axis
    dtype = dtype_named(call.pick(FLOATS * 3 + ["int8", "uint16", "bool"]))
    shape = problem.logits.shape
    if call.chance(0.05) and len(shape) > 1:
        shape = tuple(0 if i == (axis + 1) % len(shape) else n for i, n in enumerate(shape))
    x, plain = call.wrapped(call.laid(call.values(shape, dtype)))
    n_classes = plain.shape[axis]
    rows = tuple(n for i, n in enumerate(plain.shape) if i != axis % plain.ndim)
    indices = call.chance(0.6)
    if indices:
        index_dtype = np.dtype(call.pick(OTHERS[1:]))
        targets = class_indices(call.rng, plain, axis)
        targets = np.asarray(np.minimum(targets, min(np.iinfo(index_dtype).max, 2**40)), index_dtype)
    else:
        targets = soft_targets(call.rng, plain, axis, result_dtype(plain.dtype) if dtype.kind == "f" else np.float64)
    options = {"reduction": problem.options.get("reduction", "mean"), "empty": problem.options["empty"]}
    for option, make in OPTIONS.items():
        if call.chance(0.12) and (indices or option != "ignore_index"):
            options |= make(call.rng, plain, axis)
    per_sample = options["reduction"] == "none"
    with_grad = call.chance(0.6)
    if with_grad and call.chance(0.2):
        options["upstream"] = call.rng.normal(size=rows) if per_sample and rows and call.chance(0.5) else 0.75
    spoil(call, options, indices, n_classes, rows)
    passed_targets = targets
    if not call.wrong and call.chance(0.06):
        kind = call.pick(["value", "shape", "dtype"])
        if (
            kind == "value"
            and indices
            and targets.size
            and index_dtype.kind == "i"
            and options.get("sample_weight") is None
        ):
            call.invalid("targets")
            passed_targets = targets.copy()
            passed_targets.reshape(-1)[int(call.rng.integers(targets.size))] = -3
        elif kind == "shape":
            call.invalid("targets")
            passed_targets = np.zeros((*targets.shape, 2, 1, 1), targets.dtype)
        elif kind == "dtype":
            call.invalid("targets")
            passed_targets = targets.astype(call.pick(["complex64", "object", "longdouble"]))
    elif not call.wrong and call.chance(0.03):
        call.invalid("logits")
        x = call.refused_input(plain)
    else:
        passed_targets, targets = call.wrapped(call.laid(targets))
    result = result_dtype(plain.dtype)
    loss_dtype = result if result == np.float64 else np.dtype(np.float32)
    written = []
    if not call.wrong and per_sample and rows and call.chance(0.4):
        options["out"] = call.output(rows, loss_dtype, "out")
        written.append(options["out"])
    if not call.wrong and with_grad and call.chance(0.5):
        if type(x) is np.ndarray and x.flags.carray and x.dtype == result and call.chance(0.3):
            options["grad_out"] = x
            plain = plain.copy()
        else:
            options["grad_out"] = call.output(plain.shape, result, "grad_out")
        written.append(options["grad_out"])
    for array in (x, passed_targets, *options.values()):
        call.watch(array)
    function = swl.cross_entropy_value_and_grad if with_grad else swl.cross_entropy
    options["n_threads"] = call.thread_count()
    if call.wrong:
        return expect_error(call, function, x, passed_targets, axis, **options)
    value = function(x, passed_targets, axis, **options)
    assert call.unchanged(written), "an input has changed"
    for name in ("out", "grad_out", "n_threads"):
        options.pop(name, None)
    exact = reference_cross_entropy(plain, targets, axis, **options)
    if not indices or "label_smoothing" in options:
        # where masses are spread, the log-sum comes from differences: an error of an ulp at 1/8 counts as none
        exact = exact._replace(rows_terms=np.maximum(exact.rows_terms, 0.125))
    loss = value.loss if with_grad else value
    if per_sample:
        check(loss, exact.rows, exact.rows_terms, loss_dtype)
    else:
        check_total(loss, exact, loss_dtype)
    if with_grad:
        check(value.grad, exact.grad, exact.grad_terms, result)
    return "result"


def check_total(loss, exact, loss_dtype):
    """The sum or mean within what its terms allow."""
    assert isinstance(loss, np.float64)
    if not np.isfinite(exact.loss):
        assert np.array_equal(loss, np.float64(exact.loss), equal_nan=True), (loss, exact.loss)
        return
    if loss == exact.loss:
        # (a mean of nothing is 0 with empty="zero", whatever the rows hold)
        return
    total = np.abs(exact.rows.sum())
    ratio = np.abs(exact.loss) / total if total else 1 / max(1, exact.rows.size)
    allowed = BOUND * np.finfo(loss_dtype).eps * exact.rows_terms.sum() * ratio
    assert np.abs(loss - exact.loss) <= allowed + np.finfo(loss_dtype).tiny, (loss, exact.loss)


def spoil(call, options, indices, n_classes, rows):
    """Make one option invalid, now and then."""
    if not call.chance(0.06):
        return
    wrong = {
        "label_smoothing": [-0.5, 1.5, np.nan, "much"],
        "reduction": ["avg", None],
        "empty": ["never", 3],
        "z_loss": [-1.0, np.inf],
        "logit_scale": [0.0, -1.0, np.nan],
        "softcap": [0.0, -3.0],
        "normalizer": [-1.0, np.nan],
        "weight": [np.ones(n_classes + 1), -np.ones(n_classes), np.ones(n_classes, complex)],
        "sample_weight": [
            np.ones((*rows, 2)),
            np.full(rows, np.nan) if all(rows) and rows else np.ones((3, 3, 3, 3, 3)),
        ],
        # (a mask of as many classes as another axis is long would be right)
        "class_mask": [np.ones(n_classes, int), np.ones((2,) * 9, bool)],
        "ignore_index": [1.5, 2**70],
    }
    name = call.pick(list(wrong))
    options[name] = call.pick(wrong[name])
    call.invalid(name)


def main(seed: int = 0, calls: int = 1000) -> None:
    faulthandler.enable()
    warnings.simplefilter("error")
    path = os.environ.get("FUZZ_LOG")
    file = open(path, "w") if path else None
    counts = {"result": 0, "error": 0}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(calls):
            call = Call(seed, number, folder)
            if file:
                print(seed, number, file=file, flush=True)
            try:
                counts[(family_call if call.chance(0.4) else loss_call)(call)] += 1
            except Exception as error:
                raise AssertionError(f"call ({seed}, {number}): {error!r}") from error
    if file:
        file.close()
    print(counts["result"], counts["error"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
