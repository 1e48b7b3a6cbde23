"""The best public call of each library that computes the same, as far as it is installed.

`RIVALS` maps a name to a function that takes a `Problem` and gives a `Contender`, or raises
`Unavailable` with the reason: not installed, or it has no such function, dtype or layout. Arrays of
the library's own kind are made before the clock runs; memory for the result is given where the
call can take it; the caller warms up and compares the answers. Thread counts are set here where a
library can be told in a running process, and by the environment (`environment`) where it cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.problems import Contender, Problem

FAMILY = ("softmax", "log_softmax", "logsumexp")


class Unavailable(Exception):
    """A library that cannot take part, and why."""


def environment(threads: int) -> dict[str, str]:
    """Variables that a process needs from its start to keep every library to `threads` threads."""
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    flags = "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false"
    return {**dict.fromkeys(names, count), "NPROC": count, "XLA_FLAGS": flags}


def _require(condition: object, reason: str) -> None:
    if not condition:
        raise Unavailable(reason)


def _c_order(problem: Problem) -> tuple[np.ndarray, int, np.ndarray | None, bool]:
    """Logits, axis and `out` in C order, seen transposed if they lie in Fortran order."""
    x, axis, out = problem.logits, problem.axis, problem.out
    if x.flags.c_contiguous:
        return x, axis % x.ndim, out, False
    _require(x.T.flags.c_contiguous, "C order only")
    return x.T, x.ndim - 1 - axis % x.ndim, None if out is None else out.T, True


# --- PyTorch ------------------------------------------------------------------------------------


def _torch_tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _torch_setup(problem: Problem) -> tuple[Any, Any]:
    import warnings

    import torch

    torch.set_num_threads(problem.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the arrays are read-only; nobody writes to them
        x = _torch_tensor(problem.logits)
        t = None if problem.targets is None else _torch_tensor(problem.targets)
    return x, t


def _torch_family(problem: Problem) -> Contender:
    import torch

    x, _ = _torch_setup(problem)
    keywords = {}
    if problem.operation != "logsumexp" and problem.out is not None:
        keywords["out"] = _torch_tensor(problem.out)
    function = getattr(torch, problem.operation)
    return Contender(functools.partial(function, x, problem.axis, **keywords), _torch_numpy)


def _torch_classes_second(problem: Problem) -> None:
    """PyTorch's loss wants the class axis second; rows by classes is that already."""
    _require(problem.axis % problem.logits.ndim == 1, "its class axis is the second")


def _torch_loss(problem: Problem) -> Contender:
    """Forward, and backward through the graph. Its gradient is always new memory."""
    import torch
    from torch.nn import functional

    _torch_classes_second(problem)
    known = {"weight", "label_smoothing", "ignore_index"}
    _require(problem.options.keys() <= known, "no such option")
    x, t = _torch_setup(problem)
    options = dict(problem.options)
    if "weight" in options:
        options["weight"] = torch.from_numpy(options["weight"]).to(x.dtype)
    if problem.operation == "loss":

        def forward() -> Any:
            with torch.no_grad():
                return functional.cross_entropy(x, t, **options)

        return Contender(forward, float)
    x.requires_grad_(True)

    def forward_and_backward() -> Any:
        loss = functional.cross_entropy(x, t, **options)
        (grad,) = torch.autograd.grad(loss, x)
        return loss, grad

    return Contender(forward_and_backward, lambda result: (result[0].item(), _torch_numpy(result[1])))


def torch_calls(problem: Problem) -> Contender:
    """`torch.softmax(out=)` and its like; the loss forward and backward."""
    if problem.operation in FAMILY:
        return _torch_family(problem)
    return _torch_loss(problem)


def torch_by_hand(problem: Problem) -> Contender:
    """The gradient as p - t in memory that is given, without autograd: what an expert may write."""
    import torch

    plain = problem.operation == "loss_and_grad" and problem.out is not None and not problem.options
    _require(plain and not problem.soft and problem.logits.ndim == 2, "only where memory is given")
    x, t = _torch_setup(problem)
    out = _torch_tensor(problem.out)
    rows, scale = len(x), 1.0 / len(x)
    column = t[:, None]
    minus = torch.full((rows, 1), -scale, dtype=x.dtype)

    def run() -> Any:
        torch.log_softmax(x, -1, out=out)
        loss = out.gather(1, column).mean().neg()
        out.exp_().mul_(scale)
        out.scatter_add_(1, column, minus)
        return loss, out

    return Contender(run, lambda result: (result[0].item(), _torch_numpy(result[1])))


