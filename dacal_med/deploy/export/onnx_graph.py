# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Nodes of an ONNX graph that ONNX Runtime is slow at, replaced by others that compute the same.

Its three-dimensional convolution on the CPU copies every voxel once for each kernel position (im2col) before it
multiplies, which is most of the time where there are few output channels; 2D has a blocked layout without copies. Its
PRelu broadcasts the slope element by element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MAX_CHANNELS = 16
"""Output channels up to which a convolution is split: the more, the less copying costs beside the products."""

_TO_THE_END = np.iinfo(np.int64).max


def rewrite(model: ModelProto) -> None:
    """Replace nodes, in place; names of the graph's inputs and outputs stay.

    Args:
        model: with weights as initializers, as ``torch.onnx.export`` writes it.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "PRelu" and _size(weights.get(node.input[1])) == 1:
            slope = float(numpy_helper.to_array(weights[node.input[1]]).reshape(()))
            nodes.append(helper.make_node("LeakyRelu", node.input[:1], node.output, node.name, alpha=slope))
        elif node.op_type == "Conv" and _can_be_split(node, options, weights):
            nodes += _split(graph, node, options, weights)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _size(tensor: TensorProto | None) -> int:
    return 0 if tensor is None else int(np.prod(tensor.dims))


def _can_be_split(node: NodeProto, options: Mapping[str, Any], weights: Mapping[str, TensorProto]) -> bool:
    kernel = options.get("kernel_shape", [])
    return (
        len(kernel) == 3
        and kernel[0] > 1
        and options.get("group", 1) == 1
        and options.get("strides", [1])[0] == 1
        and options.get("dilations", [1])[0] == 1
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(name in weights for name in node.input[1:])
        and weights[node.input[1]].dims[0] <= MAX_CHANNELS
    )


def _split(
    graph: GraphProto, node: NodeProto, options: Mapping[str, Any], weights: Mapping[str, TensorProto]
) -> list[NodeProto]:
    """Return a convolution as one over the other two axes, for every position on the first, and the shifted sum.

    With the kernel's K positions on the first axis as further output channels, a third (K = 3) is copied; plane d of
    the result is the sum over k of plane d + k of the k-th group of channels.
    """
    name, (weight, *bias) = node.output[0], [numpy_helper.to_array(weights[n]) for n in node.input[1:]]
    outputs, depth = weight.shape[0], weight.shape[2]
    flat = np.moveaxis(weight, 2, 0).reshape(depth * outputs, weight.shape[1], 1, *weight.shape[3:])
    inputs = [node.input[0], _constant(graph, f"{name}.weight", flat)]
    if bias:
        # Once in the sum.
        first = np.concatenate([bias[0], np.zeros((depth - 1) * outputs, bias[0].dtype)])
        inputs.append(_constant(graph, f"{name}.bias", first))
    kept = {key: value for key, value in options.items() if key != "kernel_shape"}
    groups = f"{name}.groups"
    nodes = [helper.make_node("Conv", inputs, [groups], node.name, kernel_shape=[1, *weight.shape[3:]], **kept)]
    axes = _constant(graph, f"{name}.axes", np.array([1, 2]))
    for k in range(depth):
        start = _constant(graph, f"{name}.start{k}", np.array([k * outputs, k]))
        end = k - depth + 1 or _TO_THE_END
        stop = _constant(graph, f"{name}.stop{k}", np.array([(k + 1) * outputs, end]))
        part = f"{name}.part{k}"
        nodes.append(helper.make_node("Slice", [groups, start, stop, axes], [part], f"{node.name}.slice{k}"))
    total = f"{name}.part0"
    for k in range(1, depth):
        result = name if k == depth - 1 else f"{name}.sum{k}"
        nodes.append(helper.make_node("Add", [total, f"{name}.part{k}"], [result], f"{node.name}.add{k}"))
        total = result
    return nodes


def _constant(graph: GraphProto, name: str, value: np.ndarray[Any, Any]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name
