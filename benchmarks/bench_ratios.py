"""Figures that carry from one machine to another: our time in units of another's, taken in turn."""

from benchmarks import copies, problems, rivals, timing
from benchmarks.shapes import SHAPES
from benchmarks.suite import THREADS, ready

OPERATIONS = ["loss_and_grad", "softmax"]
PLAN = timing.Plan(rounds=9, least_time=0.005, rest=0.005)


class ToACopy:
    """Of the parallel plain copy of the logits into warm memory."""

    params = (OPERATIONS, ["10 classes", "100 classes", "1000 classes", "32768 classes"])
    param_names = ("operation", "shape")

    def setup(self, operation, shape):
        self.call = ready(operation, shape)

    def track_ratio_to_a_copy(self, operation, shape):
        problem = problems.make(SHAPES[shape], operation, threads=THREADS)
        copy = copies.copy(problem.logits, problem.out, THREADS)
        samples = timing.interleaved({"ours": self.call, "copy": copy}, PLAN)
        return timing.ratio(samples, "ours", "copy")

    track_ratio_to_a_copy.unit = "copies"


class ToNumPy:
    """Of the textbook's formulas in NumPy, in one thread each."""

    params = (OPERATIONS, ["one row", "digits", "ImageNet", "GBM"])
    param_names = ("operation", "shape")

    def setup(self, operation, shape):
        self.call = ready(operation, shape, threads=1)

    def track_ratio_to_numpy(self, operation, shape):
        problem = problems.make(SHAPES[shape], operation, threads=1)
        plain = rivals.contender("NumPy", problem).run
        samples = timing.interleaved({"ours": self.call, "NumPy": plain}, PLAN)
        return timing.ratio(samples, "ours", "NumPy")

    track_ratio_to_numpy.unit = "of NumPy's time"
