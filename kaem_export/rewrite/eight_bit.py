"""Layers on 8-bit numbers: a dense layer, and chains of transposed convolutions as matrix products.

A layer's input x becomes round(x / a) + z in 8 bits, its weights round(w / b) with one b for every output, and the
sums of their products, exact in 32 bits, are scaled by a b to float32: nothing is rounded but inputs and weights.
In the graph that is QuantizeLinear, DequantizeLinear and Gemm, as ONNX says it; runtimes compute the product on
integers.

A transposed convolution of kernel 4, stride 2, padding 1 is four 2 x 2 convolutions, one for each parity of output rows
and columns. They read the same windows, so they are one product: windows of (H + 1, W + 1) places, 4 I numbers
each, times a matrix (4 I, 4 O). Images stay (N, H, W, C) in between, so that what moves are 8-bit numbers in runs of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem_export.rewrite.editing import Patch, constant, is_doubling, is_elementwise, row_shape, sole_user

Float64 = NDArray[np.float64]
_Pair = tuple[int, int]

_NEIGHBOURS = 4
_MOST_PAIR = 127.0
"""In units of a weight: 255 (127 + 1) fits into 16 bits, one unit being left for rounding."""


class Range(NamedTuple):
    """What a layer's input is like: ends, zero among them, and the mean of every channel."""

    low: float
    high: float
    mean: Float64


@dataclass(frozen=True, slots=True)
class ConvolutionChain:
    """Transposed convolutions and the elementwise operators between them; the last one is a convolution."""

    nodes: tuple[ir.Node, ...]

    @property
    def layers(self) -> tuple[ir.Node, ...]:
        """The convolutions alone."""
        return tuple(node for node in self.nodes if node.op_type == "ConvTranspose")


def is_dense(node: ir.Node) -> bool:
    """Whether a node multiplies rows by a constant matrix."""
    weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or row_shape(node.inputs[0]) is None:
        return False
    if node.op_type == "MatMul":
        return len(row_shape(node.inputs[0]) or ()) == 1
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    is_turned = node.attributes.get_int("transA", 0) != 0
    return factors == (1.0, 1.0) and not is_turned and (bias is None or constant(bias) is not None)


def chains(nodes: list[ir.Node]) -> list[ConvolutionChain]:
    """Return the transposed convolutions that `to_eight_bit` knows, with what stands between them."""
    found: list[ConvolutionChain] = []
    used: set[ir.Node] = set()
    for node in nodes:
        if node in used or not is_doubling(node):
            continue
        run = [node]
        while (user := sole_user(run[-1].outputs[0])) is not None and (is_doubling(user) or is_elementwise(user)):
            run.append(user)
        used |= {*run}
        while not is_doubling(run[-1]):
            run.pop()
        found.append(ConvolutionChain(tuple(run)))
    return found


def dense_to_eight_bit(node: ir.Node, source: Range) -> None:
    """Rewrite a node for which `is_dense` holds."""
    weight = np.asarray(constant(node.inputs[1]), np.float64)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        weight = weight.T
    bias = constant(node.inputs[2]) if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    patch = Patch(node, f"{node.outputs[0].name}_int8")
    layer = _Layer(patch, source, weight, bias)
    patch.replace(node.outputs[0], layer.product(layer.quantised(node.inputs[0])))


