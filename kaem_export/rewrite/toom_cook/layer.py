"""Transposed convolutions of kernel 4, stride 2, padding 1 with 2.56 times fewer products, for large batches.

The arithmetic is in `maps.py`: values of the inputs at points, products at every point, outputs from their
values. Once products are few, time goes into moving numbers, so the layout decides. Activations are (H, W, C, N):

- both maps of an axis are products with small constant matrices on the left, without a transposition;
- the core is one batched MatMul, (point, phase, point, phase O, I) times (tile, point, point, tile, I, N): the weights
  of both phases of columns stand above each other, and ONNX Runtime packs few numbers (N columns) for many rows;
- biases need no pass of their own: a further channel is 1 everywhere, and its weights are the biases. It also keeps
  rows of memory from being a power of two apart.

For this `ROWS_PER_CALL` rows at a time are best: ONNX Runtime's packed columns then fit the first level of cache. What
layers on large images make of so many would fill the last one, so they take half of them at a time.

Matches: chains of ConvTranspose with constant float32 weights, no groups, square images whose side is a multiple of 4,
and at least a quarter of the operations to save, linked by elementwise operators that only the next layer reads; and a
Gemm that gives the first one its images, as one product that gives them in the layout (`chains.py`).
Leaves alone: all other layers, as the last one to few channels, which runs as before on the result; if nothing else
reads that, it is part of the branches.
After it: the same values up to a few more roundings (a layer's error is 1e-6 to 4e-6 of its largest output, of which
the plain one's is 2e-7). Constants grow by 6.25.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.rewrite.editing import Patch, constant, repeated, row_shape, swept, with_shapes
from kaem_export.rewrite.toom_cook.chains import Chain, chains, level_after
from kaem_export.rewrite.toom_cook.maps import (
    NUM_POINTS,
    TILE,
    Float64,
    evaluation,
    evaluation_of_tiles,
    interpolation,
    transformed_weight,
)

ROWS_PER_CALL = 32
"""Of fewer rows a call reads the weights too often; of more, the columns that ONNX Runtime packs leave the first level
of cache and what lies between two operators the last one."""

_MOST_SUMMED = 512
"""Inputs up to which ONNX Runtime makes one sum whatever the number of rows of a call. Of more it makes one sum for 16
rows and several for 17 to 32, and a row's bits would tell."""

_MOST_BYTES = 8_000_000
"""Of what lies between two operators. Of larger layers, and all after them, each half of a call's rows is computed by
itself, though products of 16 columns run at nine tenths of the speed of 32."""


def to_toom_cook(model: ir.Model) -> ir.Model:
    """Return the model with all such chains rewritten for every batch size, in place."""
    for chain in chains(model):
        patch = Patch(chain.nodes[0], f"{chain.result.name}_toom_cook")
        patch.replace(chain.result, _rewritten(patch, chain))
    return with_shapes(swept(model))


def add_large_batch_branch(model: ir.Model, least_rows: int) -> ir.Model:
    """Return the model with such chains in two forms, in place: from `least_rows` rows on, the rewritten one runs.

    The plain layers are the else-branch of an If on the number of rows, so small batches lose nothing. A row's image
    then depends on the branch by rounding.
    """
    for chain in chains(model):
        patch = Patch(chain.all_nodes[0], f"{chain.result.name}_branch")
        rows = patch.node("Shape", [chain.source], start=0, end=1)
        is_large = patch.node("GreaterOrEqual", [rows, patch.constant(np.array([least_rows], np.int64), "least_rows")])
        condition = patch.node("Squeeze", [is_large])
        large, small = (_branch(chain, name, toom_cook=name == "large") for name in ("large", "small"))
        patch.replace(chain.result, patch.node("If", [condition], then_branch=large, else_branch=small))
    return with_shapes(swept(model))


def has_large_batch_form(model: ir.Model) -> bool:
    """Whether there is anything for these rewrites to do."""
    return bool(chains(model))


def rows_of_equal_bits(model: ir.Model) -> int:
    """Rows of a call from which, up to `ROWS_PER_CALL`, a row's bits in the rewritten form do not depend on them.

    Of fewer than 4, ONNX Runtime may compute one column alone, and sums it in another order.
    """
    most_summed = max((chain.most_summed for chain in chains(model)), default=0)
    return 17 if most_summed > _MOST_SUMMED else 4


