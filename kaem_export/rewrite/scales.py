"""Fold normalisation and scales into the layer in front of them.

y = s (W * x + b) + t, with one s and t per output channel, is a layer with weights s W and bias s b + t.

Matches: BatchNormalization with stored statistics, and Mul, Div, Add, Sub with a constant of one entry per channel,
directly after a Conv, ConvTranspose or Gemm with constant weights whose result nothing else reads.
Leaves alone: constants that differ between pixels, layers whose result is read elsewhere, weights that are computed.
After it: the layer has a bias and the folded weights, computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem_export.rewrite.editing import Patch, constant, other_input, sole_user, swept, with_shapes

Float64 = NDArray[np.float64]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def fold_scales(model: ir.Model) -> ir.Model:
    """Return the model with per-channel affine maps folded into the layers before them, in place."""
    for node in tuple(model.graph):
        layer = node
        while layer.op_type in _LAYERS and (user := sole_user(layer.outputs[0])) is not None:
            folded = _folded(layer, user)
            if folded is None:
                break
            layer = folded
    return with_shapes(swept(model))


def _folded(layer: ir.Node, user: ir.Node) -> ir.Node | None:
    """Return the layer that does the work of both nodes, or None where there is none."""
    weight = constant(layer.inputs[1])
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else np.zeros(1)
    if weight is None or bias is None or layer.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    channels = _num_channels(layer, weight)
    pair = _scale_and_shift(user, layer.outputs[0], channels)
    if pair is None or bias.size not in (1, channels):
        return None
    scale, shift = pair
    kept: dict[str, Any] = {name: entry for name, entry in layer.attributes.items() if name not in ("alpha", "beta")}
    alpha, beta = layer.attributes.get_float("alpha", 1.0), layer.attributes.get_float("beta", 1.0)
    new_bias = np.broadcast_to(beta * bias.astype(np.float64).reshape(-1), (channels,)) * scale + shift
    patch = Patch(user, f"{layer.outputs[0].name}_scaled")
    result = patch.node(
        layer.op_type,
        [
            layer.inputs[0],
            patch.constant(_scaled(layer, alpha * weight.astype(np.float64), scale).astype(np.float32), "weight"),
            patch.constant(new_bias.astype(np.float32), "bias"),
        ],
        **kept,
    )
    patch.replace(user.outputs[0], result)
    return result.producer()


def _num_channels(layer: ir.Node, weight: NDArray[Any]) -> int:
    if layer.op_type == "Conv":
        return int(weight.shape[0])
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * layer.attributes.get_int("group", 1)
    return int(weight.shape[0 if layer.attributes.get_int("transB", 0) else 1])


def _scaled(layer: ir.Node, weight: Float64, scale: Float64) -> Float64:
    if layer.op_type == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":  # (I, O / groups, ...): input channels of group g meet its output channels
        groups = layer.attributes.get_int("group", 1)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        return (by_group * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    return weight * (scale[:, None] if layer.attributes.get_int("transB", 0) else scale)


def _scale_and_shift(node: ir.Node, source: ir.Value, channels: int) -> tuple[Float64, Float64] | None:
    """Return s and t (C,) of y = s x + t for a node that reads x, or None where it does something else."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        if node.attributes.get_int("training_mode", 0) or node.inputs[0] is not source or len(node.outputs) > 1:
            return None
        arrays = [constant(value) for value in node.inputs[1:]]
        if any(array is None for array in arrays):
            return None
        gain, offset, mean, variance = (np.asarray(array, np.float64) for array in arrays)
        scale = gain / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return scale, offset - mean * scale
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    number = _per_channel(constant(other_input(node, source)), source, channels)
    if number is None:
        return None
    if node.op_type == "Mul":
        return number, zero
    if node.op_type == "Add":
        return one, number
    if node.op_type == "Sub":
        return (one, -number) if node.inputs[0] is source else (-one, number)
    return (1.0 / number, zero) if node.inputs[0] is source and number.all() else None


def _per_channel(array: NDArray[Any] | None, source: ir.Value, channels: int) -> Float64 | None:
    """Return a constant as one number per channel, the axis after the batch; None where it is more than that."""
    if array is None or source.shape is None or array.ndim > len(source.shape):
        return None
    sides = (1,) * (len(source.shape) - array.ndim) + array.shape
    if any(side != 1 for axis, side in enumerate(sides) if axis != 1) or sides[1] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))