def chain_to_eight_bit(chain: ConvolutionChain, ranges: Mapping[ir.Node, Range]) -> None:
    """Rewrite a chain; `ranges` are those of the inputs of its layers."""
    first, last = chain.nodes[0], chain.nodes[-1]
    source, result = first.inputs[0], last.outputs[0]
    channels, height, width = row_shape(source) or (0, 0, 0)
    patch = Patch(first, f"{result.name}_int8")
    if source is None:
        raise AssertionError("a convolution without an input")
    value, is_image = source, True
    for node in chain.nodes:
        if node.op_type != "ConvTranspose":
            value = patch.node(node.op_type, [value, *node.inputs[1:]], **dict(node.attributes))
            continue
        weight = np.asarray(constant(node.inputs[1]), np.float64)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        matrix = _as_matrix(weight, bias, by_channel=node is last)
        layer = _Layer(patch, ranges[node]._replace(mean=np.tile(ranges[node].mean, 4)), *matrix)
        value = layer.quantised(value)
        if is_image:
            value, is_image = patch.node("Transpose", [value], perm=[0, 2, 3, 1]), False
        else:
            value = _interleaved(patch, value, height // 2, width // 2, channels)
        value = layer.product(_windows(patch, value, layer.zero_point, height, width, channels))
        height, width, channels = 2 * height, 2 * width, weight.shape[1]
    value = _reshaped(patch, value, -1, height // 2 + 1, width // 2 + 1, channels, 2, 2)
    value = patch.node("Transpose", [value], perm=[0, 3, 1, 4, 2, 5])
    value = _reshaped(patch, value, -1, channels, height + 2, width + 2)
    patch.replace(result, _cut(patch, value, (2, 3), (1, 1), (height + 1, width + 1)))


class _Layer:
    """A matrix product in 8 bits: weight (I, O) and bias (O,) or None, for inputs of a range."""

    def __init__(self, patch: Patch, source: Range, weight: Float64, bias: NDArray[Any] | None) -> None:
        self._patch = patch
        step = max((source.high - source.low) / 255.0, 1e-30)
        steps = _weight_steps(weight)
        rounded = np.rint(weight / steps)
        # What rounding the weights changes on the average is taken back by the bias.
        offset = source.mean @ (weight - rounded * steps) + (0.0 if bias is None else bias.astype(np.float64))
        self._scale = patch.constant(np.array(step, np.float32), "scale")
        self.zero_point = patch.constant(np.array(np.clip(np.rint(-source.low / step), 0, 255), np.uint8), "zero_point")
        self._weight = self._column_constant(rounded.astype(np.int8), steps.astype(np.float32), axis=1)
        product = np.float32(step) * steps.astype(np.float32)
        most = 2.0**31 - 256
        whole = np.clip(np.rint(offset / product), -most, most).astype(np.int32)
        self._bias = self._column_constant(whole, product, axis=0)

    def _column_constant(self, whole: NDArray[Any], scale: NDArray[np.float32], *, axis: int) -> ir.Value:
        """Whole numbers with one unit for every output; ONNX Runtime wants the zero points written out."""
        zeros = self._patch.constant(np.zeros(len(scale), whole.dtype), "zero_points")
        inputs = [self._patch.constant(whole, "whole"), self._patch.constant(scale, "scales"), zeros]
        return self._patch.node("DequantizeLinear", inputs, axis=axis)

    def quantised(self, value: ir.Value | None) -> ir.Value:
        """Return a float32 value in 8 bits."""
        return self._patch.node("QuantizeLinear", [value, self._scale, self.zero_point])

    def product(self, value: ir.Value) -> ir.Value:
        """Return the float32 product of 8-bit rows (M, I): shape (M, O)."""
        rows = self._patch.node("DequantizeLinear", [value, self._scale, self.zero_point])
        return self._patch.node("Gemm", [rows, self._weight, self._bias])


def _weight_steps(weight: Float64) -> Float64:
    """Return for every output of (I, O) the unit of its 8-bit weights.

    Processors without VNNI instructions add the products of two neighbouring inputs in 16 bits, and stop at their ends.
    So of four neighbours no two weights of one sign may add up to more than `_MOST_PAIR`.
    """
    rows = -len(weight) % _NEIGHBOURS
    groups = np.pad(weight, ((0, rows), (0, 0))).reshape(-1, _NEIGHBOURS, weight.shape[1])
    pairs = [np.sort(np.maximum(sign * groups, 0.0), axis=1)[:, -2:].sum(axis=1).max(axis=0) for sign in (1, -1)]
    steps = np.maximum(np.abs(weight).max(axis=0) / 127.0, np.maximum(*pairs) / _MOST_PAIR)
    return np.asarray(np.maximum(steps, 1e-30))


def _as_matrix(weight: Float64, bias: NDArray[Any] | None, *, by_channel: bool) -> tuple[Float64, NDArray[Any] | None]:
    """Return kernels (I, O, 4, 4) as a matrix from windows (row, column, I) to outputs (parity, parity, O).

    With `by_channel` outputs are (O, parity, parity).
    """
    # Output 2 i + r - 1 sums x_(i - 1) w_(r + 2) and x_i w_r: taps in descending order.
    taps = weight.reshape(*weight.shape[:2], 2, 2, 2, 2)[:, :, ::-1, :, ::-1, :]  # (I, O, j, r, k, s)
    order = (2, 4, 0, 1, 3, 5) if by_channel else (2, 4, 0, 3, 5, 1)
    matrix = taps.transpose(order).reshape(4 * len(weight), -1)
    if bias is None:
        return matrix, None
    return matrix, np.repeat(bias, 4) if by_channel else np.tile(bias, 4)


def _windows(patch: Patch, value: ir.Value, fill: ir.Value, height: int, width: int, channels: int) -> ir.Value:
    """Images (N, H, W, C) -> rows (N (H + 1) (W + 1), 4 C) of the 2 x 2 windows that touch them."""
    borders = patch.constant(np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int64), "borders")
    value = patch.node("Pad", [value, borders, fill])
    parts = [
        _cut(patch, value, (1, 2), (row, column), (row + height + 1, column + width + 1))
        for row in (0, 1)
        for column in (0, 1)
    ]
    return _reshaped(patch, patch.node("Concat", parts, axis=3), -1, 4 * channels)


def _interleaved(patch: Patch, value: ir.Value, height: int, width: int, channels: int) -> ir.Value:
    """Rows (N (H + 1) (W + 1), 4 C) of outputs by parity -> images (N, 2 H, 2 W, C)."""
    value = _reshaped(patch, value, -1, height + 1, width + 1, 2, 2, channels)
    value = patch.node("Transpose", [value], perm=[0, 1, 3, 2, 4, 5])
    value = _reshaped(patch, value, -1, 2 * height + 2, 2 * width + 2, channels)
    return _cut(patch, value, (1, 2), (1, 1), (2 * height + 1, 2 * width + 1))


def _cut(
    patch: Patch, value: ir.Value, axes: tuple[int, int], begin: tuple[int, int], end: tuple[int, int]
) -> ir.Value:
    sizes = [patch.constant(np.array(side, np.int64), "side") for side in (begin, end, axes)]
    return patch.node("Slice", [value, *sizes])


def _reshaped(patch: Patch, value: ir.Value, *sides: int) -> ir.Value:
    return patch.node("Reshape", [value, patch.constant(np.array(sides, np.int64), "shape")])
