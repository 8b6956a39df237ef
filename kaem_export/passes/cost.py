"""What a graph costs per row: nodes, bytes of constants, floating-point operations."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx
import onnx_ir as ir

from kaem_export.passes.editing import constant

_FREE = frozenset(
    {
        *("Cast", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "If", "Loop", "Reshape", "Shape"),
        *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators that move numbers without computing any."""


class Cost(NamedTuple):
    """Of one row: what runs at the batch size that was asked for; bytes are those of the whole file's constants."""

    nodes: int
    constant_bytes: int
    flops: float


def graph_cost(model: onnx.ModelProto, batch: int) -> Cost:
    """Return what a graph costs per row at a batch size: of two branches the one that runs, of a loop all steps."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del copy.graph.value_info[:]
    fixed = ir.from_proto(onnx.shape_inference.infer_shapes(copy, data_prop=True))
    num_nodes, flops = _sum(fixed.graph, batch)
    return Cost(num_nodes, sum(_constant_bytes(graph) for graph in _graphs(fixed.graph)), flops / batch)


def node_flops(node: ir.Node, rows: int) -> int:
    """Return multiplications and additions of one node for a number of rows, 1 per element where nothing is summed."""
    kind, result = node.op_type, node.outputs[0]
    if kind in _FREE:
        return 0
    count = _size(result, rows)
    if kind in ("Gemm", "MatMul", "MatMulInteger", "Conv", "ConvTranspose", "ConvInteger"):
        return 2 * count * _summands(node, rows)
    if kind.startswith("Reduce"):
        return _size(node.inputs[0], rows)
    return count


def _summands(node: ir.Node, rows: int) -> int:
    """Return how many products one element of the result sums up; of a ConvTranspose, on average."""
    first, weight = node.inputs[:2]
    sides = _sides(weight, rows)
    if node.op_type in ("MatMul", "MatMulInteger"):
        return _sides(first, rows)[-1]
    if node.op_type == "Gemm":
        return _sides(first, rows)[0 if node.attributes.get_int("transA", 0) else 1]
    if node.op_type in ("Conv", "ConvInteger"):
        return math.prod(sides[1:])
    steps = math.prod(node.attributes.get_ints("strides", [1] * (len(sides) - 2)))
    is_point = math.prod(_sides(first, rows)[2:]) == 1  # of a 1 x 1 image every output sees one tap
    return sides[0] * (1 if is_point else math.prod(sides[2:]) // steps)


def _sum(graph: ir.Graph, batch: int) -> tuple[int, int]:
    num_nodes = flops = 0
    for node in graph:
        num_nodes += 1
        flops += node_flops(node, batch)
        if node.op_type == "If":
            below = _sum(node.attributes[_branch(node, batch)].as_graph(), batch)
            num_nodes, flops = num_nodes + below[0], flops + below[1]
        elif node.op_type == "Loop":
            below = _sum(node.attributes["body"].as_graph(), batch)
            trips = constant(node.inputs[0])
            num_nodes, flops = num_nodes + below[0], flops + below[1] * (1 if trips is None else int(trips))
    return num_nodes, flops


def _branch(node: ir.Node, batch: int) -> str:
    """Return which branch of an If runs: those of kaem ask whether the batch has at least so many rows."""
    condition = None if node.inputs[0] is None else node.inputs[0].producer()
    if condition is not None and condition.op_type == "Squeeze" and condition.inputs[0] is not None:
        condition = condition.inputs[0].producer()
    least = None if condition is None or condition.op_type != "GreaterOrEqual" else constant(condition.inputs[1])
    return "then_branch" if least is not None and batch >= int(least.reshape(())) else "else_branch"


def _graphs(graph: ir.Graph) -> list[ir.Graph]:
    below = [
        entry.as_graph() for node in graph for entry in node.attributes.values() if entry.type == ir.AttributeType.GRAPH
    ]
    return [graph, *(deeper for branch in below for deeper in _graphs(branch))]


def _constant_bytes(graph: ir.Graph) -> int:
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def _size(value: ir.Value | None, rows: int) -> int:
    return math.prod(_sides(value, rows))


def _sides(value: ir.Value | None, rows: int) -> tuple[int, ...]:
    if value is None or value.shape is None:
        return ()
    return tuple(side if isinstance(side, int) else rows for side in value.shape.dims)
