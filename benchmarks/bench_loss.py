"""The loss, its gradient in memory of three kinds, and the layer, at shapes of real work."""

import functools

import numpy as np

from benchmarks.shapes import SHAPES, inputs
from benchmarks.suite import SMALL_WORK, THREADS, WORK, ready, warmed


class CrossEntropy:
    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("loss", shape)

    def time_cross_entropy(self, shape):
        self.call()


class ValueAndGrad:
    params = WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("loss_and_grad", shape)

    def time_value_and_grad_in_given_memory(self, shape):
        self.call()


class ValueAndGradFresh:
    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("loss_and_grad", shape, given=False)

    def time_value_and_grad_in_new_memory(self, shape):
        self.call()


@functools.cache
def _in_place(shape):
    import fastswl as swl

    data = inputs(SHAPES[shape])
    x = np.array(data.logits)
    return functools.partial(
        swl.cross_entropy_value_and_grad,
        x,
        data.indices,
        data.axis,
        grad_out=x,
        n_threads=THREADS,
    )


class ValueAndGradInPlace:
    """Each call takes the gradient of the one before as its logits: numbers near 0, of which no row is read twice."""

    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = warmed(shape, _in_place(shape))

    def time_value_and_grad_in_place(self, shape):
        self.call()


@functools.cache
def _layer(axis):
    import fastswl as swl

    return swl.SoftmaxWithLoss(axis=axis, n_threads=THREADS)


class Layer:
    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        data = inputs(SHAPES[shape])
        layer = _layer(data.axis)

        def step():
            layer.forward(data.logits, data.indices)
            layer.backward(out=data.out)

        self.step = warmed(("layer", shape), step)

    def time_layer_forward_and_backward(self, shape):
        self.step()
