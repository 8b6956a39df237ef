"""Transposed convolutions of kernel 4, stride 2, padding 1 with 2.56 times fewer products, for large batches.

Along one axis such a layer maps x_i to outputs y_(2 i + k - 1) = sum_i x_i w_k, k = 0..3. With X(t) = sum_i x_i t^i and
for phase r = 0, 1 the kernel's half W_r(t) = w_r + w_(r+2) t, the outputs of one parity are the coefficients of
X(t) W_r(t). Of four inputs X W_r has degree 4, so five values determine it (Toom 1963, Cook 1966): at the points
1/2, -1/2, 3/2, -3/2 and infinity. Five products instead of eight for four
outputs; nested over both axes 25 instead of 64.
Both phases share the values of X. Tiles of four inputs overlap by one output; adding the overlap, and dropping the
outputs beyond the border, are part of the last linear map.

Layout: activations are (H, W, N, C), so evaluating X and interpolating X W are products with small constant matrices
on the left, and the core is one batched MatMul, (tile, point, 1, point, 1, tile N, I) times (point, phase, point,
phase, I, O).

Matches: chains of ConvTranspose with constant float32 weights, no groups, square images whose side is a multiple of 4,
and at least a quarter of the operations to save, linked by elementwise operators that only the next layer reads.
Leaves alone: all other layers, as the last one to few channels, which runs as before on the result.
After it: the same values up to a few more roundings (2 to 4 times those of the plain layer). Constants grow by 6.25.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem_export.passes.editing import UNARY, Patch, constant, row_shape, sole_user, swept, with_shapes

Float64 = NDArray[np.float64]

POINTS = (0.5, -0.5, 1.5, -1.5)
"""And infinity, whose value is the leading coefficient. Half the rounding error of 0, 1, -1, 1/2 and infinity, the best
of the usual small numbers; all their powers are exact in float32."""

_TILE = 4
_NUM_POINTS = _TILE + 1
_MOST_SHARE = 0.75
"""Of a layer's operations that the rewritten one may need: small savings are lost again in memory traffic."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """Layers and the elementwise operators between and after them, as they follow each other."""

    source: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def result(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def to_toom_cook(model: ir.Model) -> ir.Model:
    """Return the model with all such chains rewritten for every batch size, in place."""
    for chain in _chains(model):
        patch = Patch(chain.nodes[0], f"{chain.result.name}_toom_cook")
        patch.replace(chain.result, _rewritten(patch, chain))
    return with_shapes(swept(model))


def add_large_batch_branch(model: ir.Model, least_rows: int) -> ir.Model:
    """Return the model with such chains in two forms, in place: from `least_rows` rows on, the rewritten one runs.

    The plain layers are the else-branch of an If on the number of rows, so small batches lose nothing. A row's image
    then depends on the branch by rounding.
    """
    for chain in _chains(model):
        place = chain.nodes[0]
        patch = Patch(place, f"{chain.result.name}_branch")
        rows = patch.node("Shape", [chain.source], start=0, end=1)
        is_large = patch.node("GreaterOrEqual", [rows, patch.constant(np.array([least_rows], np.int64), "least_rows")])
        condition = patch.node("Squeeze", [is_large])
        large, small = (_branch(chain, name, toom_cook=name == "large") for name in ("large", "small"))
        patch.replace(chain.result, patch.node("If", [condition], then_branch=large, else_branch=small))
    return with_shapes(swept(model))


def has_large_batch_form(model: ir.Model) -> bool:
    """Whether there is anything for these rewrites to do."""
    return bool(_chains(model))


def _branch(chain: _Chain, name: str, *, toom_cook: bool) -> ir.Graph:
    """One branch of the If: a graph without inputs that reads the chain's source from around it."""
    prefix = f"{chain.result.name}_{name}"
    end = ir.node("Identity", [chain.source], outputs=[ir.Value(name=f"{prefix}_result")])
    graph = ir.Graph([], end.outputs, nodes=[end], name=prefix)
    patch = Patch(end, prefix)
    result = _rewritten(patch, chain) if toom_cook else _repeated(patch, chain)
    end.replace_input_with(0, result)
    end.outputs[0].type, end.outputs[0].shape = chain.result.type, chain.result.shape
    return graph


def _repeated(patch: Patch, chain: _Chain) -> ir.Value:
    """Write the chain down once more as it is."""
    value = chain.source
    for node in chain.nodes:
        constants = [patch.constant(np.asarray(constant(entry))) for entry in node.inputs[1:] if entry is not None]
        value = patch.node(node.op_type, [value, *constants], **dict(node.attributes))
    return value


def _chains(model: ir.Model) -> list[_Chain]:
    found: list[_Chain] = []
    used: set[ir.Node] = set()
    for node in model.graph:
        if node in used or not _is_suitable(node):
            continue
        nodes = [node]
        while (user := sole_user(nodes[-1].outputs[0])) is not None:
            if not _is_suitable(user) and not _is_elementwise(user):
                break
            nodes.append(user)
        used |= {*nodes}
        if node.inputs[0] is not None:
            found.append(_Chain(node.inputs[0], tuple(nodes)))
    return found


def _is_suitable(node: ir.Node) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "ConvTranspose" else None
    sides = row_shape(node.inputs[0]) if node.op_type == "ConvTranspose" else None
    if weight is None or sides is None or weight.dtype != np.float32 or weight.shape[2:] != (4, 4):
        return False
    if len(node.inputs) > 2 and constant(node.inputs[2]) is None:
        return False
    get = node.attributes.get_ints
    is_plain = (
        tuple(get("strides", (1, 1))) == (2, 2)
        and tuple(get("pads", (0, 0, 0, 0))) == (1, 1, 1, 1)
        and not any(get("output_padding", (0, 0)))
        and tuple(get("dilations", (1, 1))) == (1, 1)
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    )
    return is_plain and sides[1] == sides[2] and sides[1] % _TILE == 0 and _saves_much(weight, sides[1])


def _saves_much(weight: NDArray[Any], side: int) -> bool:
    num_inputs, num_outputs = weight.shape[:2]
    points = side // _TILE * _NUM_POINTS
    core = (2 * points) ** 2 * num_inputs * num_outputs
    maps = points * side * (side + points) * num_inputs + 4 * points * side * (points + side) * num_outputs
    return bool(core + maps <= _MOST_SHARE * 16 * side * side * num_inputs * num_outputs)


def _is_elementwise(node: ir.Node) -> bool:
    further = [constant(value) for value in node.inputs[1:] if value is not None]
    return node.op_type in UNARY and all(array is not None and array.ndim == 0 for array in further)


def _rewritten(patch: Patch, chain: _Chain) -> ir.Value:
    """Write down the chain in the layout (H, W, N, C), and its result as (N, C, H, W)."""
    channels, side, _ = row_shape(chain.source) or (0, 0, 0)
    value = patch.node("Transpose", [chain.source], perm=[2, 3, 0, 1])
    for node in chain.nodes:
        if node.op_type == "ConvTranspose":
            weight = np.asarray(constant(node.inputs[1]))
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            value = _layer(patch, value, side, weight, bias)
            side, channels = 2 * side, weight.shape[1]
        else:
            constants = [patch.constant(np.asarray(constant(entry))) for entry in node.inputs[1:] if entry is not None]
            value = patch.node(node.op_type, [value, *constants], **dict(node.attributes))
    whole = _reshaped(patch, value, side, side, -1, channels)
    return patch.node("Transpose", [whole], perm=[2, 3, 0, 1])


def _layer(patch: Patch, value: ir.Value, side: int, weight: NDArray[Any], bias: NDArray[Any] | None) -> ir.Value:
    """One layer on any array with the elements of (H, W, N, I): rows (2 H 2 W N, O)."""
    num_inputs, num_outputs = weight.shape[:2]
    tiles = side // _TILE
    evaluate, interpolate = _evaluation(side), _interpolation(side)
    rows_in, columns_in = evaluate.reshape(-1, side), evaluate.swapaxes(0, 1).reshape(-1, side)
    rows_out = interpolate.reshape(2 * side, -1)  # over (tile, point, phase)
    columns_out = interpolate.transpose(0, 2, 3, 1).reshape(2 * side, -1)  # over (point, phase, tile)
    value = _times(patch, rows_in, _reshaped(patch, value, side, -1))  # (tile point, W N I)
    value = _times(patch, columns_in, _reshaped(patch, value, tiles * _NUM_POINTS, side, -1))
    value = _reshaped(patch, value, tiles, _NUM_POINTS, 1, _NUM_POINTS, 1, -1, num_inputs)
    kernel = patch.constant(transformed_weight(weight)[None], "kernel")
    value = patch.node("MatMul", [value, kernel])  # (tile, point, phase, point, phase, tile N, O)
    both = 2 * tiles * _NUM_POINTS
    value = _times(patch, columns_out, _reshaped(patch, value, both, both, -1))
    value = _times(patch, rows_out, _reshaped(patch, value, both, -1))  # (2 H, 2 W N O)
    value = _reshaped(patch, value, -1, num_outputs)
    return value if bias is None else patch.node("Add", [value, patch.constant(bias, "bias")])


def _times(patch: Patch, matrix: Float64, value: ir.Value) -> ir.Value:
    return patch.node("MatMul", [patch.constant(matrix.astype(np.float32), "map"), value])


def _reshaped(patch: Patch, value: ir.Value, *sides: int) -> ir.Value:
    return patch.node("Reshape", [value, patch.constant(np.array(sides, np.int64), "shape")])


def transformed_weight(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Values of both halves of a kernel at the points, along both axes.

    Args:
        weight: Shape (I, O, 4, 4).

    Returns:
        Shape (point, phase, point, phase, I, O), computed in float64.
    """
    halves = weight.astype(np.float64).reshape(*weight.shape[:2], 2, 2, 2, 2)  # w_(2 j + r): (j, r, j, r)
    values = _vandermonde(2)
    return np.asarray(np.einsum("pj,iojrks,qk->prqsio", values, halves, values), np.float32)


def _evaluation(side: int) -> Float64:
    """The map from the inputs of an axis to the values of X of every tile: shape (tile, point, side)."""
    tiles = side // _TILE
    result = np.zeros((tiles, _NUM_POINTS, side))
    for tile in range(tiles):
        result[tile, :, tile * _TILE : (tile + 1) * _TILE] = _vandermonde(_TILE)
    return result


def _interpolation(side: int) -> Float64:
    """The map from values of X W_r to the outputs of an axis: shape (2 side, tile, point, phase)."""
    tiles = side // _TILE
    result = np.zeros((2 * side, tiles, _NUM_POINTS, 2))
    inverse = np.linalg.inv(_vandermonde(_NUM_POINTS))
    for tile in range(tiles):
        for phase in range(2):
            for power in range(_NUM_POINTS):
                output = 2 * (tile * _TILE + power) + phase - 1
                if 0 <= output < 2 * side:
                    result[output, tile, :, phase] += inverse[power]
    return result


def _vandermonde(size: int) -> Float64:
    """Powers 0 .. size - 1 of every point, and for infinity the last one alone: shape (5, size)."""
    finite = [[point**power for power in range(size)] for point in POINTS]
    return np.array([*finite, [0.0] * (size - 1) + [1.0]])