def _branch(chain: Chain, name: str, *, toom_cook: bool) -> ir.Graph:
    """One branch of the If: a graph without inputs that reads the chain's source from around it."""
    prefix = f"{chain.result.name}_{name}"
    end = ir.node("Identity", [chain.source], outputs=[ir.Value(name=f"{prefix}_result")])
    graph = ir.Graph([], end.outputs, nodes=[end], name=prefix)
    patch = Patch(end, prefix)
    if toom_cook:
        result = _rewritten(patch, chain)
    else:
        result = chain.source
        for node in chain.all_nodes:
            result = repeated(patch, node, result)
    end.replace_input_with(0, result)
    end.outputs[0].type, end.outputs[0].shape = chain.result.type, chain.result.shape
    return graph


def _rewritten(patch: Patch, chain: Chain) -> ir.Value:
    """Write down the chain in the layout (H, W, C, N), and its result as (N, C, H, W)."""
    channels, side, _ = row_shape(chain.images) or (0, 0, 0)
    first, level = _first(patch, chain, channels, side)
    values = [first]
    for node in chain.nodes:
        if node.op_type == "ConvTranspose":
            weight = _with_bias(node, level, keep_ones=node is not chain.layers[-1])
            if len(values) == 1 and _is_large(weight, side):
                values = _halves(patch, _reshaped(patch, values[0], side * side * len(weight), -1), chain.source)
            values, level = [_layer(patch, value, side, weight) for value in values], 1.0
            side, channels = 2 * side, weight.shape[1]
        else:
            values, level = [repeated(patch, node, value) for value in values], level_after(node, level)
    images = [_as_images(patch, value, channels, side) for value in values]
    for node in chain.rest:
        images = [repeated(patch, node, image) for image in images]
    return images[0] if len(images) == 1 else patch.node("Concat", images, axis=0)


def _is_large(weight: Float64, side: int) -> bool:
    """Whether what a layer's products give for a call leaves too little of the last cache to the maps after them."""
    points = 2 * side // TILE * NUM_POINTS
    return bool(points**2 * weight.shape[1] * ROWS_PER_CALL * np.float32().nbytes > _MOST_BYTES)


def _halves(patch: Patch, value: ir.Value, source: ir.Value) -> list[ir.Value]:
    """Cut (elements of a row, N) between rows, N those of the source.

    Of one row the second half is empty. `Split` would refuse one, with which Triton may call a graph for more.
    """
    begin, axis = (patch.constant(np.array([place], np.int64), "place") for place in (0, 1))
    end = patch.node("Shape", [source], start=0, end=1)
    middle = patch.node("Div", [patch.node("Add", [end, axis]), patch.constant(np.array([2], np.int64), "two")])
    return [patch.node("Slice", [value, first, last, axis]) for first, last in ((begin, middle), (middle, end))]


def _as_images(patch: Patch, value: ir.Value, channels: int, side: int) -> ir.Value:
    """(H, W, C, N) -> (N, C, H, W), by two transpositions of matrices: one of four axes takes several times as long."""
    value = patch.node("Transpose", [_reshaped(patch, value, side * side * channels, -1)], perm=[1, 0])
    value = patch.node("Transpose", [_reshaped(patch, value, -1, side * side, channels)], perm=[0, 2, 1])
    return _reshaped(patch, value, -1, channels, side, side)


def _first(patch: Patch, chain: Chain, channels: int, side: int) -> tuple[ir.Value, float]:
    """Return the elements of the first layer's inputs (H W, C + 1, N), and what is in their last channel everywhere."""
    if not chain.dense:
        value = patch.node("Transpose", [_reshaped(patch, chain.images, -1, channels * side * side)], perm=[1, 0])
        value = patch.node("Concat", [value, _ones(patch, chain.images, side * side)], axis=0)
        return patch.node("Transpose", [_reshaped(patch, value, channels + 1, side * side, -1)], perm=[1, 0, 2]), 1.0
    gemm, *activations, _ = chain.dense
    columns = patch.node("Transpose", [chain.source], perm=[1, 0])
    columns = patch.node("Concat", [columns, _ones(patch, chain.source, 1)], axis=0)
    value = _times(patch, _dense_weight(gemm, channels), columns)
    level = 1.0
    for activation in activations:
        value, level = repeated(patch, activation, value), level_after(activation, level)
    return value, level


