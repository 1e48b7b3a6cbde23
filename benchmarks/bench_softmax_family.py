"""The softmax family at shapes of real work, results in memory that is given."""

from benchmarks.suite import SMALL_WORK, WORK, ready


class Softmax:
    params = WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("softmax", shape)

    def time_softmax(self, shape):
        self.call()


class LogSoftmax:
    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("log_softmax", shape)

    def time_log_softmax(self, shape):
        self.call()


class LogSumExp:
    params = SMALL_WORK
    param_names = ("shape",)

    def setup(self, shape):
        self.call = ready("logsumexp", shape)

    def time_logsumexp(self, shape):
        self.call()
