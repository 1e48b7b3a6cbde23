"""The worst error in ulp over the kinds of rows of tests/ulp.py: accuracy regresses, too."""

import functools

import numpy as np

from benchmarks.exact import exact, tests_module, worst_ulp

DTYPES = ["float32", "float64"]
#: a number of classes for each walk but the split one
CLASSES = [3, 10, 100, 1000]


@functools.cache
def _worst(dtype, classes):
    """Worst errors of softmax, loss and gradient."""
    import fastswl as swl
    from benchmarks.accuracy import rows_of

    worst = {"softmax": 0.0, "loss": 0.0, "gradient": 0.0}
    for kind in tests_module("ulp").KINDS:
        x, t = rows_of(kind, classes, dtype)
        expected = exact(x, t)
        loss, gradient = swl.cross_entropy_value_and_grad(x, t, reduction="none")
        for name, got in (("softmax", swl.softmax(x)), ("loss", loss), ("gradient", gradient)):
            error = worst_ulp(np.asarray(got), getattr(expected, name))
            worst[name] = max(worst[name], error)
    return worst


class WorstError:
    params = (DTYPES, CLASSES)
    param_names = ("dtype", "classes")
    number = 1

    def track_worst_ulp_of_softmax(self, dtype, classes):
        return _worst(dtype, classes)["softmax"]

    def track_worst_ulp_of_the_loss(self, dtype, classes):
        return _worst(dtype, classes)["loss"]

    def track_worst_ulp_of_the_gradient(self, dtype, classes):
        return _worst(dtype, classes)["gradient"]

    track_worst_ulp_of_softmax.unit = "ulp"
    track_worst_ulp_of_the_loss.unit = "ulp"
    track_worst_ulp_of_the_gradient.unit = "ulp"
