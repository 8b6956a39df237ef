"""Transposed convolutions of kernel 4, stride 2, padding 1 as one 2 x 2 convolution with four times the channels.

With phases r, s = 0, 1 of the output rows and columns, the outputs of one phase are a 2 x 2 convolution of the input
padded by one; DepthToSpace interleaves the four phases, and a Slice drops one row and column at every border.
Slower than the plain layer in float32; ONNX Runtime has int8 kernels for Conv, but none for ConvTranspose.

Matches: such ConvTranspose without groups on images, with constant weights. An elementwise operator that alone reads
the result moves in front of the DepthToSpace, where it is next to the convolution.
Leaves alone: all others. After it: the same products, summed in another order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.passes.editing import UNARY, Patch, constant, row_shape, sole_user, swept, with_shapes


def to_sub_pixel(model: ir.Model) -> ir.Model:
    """Return the model with all such layers rewritten, in place."""
    for node in tuple(model.graph):
        if node.op_type == "ConvTranspose":
            _rewrite(node)
    return with_shapes(swept(model))


def _rewrite(node: ir.Node) -> None:
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    sides = row_shape(node.inputs[0])
    get = node.attributes.get_ints
    is_plain = (
        tuple(get("strides", (1, 1))) == (2, 2)
        and tuple(get("pads", (0, 0, 0, 0))) == (1, 1, 1, 1)
        and not any(get("output_padding", (0, 0)))
        and tuple(get("dilations", (1, 1))) == (1, 1)
        and node.attributes.get_int("group", 1) == 1
    )
    if weight is None or weight.shape[2:] != (4, 4) or sides is None or not is_plain:
        return
    if len(node.inputs) > 2 and bias is None:
        return
    height, width = sides[1:]
    patch = Patch(node, f"{node.outputs[0].name}_sub_pixel")
    # Output 2 i + r - 1 sums x_(i - 1) w_(r + 2) and x_i w_r: taps in descending order, channels by phase.
    taps = weight.reshape(*weight.shape[:2], 2, 2, 2, 2)[:, :, ::-1, :, ::-1, :].transpose(3, 5, 1, 0, 2, 4)
    inputs = [node.inputs[0], patch.constant(taps.reshape(-1, len(weight), 2, 2), "kernel")]
    if bias is not None:
        inputs.append(patch.constant(np.tile(bias, 4), "bias"))
    value, result = patch.node("Conv", inputs, kernel_shape=[2, 2], pads=[1, 1, 1, 1]), node.outputs[0]
    activation = sole_user(result)
    if activation is not None and activation.op_type in UNARY and len(activation.inputs) == 1:
        value = patch.node(activation.op_type, [value], **dict(activation.attributes))
        result = activation.outputs[0]
    value = patch.node("DepthToSpace", [value], blocksize=2, mode="DCR")
    begin, axes = (
        patch.constant(np.array([1, 1], np.int64), "begin"),
        patch.constant(np.array([2, 3], np.int64), "axes"),
    )
    end = patch.constant(np.array([2 * height + 1, 2 * width + 1], np.int64), "end")
    patch.replace(result, patch.node("Slice", [value, begin, end, axes]))
