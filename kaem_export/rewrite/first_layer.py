"""A transposed convolution of 1 x 1 images is a matrix product; an activation after it belongs to that product.

Matches: ConvTranspose without padding, groups or dilation on images (N, C, 1, 1); and an elementwise operator that
is the only reader of a Reshape that is the only reader of a Gemm.
Leaves alone: larger images, and values that are also read elsewhere.
After it: Gemm, activation, Reshape, in this order: ONNX Runtime runs the first two as one node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.rewrite.editing import Patch, constant, is_elementwise, row_shape, sole_user, swept, with_shapes


def first_layer_to_gemm(model: ir.Model) -> ir.Model:
    """Return the model with layers on 1 x 1 images as matrix products, activations next to them, in place."""
    for node in tuple(model.graph):
        if node.op_type == "ConvTranspose":
            _to_gemm(node)
    with_shapes(swept(model))
    for node in tuple(model.graph):
        if node.op_type == "Gemm":
            _advance_activation(node)
    return with_shapes(swept(model))


def _to_gemm(node: ir.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    sides = row_shape(result)
    if weight is None or weight.ndim != 4 or source is None or sides is None or (len(node.inputs) > 2 and bias is None):
        return
    is_plain = node.attributes.get_int("group", 1) == 1 and row_shape(source) == (len(weight), 1, 1)
    if not is_plain or sides != weight.shape[1:]:  # padding, output padding and dilation all change the size
        return
    patch = Patch(node, f"{result.name}_product")
    before = source.producer()
    if (
        before is not None
        and before.op_type in ("Reshape", "Unsqueeze")
        and row_shape(before.inputs[0]) == (len(weight),)
    ):
        matrix = before.inputs[0]
    else:
        matrix = patch.node("Flatten", [source], axis=1)
    inputs = [matrix, patch.constant(weight.reshape(len(weight), -1), "matrix")]
    if bias is not None:
        inputs.append(patch.constant(np.repeat(bias, sides[1] * sides[2]), "offset"))
    product = patch.node("Gemm", inputs)
    shape = patch.constant(np.array([-1, *sides], np.int64), "shape")
    patch.replace(result, patch.node("Reshape", [product, shape]))


def _advance_activation(gemm: ir.Node) -> None:
    """Gemm, Reshape, activation -> Gemm, activation, Reshape."""
    reshape = sole_user(gemm.outputs[0])
    if reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is not gemm.outputs[0]:
        return
    activation = sole_user(reshape.outputs[0])
    if activation is None or not is_elementwise(activation) or len(activation.outputs) != 1:
        return
    result = activation.outputs[0]
    patch = Patch(activation, f"{result.name}_advanced")
    inputs = [gemm.outputs[0], *activation.inputs[1:]]
    active = patch.node(activation.op_type, inputs, **dict(activation.attributes))
    active.type = gemm.outputs[0].type
    patch.replace(result, patch.node("Reshape", [active, reshape.inputs[1]]))
