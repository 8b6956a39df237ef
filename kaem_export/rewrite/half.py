"""Layers in float16, for GPUs.

Matches: dense layers and convolutions, and what stands between them and keeps their accuracy: activations, sums,
changes of shape.
Leaves alone: the prior, all nodes that `latent` depends on; the features of Kolmogorov-Arnold layers, whose arguments
(x - c) / w would lose their last digits; what comes after the last layer; inputs and outputs.
After it: weights of half the size and casts where types meet. (ONNX Runtime's own converter casts the graph's input
first, even where only float32 nodes read it; the uniforms would lose 13 of their bits.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.rewrite.editing import Patch, constant, prior_nodes, swept, with_shapes

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BETWEEN = frozenset(
    {
        *("Add", "AveragePool", "Concat", "DepthToSpace", "Elu", "Expand", "Flatten", "Gelu", "GlobalAveragePool"),
        *("Identity", "LeakyRelu", "MaxPool", "Pad", "PRelu", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tanh"),
        *("Transpose", "Unsqueeze"),
    }
)


def to_float16(model: ir.Model) -> ir.Model:
    """Return the model with its generator's layers in float16, in place."""
    kept = {*prior_nodes(model)}
    halves: set[ir.Value] = set()
    casts: dict[ir.Value, ir.Value] = {}
    changed = [node for node in model.graph if node not in kept and _is_suitable(node, halves)]
    for node in changed:
        patch = Patch(node, f"{node.outputs[0].name}_half")
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or value in halves:
                continue
            array = constant(value)
            if array is not None:
                node.replace_input_with(index, patch.constant(array.astype(np.float16), "constant"))
                continue
            if value not in casts:
                casts[value] = patch.node("Cast", [value], to=ir.DataType.FLOAT16)
            node.replace_input_with(index, casts[value])
    for value in halves:
        value.dtype = ir.DataType.FLOAT16
    narrow = {*changed}
    for value in halves:
        _widen(value, narrow)
    return with_shapes(swept(model))


def _is_suitable(node: ir.Node, halves: set[ir.Value]) -> bool:
    """Whether a node becomes float16; if so, its results are added to `halves`, which later nodes ask for."""
    varying = [value for value in node.inputs if value is not None and constant(value) is None]
    if any(value.dtype != ir.DataType.FLOAT for value in (*varying, *node.outputs)):
        return False
    if node.op_type in _LAYERS or (node.op_type in _BETWEEN and varying and all(value in halves for value in varying)):
        halves.update(node.outputs)
        return True
    return False


def _widen(value: ir.Value, narrow: set[ir.Node]) -> None:
    """Give readers in float32, the graph's caller included, a cast of a float16 value."""
    readers = [(node, index) for node, index in value.uses() if node not in narrow]
    node = value.producer()
    if node is None or not (readers or value.is_graph_output()):
        return
    graph = node.graph
    following = next((after for after in graph or () if after in {reader for reader, _ in readers}), None)
    place = following or (list(graph or ())[-1])
    patch = Patch(place, f"{value.name}_wide")
    wide = patch.node("Cast", [value], to=ir.DataType.FLOAT)
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    for reader, index in readers:
        reader.replace_input_with(index, wide)
