"""The test cases that ONNX publishes for its SoftmaxCrossEntropyLoss operator."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import fastswl as swl

pytestmark = pytest.mark.peers

onnx = pytest.importorskip("onnx")


def published_cases(operator):
    """Cases with the operator itself; the others hold its expansion into simpler operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making cases of other operators overflows here and there
        from onnx.backend.test.case import node

        cases = node.collect_testcases(operator)
    chosen = [case for case in cases if "expanded" not in case.name]
    return [case for case in chosen if case.model.graph.node[0].op_type == operator]


LOSS_CASES = published_cases("SoftmaxCrossEntropyLoss")


def attributes(case):
    return {a.name: onnx.helper.get_attribute_value(a) for a in case.model.graph.node[0].attribute}


@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
def test_published_case(case):
    given = attributes(case)
    options = {"reduction": given.get("reduction", b"mean").decode()}
    # ONNX has no default ignore_index; this value is no class of any case
    options["ignore_index"] = given.get("ignore_index", -(2**31))
    for inputs, outputs in case.data_sets:
        scores, labels = inputs[0], inputs[1]
        weight = inputs[2] if len(inputs) > 2 else None
        loss = swl.cross_entropy(scores, labels, axis=1, weight=weight, **options)
        np.testing.assert_allclose(loss, outputs[0], rtol=2e-6, atol=1e-7)
        assert np.shape(loss) == outputs[0].shape
        if len(outputs) > 1:
            log_prob = swl.log_softmax(scores, axis=1)
            np.testing.assert_allclose(log_prob, outputs[1], rtol=2e-6, atol=1e-6)


def test_every_published_case_was_found():
    assert len(LOSS_CASES) >= 34


def run(node, inputs, dtypes):
    """Evaluate one node by the reference implementation of ONNX."""
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in zip(node.input, dtypes, strict=True)]
    results = [helper.make_tensor_value_info(name, dtypes[0], None) for name in node.output]
    graph = helper.make_graph([node], "graph", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, dict(zip(node.input, inputs, strict=True)))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 2, -1])
@pytest.mark.parametrize("shape", [(9, 5), (4, 5, 3), (2, 5, 3, 2)], ids=str)
def test_reference_evaluator(shape, ignore_index, weighted, reduction):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, shape).astype(np.float32)
    labels = rng.integers(0, 5, (shape[0], *shape[2:]))
    given = {"reduction": reduction}
    if ignore_index is not None:
        labels.reshape(-1)[::4] = ignore_index
        given["ignore_index"] = ignore_index
    weight = rng.integers(1, 9, 5).astype(np.float32) / 4
    names = ["scores", "labels", "weight"][: 2 + weighted]
    node = onnx.helper.make_node("SoftmaxCrossEntropyLoss", names, ["loss", "log_prob"], **given)
    float_type, int_type = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    theirs = run(
        node,
        [scores, labels, weight][: len(names)],
        [float_type, int_type, float_type][: len(names)],
    )
    loss = swl.cross_entropy(
        scores,
        labels,
        axis=1,
        weight=weight if weighted else None,
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
    )
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(swl.log_softmax(scores, 1), theirs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_operators(operator, axis):
    x = np.random.default_rng(1).normal(0, 3, (3, 4, 5)).astype(np.float32)
    node = onnx.helper.make_node(operator, ["x"], ["y"], axis=axis)
    theirs = run(node, [x], [onnx.TensorProto.FLOAT])[0]
    ours = {"Softmax": swl.softmax, "LogSoftmax": swl.log_softmax}[operator](x, axis)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
