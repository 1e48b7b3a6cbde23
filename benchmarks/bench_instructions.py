"""Instructions an element, in one thread: see instructions.py. Skipped where nothing counts them."""

from benchmarks import instructions
from benchmarks.shapes import SHAPES


class Instructions:
    params = (["loss_and_grad", "softmax"], ["digits", "ImageNet"])
    param_names = ("operation", "shape")
    timeout = 900

    def track_instructions_an_element(self, operation, shape):
        return instructions.per_call(operation, shape) / SHAPES[shape].size

    track_instructions_an_element.unit = "instructions"