# --- JAX ----------------------------------------------------------------------------------------


def jax_calls(problem: Problem) -> Contender:
    """Jitted; optax's losses and their gradient. Results are always new memory."""
    import jax
    import jax.numpy as jnp

    _require(not problem.options, "no such option")
    jax.config.update("jax_enable_x64", True)  # float64 inputs stay so; float32 ones, too
    logits, axis, _, turned = _c_order(problem)
    x = jnp.asarray(logits)
    back = (lambda array: np.asarray(array).T) if turned else np.asarray
    if problem.operation in FAMILY:
        function = {
            "softmax": jax.nn.softmax,
            "log_softmax": jax.nn.log_softmax,
            "logsumexp": jax.nn.logsumexp,
        }[problem.operation]
        compiled = jax.jit(functools.partial(function, axis=axis)).lower(x).compile()
        return Contender(lambda: compiled(x).block_until_ready(), back)

    import optax

    if problem.soft:
        t = jnp.asarray(problem.targets.T if turned else problem.targets)
        row_losses = optax.softmax_cross_entropy
    else:
        t = jnp.asarray(problem.targets.astype(np.int32))
        row_losses = optax.softmax_cross_entropy_with_integer_labels

    def loss(x: Any, t: Any) -> Any:
        return row_losses(x, t, axis=axis).mean()

    if problem.operation == "loss":
        compiled = jax.jit(loss).lower(x, t).compile()
        return Contender(lambda: compiled(x, t).block_until_ready(), float)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(x, t).compile()
    return Contender(
        lambda: jax.block_until_ready(compiled(x, t)),
        lambda result: (float(result[0]), back(result[1])),
    )


# --- onnxruntime --------------------------------------------------------------------------------


