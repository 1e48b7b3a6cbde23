"""Fast softmax with loss on CPUs: Numba kernels behind a thin NumPy API.

>>> import fastswl as swl
>>> loss, grad = swl.cross_entropy_value_and_grad([[1.0, 2.0, 3.0]], [2])
>>> print(loss.round(6))
0.407606

Importing the package imports NumPy only; the kernels are compiled, or loaded from the cache, by the
first call.
"""

from typing import TYPE_CHECKING, Any

from fastswl import lazy
from fastswl.functions import LossAndGrad, cross_entropy, cross_entropy_value_and_grad
from fastswl.layer import SoftmaxWithLoss
from fastswl.softmax_family import log_softmax, logsumexp, softmax

if TYPE_CHECKING:
    from fastswl.threads import get_num_threads, set_num_threads, threading_layer

__all__ = [
    "LossAndGrad",
    "SoftmaxWithLoss",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "softmax",
    "threading_layer",
]


def __getattr__(name: str) -> Any:
    """Fetch the functions about threads, and the version, on first use."""
    if name in lazy.THREAD_FUNCTIONS:
        value: Any = getattr(lazy.load_threads(), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("fastswl")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
