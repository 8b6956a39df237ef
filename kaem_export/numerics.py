"""What a graph computes in, read off its nodes: a manifest that says otherwise claims bounds that do not hold."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from kaem_export.options import Precision

_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


def precision_of(model: onnx.ModelProto) -> Precision:
    """Return the narrowest arithmetic that a graph uses."""
    nodes = list(_nodes(model.graph))
    if any(node.op_type in _QUANTISED for node in nodes):
        return "int8"
    casts = [entry.i for node in nodes if node.op_type == "Cast" for entry in node.attribute if entry.name == "to"]
    if TensorProto.FLOAT16 in casts or any(
        tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer
    ):
        return "float16"
    return "float32"


def has_branches(model: onnx.ModelProto) -> bool:
    """Whether some node chooses between two graphs."""
    return any(node.op_type == "If" for node in _nodes(model.graph))


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    below = [entry.g for node in graph.node for entry in node.attribute if entry.HasField("g")]
    return [*graph.node, *(node for branch in below for node in _nodes(branch))]
