"""Memory: the peak of a process, and what a call needs beyond the arrays of its caller."""

from benchmarks import problems
from benchmarks.shapes import SHAPES
from benchmarks.suite import THREADS, ready

#: (operation, shape, how it is held) of each walk, and of what has no kernel of its own type
CALLS = {
    "short": ("loss_and_grad", "GBM", {}),
    "short, images": ("loss_and_grad", "segmentation", {}),
    "panel": ("loss_and_grad", "65536 rows of 100", {}),
    "batch": ("loss_and_grad", "1000 classes", {}),
    "split": ("loss_and_grad", "one row of 1100000", {}),
    "float16": ("loss_and_grad", "GBM", {"dtype": "float16"}),
    "probabilities": ("loss_and_grad", "GBM", {"soft": True}),
}
CASES = list(CALLS)


def peakmem_import():
    import fastswl  # noqa: F401


class Peak:
    """Of the whole process, arrays and the compiler included."""

    params = CASES
    param_names = ("case",)

    def setup(self, case):
        operation, shape, how = CALLS[case]
        self.call = ready(operation, shape, **how)

    def peakmem_value_and_grad(self, case):
        self.call()


def _resident(field):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    raise NotImplementedError(field)


class Beyond:
    """The peak of the first call, less what was there before it: arrays, code and threads."""

    params = CASES
    param_names = ("case",)

    def setup(self, case):
        operation, name, how = CALLS[case]
        shape = SHAPES[name]
        # a smaller call loads the kernel and starts the threads
        small = problems.make(shape.at_most(200_000), operation, threads=THREADS, **how)
        problems.ours(small).run()
        problem = problems.make(shape, operation, threads=THREADS, **how)
        self.call = problems.ours(problem).run

    def track_megabytes_beyond_the_arrays(self, case):
        try:
            with open("/proc/self/clear_refs", "w") as peak:
                peak.write("5")  # the peak starts anew
            before = _resident("VmRSS")
            self.call()
            return max(0, _resident("VmHWM") - before) / 2**20
        except OSError as error:
            raise NotImplementedError("needs Linux's /proc") from error

    track_megabytes_beyond_the_arrays.unit = "MB"
