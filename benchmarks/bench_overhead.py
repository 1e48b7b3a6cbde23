"""Calls of microseconds, a thousand in each sample: what is around the kernels."""

import functools

import numpy as np

from benchmarks.shapes import SHAPES, inputs
from benchmarks.suite import ready, warmed

CALLS = 1000


class OneRow:
    """One row of ten classes."""

    def setup(self):
        self.softmax = ready("softmax", "one row")
        self.softmax_fresh = ready("softmax", "one row", given=False)
        self.loss = ready("loss", "one row")
        self.both = ready("loss_and_grad", "one row")

    def time_1000_calls_of_softmax(self):
        for _ in range(CALLS):
            self.softmax()

    def time_1000_calls_of_softmax_in_new_memory(self):
        for _ in range(CALLS):
            self.softmax_fresh()

    def time_1000_calls_of_cross_entropy(self):
        for _ in range(CALLS):
            self.loss()

    def time_1000_calls_of_value_and_grad(self):
        for _ in range(CALLS):
            self.both()


class ABatchWithOptions:
    """32 rows of ten classes, with options that are arrays, or a result that is one."""

    params = ("class weights, smoothing", "weights of rows", "losses of rows")
    param_names = ("options",)

    def setup(self, option):
        self.loss = warmed(("options", option), _loss_with(option))

    def time_1000_calls_of_cross_entropy(self, option):
        for _ in range(CALLS):
            self.loss()


@functools.cache
def _loss_with(option):
    import fastswl as swl

    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(32, 10)).astype(np.float32), rng.integers(0, 10, 32)
    options = {
        "class weights, smoothing": {"weight": rng.uniform(0.5, 2.0, 10), "label_smoothing": 0.1},
        "weights of rows": {"sample_weight": rng.uniform(0.5, 2.0, 32)},
        "losses of rows": {"reduction": "none"},
    }
    return functools.partial(swl.cross_entropy, logits, targets, **options[option])


class DigitsOfALayer:
    """A batch of 128 digits: the kernel of one row is too small a part of a step to be seen in its time."""

    def setup(self):
        self.step = warmed("layer", _layer_step())

    def time_1000_steps_of_the_layer(self):
        for _ in range(CALLS):
            self.step()


@functools.cache
def _layer_step():
    import fastswl as swl

    data = inputs(SHAPES["digits"])
    layer = swl.SoftmaxWithLoss()

    def step():
        layer.forward(data.logits, data.indices)
        layer.backward()

    return step


class Refused:
    """What a call with wrong arguments costs: a ValueError, nothing computed."""

    def setup(self):
        self.x, self.t = np.zeros((1, 10), np.float32), np.zeros(2, np.int64)

    def time_1000_wrong_shapes(self):
        import fastswl as swl

        for _ in range(CALLS):
            try:
                swl.cross_entropy(self.x, self.t)
            except ValueError:
                continue
            raise AssertionError("a wrong shape was accepted")
