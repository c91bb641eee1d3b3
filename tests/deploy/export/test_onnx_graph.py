# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The graph that is written computes what the exporter's graph computed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dacal_med.deploy.export.onnx_graph import MAX_CHANNELS, rewrite


def model_of(node: NodeProto, dims: int, **weights: np.ndarray) -> ModelProto:
    """A graph of one node from ``x`` to ``y``, all axes free."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (2 + dims)) for name in "xy"]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, image: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": image.astype(np.float32)})[0]


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 6),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    size=st.tuples(*[st.integers(6, 9)] * 3),
    seed=st.integers(0, 2**16),
)
def test_a_split_convolution_is_the_convolution(kernel, pads, stride, dilation, bias, size, seed):
    draw = np.random.default_rng(seed)
    weights = {"w": draw.normal(size=(3, 2, *kernel)), **({"b": draw.normal(size=3)} if bias else {})}
    options = {"kernel_shape": kernel, "pads": pads, "strides": [1, stride, 1], "dilations": [1, 1, dilation]}
    model = model_of(helper.make_node("Conv", ["x", *weights], ["y"], "conv", **options), 3, **weights)
    image = draw.normal(size=(2, 2, *size))
    wanted = run(model, image)
    rewrite(model)
    assert kinds(model) == {"Conv": 1, "Slice": kernel[0], "Add": kernel[0] - 1}
    np.testing.assert_allclose(run(model, image), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 2, 3, 3), {}),
        ((3, 2, 1, 3, 3), {}),
        ((MAX_CHANNELS + 1, 2, 3, 3, 3), {}),
        ((4, 1, 3, 3, 3), {"group": 2}),
        ((3, 2, 3, 3, 3), {"strides": [2, 1, 1]}),
        ((3, 2, 3, 3, 3), {"dilations": [2, 1, 1]}),
        ((3, 2, 3, 3, 3), {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_other_convolutions_stay(shape, options):
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=shape[2:], **options)
    model = model_of(node, len(shape) - 2, w=np.ones(shape))
    before = model.SerializeToString(deterministic=True)
    rewrite(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("slope", "kind"), [([0.3], "LeakyRelu"), ([0.3, 0.1], "PRelu")])
def test_prelu_of_one_slope(slope, kind):
    weight = np.array(slope).reshape(-1, 1, 1)
    model = model_of(helper.make_node("PRelu", ["x", "w"], ["y"]), 2, w=weight)
    rewrite(model)
    assert kinds(model) == {kind: 1}
    assert [tensor.name for tensor in model.graph.initializer] == ([] if kind == "LeakyRelu" else ["w"])
    image = np.random.default_rng(0).normal(size=(2, 2, 4, 5))
    np.testing.assert_allclose(run(model, image), np.where(image < 0, weight * image, image), rtol=1e-5)