def onnxruntime_calls(problem: Problem) -> Contender:
    """A graph of one node, input and output bound to memory."""
    import onnxruntime
    from onnx import TensorProto, helper

    nodes = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}
    _require(problem.operation in nodes, "no gradient")
    types = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
    }
    x, axis, out, turned = _c_order(problem)
    _require(x.dtype.name in types, f"no {x.dtype}")
    reduces = problem.operation == "logsumexp"
    keywords: dict[str, Any] = {"axes": [axis], "keepdims": 0} if reduces else {"axis": axis}
    shape = [n for i, n in enumerate(x.shape) if not (reduces and i == axis)]
    node = helper.make_node(nodes[problem.operation], ["x"], ["y"], **keywords)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", types[x.dtype.name], x.shape)],
        [helper.make_tensor_value_info("y", types[x.dtype.name], shape)],
    )
    # at opset 13 ReduceLogSumExp still takes its axes as an attribute
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    binding = session.io_binding()
    # bound by address: a copy of the input would cost its memory once more
    binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    if reduces or out is not None:
        target = out if out is not None else np.empty(shape, x.dtype)
        binding.bind_output("y", "cpu", 0, x.dtype, target.shape, target.ctypes.data)
        result = target.T if turned and not reduces else target

        def run() -> Any:
            session.run_with_iobinding(binding)
            return result

        run.keep = (x, target)  # type: ignore[attr-defined]
        return Contender(run, np.asarray)

    def run_fresh() -> Any:
        binding.bind_output("y", "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    run_fresh.keep = x  # type: ignore[attr-defined]
    return Contender(run_fresh, lambda v: v.numpy().T if turned else v.numpy())


# --- scikit-learn -------------------------------------------------------------------------------


def sklearn_calls(problem: Problem) -> Contender:
    """`HalfMultinomialLoss`, the loss of its gradient boosting; a sum's gradient, not a mean's."""
    from sklearn._loss import HalfMultinomialLoss

    _require(problem.operation in ("loss", "loss_and_grad"), "no such function")
    _require(problem.logits.dtype.name in ("float32", "float64"), f"no {problem.logits.dtype}")
    _require(problem.logits.ndim == 2, "rows by classes only")
    _require(not problem.soft and not problem.options, "no such option")
    x = problem.logits
    n = len(x)
    t = problem.targets.astype(x.dtype)
    model = HalfMultinomialLoss(n_classes=problem.classes)
    given: dict[str, Any] = {}
    if problem.operation == "loss":
        given["loss_out"] = np.empty(n, x.dtype)
        run = functools.partial(model.loss, t, x, n_threads=problem.threads, **given)
        return Contender(run, lambda rows: float(np.mean(rows, dtype=np.float64)))
    if problem.out is not None:
        given = {"loss_out": np.empty(n, x.dtype), "gradient_out": problem.out}
    run = functools.partial(model.loss_gradient, t, x, n_threads=problem.threads, **given)
    return Contender(run, lambda result: (float(np.mean(result[0], dtype=np.float64)), result[1] / n))


# --- SciPy and NumPy ----------------------------------------------------------------------------


def scipy_calls(problem: Problem) -> Contender:
    """`scipy.special`; one thread, results in new memory."""
    from scipy import special

    _require(problem.operation in FAMILY, "no such function")
    _require(problem.logits.dtype.name != "bfloat16", "no bfloat16")
    function = getattr(special, problem.operation)
    return Contender(functools.partial(function, problem.logits, axis=problem.axis), np.asarray)


def numpy_calls(problem: Problem) -> Contender:
    """The textbook's formulas, in place as far as NumPy can; one thread."""
    _require(not problem.options, "no such option")
    _require(problem.logits.dtype.name != "bfloat16", "no bfloat16")
    x, axis, t, operation = problem.logits, problem.axis, problem.targets, problem.operation
    soft = problem.soft
    count = x.size // problem.classes
    places = None if t is None or soft else np.expand_dims(t, axis)

    def exponentials(out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        top = x.max(axis=axis, keepdims=True)
        e = np.subtract(x, top, out=out)
        np.exp(e, out=e)
        return e, top, e.sum(axis=axis, keepdims=True)

    def softmax() -> np.ndarray:
        e, _, total = exponentials(problem.out)
        e /= total
        return e

    def logsumexp() -> np.ndarray:
        _, top, total = exponentials(None)
        return (top + np.log(total)).squeeze(axis)

    def log_softmax() -> np.ndarray:
        top = x.max(axis=axis, keepdims=True)
        shifted = np.subtract(x, top, out=problem.out)
        shifted -= np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return shifted

    def loss_of(log_sum: np.ndarray) -> float:
        if soft:
            return float((t.sum(axis=axis, keepdims=True) * log_sum).sum() - np.vdot(t, x)) / count
        return float((log_sum - np.take_along_axis(x, places, axis)).mean(dtype=np.float64))

    def loss() -> float:
        _, top, total = exponentials(None)
        return loss_of(top + np.log(total))

    def loss_and_grad() -> tuple[float, np.ndarray]:
        e, top, total = exponentials(problem.out)
        value = loss_of(top + np.log(total))
        if soft:
            e *= t.sum(axis=axis, keepdims=True) / total
            e -= t
            e /= count
        else:
            e /= total * count
            at_target = np.take_along_axis(e, places, axis) - x.dtype.type(1 / count)
            np.put_along_axis(e, places, at_target, axis)
        return value, e

    functions: dict[str, Callable[[], Any]] = {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "loss": loss,
        "loss_and_grad": loss_and_grad,
    }
    return Contender(functions[operation], lambda result: result)


RIVALS: dict[str, Callable[[Problem], Contender]] = {
    "PyTorch": torch_calls,
    "PyTorch by hand": torch_by_hand,
    "JAX": jax_calls,
    "onnxruntime": onnxruntime_calls,
    "scikit-learn": sklearn_calls,
    "SciPy": scipy_calls,
    "NumPy": numpy_calls,
}


def contender(name: str, problem: Problem) -> Contender:
    """A rival's call, or `Unavailable` where it has none or is not installed."""
    try:
        return RIVALS[name](problem)
    except ImportError as error:
        raise Unavailable(f"not installed ({error.name})") from error
