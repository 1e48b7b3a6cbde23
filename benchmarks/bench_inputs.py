"""Loss and gradient by kind of target, dtype, layout and walk."""

import functools

import numpy as np

from benchmarks.shapes import SHAPES, inputs
from benchmarks.suite import THREADS, ready, warmed


@functools.lru_cache(maxsize=4)
def _value_and_grad(key, make):
    """The call for logits, targets, axis and memory that `make` gives."""
    import fastswl as swl

    x, t, axis, out = make()
    return functools.partial(swl.cross_entropy_value_and_grad, x, t, axis, grad_out=out, n_threads=THREADS)


class IndexTargets:
    params = ("int64", "int32", "uint8")
    param_names = ("dtype",)

    def setup(self, dtype):
        data = inputs(SHAPES["GBM"])

        def make():
            return data.logits, data.indices.astype(dtype), data.axis, data.out

        self.call = warmed(dtype, _value_and_grad(dtype, make))

    def time_class_indices(self, dtype):
        self.call()


class ProbabilityTargets:
    params = ("GBM", "ImageNet")
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("loss_and_grad", shape, soft=True)

    def time_probabilities(self, shape):
        self.call()


class OneHotTargets:
    def setup(self):
        data = inputs(SHAPES["digits"])

        def make():
            return data.logits, np.eye(10, dtype=bool)[data.indices], data.axis, data.out

        self.call = warmed("one-hot", _value_and_grad("one-hot", make))

    def time_100_calls_with_one_hot_digits(self):
        for _ in range(100):
            self.call()


class Dtypes:
    params = ("float32", "float64", "float16", "bfloat16")
    param_names = ("dtype",)

    def setup(self, dtype):
        self.call = ready("loss_and_grad", "128 rows of 1000", dtype)

    def time_value_and_grad_by_dtype(self, dtype):
        self.call()


class IntegerLogits:
    def setup(self):
        data = inputs(SHAPES["128 rows of 1000"])

        def make():
            return data.logits.astype(np.int32), data.indices, data.axis, None

        self.call = warmed("int32", _value_and_grad("int32 logits", make))

    def time_int32_logits(self):
        self.call()


def _fortran(x):
    return np.asfortranarray(x)


def _every_second_class(x):
    wide = np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


def _reversed(x):
    return x[::-1, ::-1]


def _padded_rows(x):
    wide = np.zeros((x.shape[0], x.shape[1] + 1), x.dtype)
    wide[:, :-1] = x
    return wide[:, :-1]


LAYOUTS = {
    "C": np.array,
    "Fortran": _fortran,
    "rows apart": _padded_rows,
    "every second class": _every_second_class,
    "reversed": _reversed,
}


class Layouts:
    params = tuple(LAYOUTS)
    param_names = ("layout",)

    def setup(self, layout):
        data = inputs(SHAPES["65536 rows of 100"].at_most(700_000))

        def make():
            return LAYOUTS[layout](data.logits), data.indices, data.axis, data.out

        self.call = warmed(layout, _value_and_grad(layout, make))

    def time_value_and_grad_by_layout(self, layout):
        self.call()


#: by walk and dimensions: asv tells a benchmark that was changed by its class and parameters, not by this dictionary, and
#: another shape is to be another series
WALKS = {
    f"{walk}, {' x '.join(map(str, SHAPES[shape].dimensions))}": shape
    for walk, shape in (
        ("short", "GBM"),
        ("short, images", "segmentation"),
        ("panel", "65536 rows of 100"),
        ("batch", "1000 classes"),
        ("row", "8 rows of 3000"),
        ("split", "one row of 1100000"),
    )
}


class Walks:
    """A shape for each way over memory (see `choose_walk`)."""

    params = tuple(WALKS)
    param_names = ("walk",)

    def setup(self, walk):
        self.call = ready("loss_and_grad", WALKS[walk])

    def time_walk(self, walk):
        self.call()


class OneThread:
    """The kernels alone, without a parallel region."""

    params = ("ImageNet", "GBM")
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("loss_and_grad", shape, threads=1)

    def time_value_and_grad_in_one_thread(self, shape):
        self.call()
