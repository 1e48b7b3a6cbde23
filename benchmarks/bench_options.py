"""Loss and gradient with each option, beside the plain call."""

import functools

import numpy as np

from benchmarks.shapes import SHAPES, inputs
from benchmarks.suite import THREADS, ready, warmed

SHAPES_HERE = ["GBM", "ImageNet"]


class _Option:
    """A benchmark of the loss and gradient with options that are named in `problems.OPTIONS`."""

    params = SHAPES_HERE
    param_names = ("shape",)
    options: tuple[str, ...] = ()

    def setup(self, shape):
        self.call = ready("loss_and_grad", shape, options=self.options)


class Plain(_Option):
    def time_no_option(self, shape):
        self.call()


class Weight(_Option):
    options = ("weight",)

    def time_weight(self, shape):
        self.call()


class Smoothing(_Option):
    options = ("smoothing",)

    def time_label_smoothing(self, shape):
        self.call()


class IgnoredRows(_Option):
    options = ("ignored rows",)

    def time_every_tenth_row_ignored(self, shape):
        self.call()


class ZLoss(_Option):
    options = ("z-loss",)

    def time_z_loss(self, shape):
        self.call()


class Softcap(_Option):
    options = ("softcap",)

    def time_softcap(self, shape):
        self.call()


class Scale(_Option):
    options = ("scale",)

    def time_logit_scale(self, shape):
        self.call()


class Everything(_Option):
    options = ("weight", "smoothing", "ignored rows")

    def time_weight_smoothing_and_ignored_rows(self, shape):
        self.call()


@functools.lru_cache(maxsize=4)
def _with_array(option, shape):
    """A call with an option that is an array in the shape of the rows, or of the classes."""
    import fastswl as swl

    data = inputs(SHAPES[shape])
    rng = np.random.default_rng(3)
    options = {
        "sample_weight": lambda: {"sample_weight": rng.uniform(0.5, 1.5, data.indices.shape)},
        "class_mask": lambda: {"class_mask": np.arange(data.logits.shape[data.axis]) % 10 != 3},
        "upstream": lambda: {
            "upstream": rng.uniform(-1, 1, data.indices.shape),
            "reduction": "none",
        },
    }[option]()
    targets = np.where(data.indices % 10 == 3, 0, data.indices)  # no masked target
    return functools.partial(
        swl.cross_entropy_value_and_grad,
        data.logits,
        targets,
        data.axis,
        grad_out=data.out,
        n_threads=THREADS,
        **options,
    )


class _ArrayOption:
    params = SHAPES_HERE
    param_names = ("shape",)
    option = ""

    def setup(self, shape):
        self.call = warmed((self.option, shape), _with_array(self.option, shape))


class SampleWeight(_ArrayOption):
    option = "sample_weight"

    def time_sample_weight(self, shape):
        self.call()


class ClassMask(_ArrayOption):
    option = "class_mask"

    def time_class_mask(self, shape):
        self.call()


class Upstream(_ArrayOption):
    option = "upstream"

    def time_upstream_of_each_row(self, shape):
        self.call()