def _dense_weight(gemm: ir.Node, channels: int) -> Float64:
    """Weights (H W (C + 1), D + 1) for inputs of which the last is 1: of every pixel, then a row that gives 1."""
    weight = np.asarray(constant(gemm.inputs[1]), np.float64)
    weight = weight if gemm.attributes.get_int("transB", 0) else weight.T  # (C H W, D)
    offset = constant(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    offset = np.broadcast_to(0.0 if offset is None else offset.reshape(-1), len(weight))
    result = np.zeros((len(weight) // channels, channels + 1, weight.shape[1] + 1))
    result[:, :-1, :-1] = weight.reshape(channels, -1, weight.shape[1]).swapaxes(0, 1)
    result[:, :-1, -1] = offset.reshape(channels, -1).T
    result[:, -1, -1] = 1.0
    return result.reshape(-1, result.shape[2])


def _ones(patch: Patch, source: ir.Value, count: int) -> ir.Value:
    """Ones of the shape (count, N), N the rows of the source."""
    rows = patch.node("Shape", [source], start=0, end=1)
    shape = patch.node("Concat", [patch.constant(np.array([count], np.int64), "count"), rows], axis=0)
    return patch.node("Expand", [patch.constant(np.ones((1, 1), np.float32), "one"), shape])


def _with_bias(layer: ir.Node, level: float, *, keep_ones: bool) -> Float64:
    """Weights (I + 1, O or O + 1, 4, 4) for inputs of which the last channel is `level` everywhere.

    Taps 1 and 2 of an axis reach every output once, those at the border too.
    """
    weight = np.asarray(constant(layer.inputs[1]), np.float64)
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    num_inputs, num_outputs = weight.shape[:2]
    result = np.zeros((num_inputs + 1, num_outputs + keep_ones, 4, 4))
    result[:num_inputs, :num_outputs] = weight
    result[num_inputs, :num_outputs, 1:3, 1:3] = 0.0 if bias is None else bias[:, None, None] / level
    result[num_inputs, num_outputs:, 1:3, 1:3] = 1.0 / level
    return result


def _layer(patch: Patch, value: ir.Value, side: int, weight: Float64) -> ir.Value:
    """One layer on any array with the elements of (H, W, I, N): the elements of (2 H, 2 W, O, N)."""
    num_inputs, num_outputs = weight.shape[:2]
    tiles = side // TILE
    both = 2 * tiles * NUM_POINTS
    value = _times(patch, evaluation(), _reshaped(patch, value, tiles, TILE, -1))  # (tile, point, W I N)
    value = _reshaped(patch, value, tiles * NUM_POINTS, side, -1)
    value = _times(patch, evaluation_of_tiles(tiles), value)
    # Of columns the points come before the tiles, so that products with the same weights follow each other.
    value = _reshaped(patch, value, tiles, NUM_POINTS, 1, NUM_POINTS, tiles, num_inputs, -1)
    kernel = transformed_weight(weight).reshape(1, NUM_POINTS, 2, NUM_POINTS, 1, 2 * num_outputs, num_inputs)
    value = patch.node("MatMul", [patch.constant(kernel, "kernel"), value])
    # (tile, point, phase) of rows, (point, tile, phase) of columns, then (O, N)
    out = interpolation(tiles)
    columns = out.transpose(0, 2, 1, 3).reshape(-1, both)
    value = _times(patch, columns, _reshaped(patch, value, both, both, -1))
    return _times(patch, out.reshape(-1, both), _reshaped(patch, value, both, -1))


def _times(patch: Patch, matrix: Float64, value: ir.Value) -> ir.Value:
    return patch.node("MatMul", [patch.constant(matrix.astype(np.float32), "matrix"), value])


def _reshaped(patch: Patch, value: ir.Value, *sides: int) -> ir.Value:
    return patch.node("Reshape", [value, patch.constant(np.array(sides, np.int64), "shape")])
