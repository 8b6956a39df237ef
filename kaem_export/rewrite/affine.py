"""Fold chains of affine layers: layers with nothing nonlinear between them are one layer.

Matches: values that are an affine function y = A x + b of a matrix x (N, Q), row by row, through any network of Gemm,
MatMul, Conv, ConvTranspose, additions, scales, and changes of shape. A generator without activations is one such
value up to its final sigmoid.
Leaves alone: chains whose layers cost less than the one matrix would, as convolutions after a wide layer do, and
those that would still have to be computed for another output.
After it: each such value is one Gemm, and a Reshape where it is no matrix. A and b come from running the chain on
the unit vectors in float64, and are rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from kaem_export.rewrite.editing import Patch, constant, row_shape, swept, with_shapes
from kaem_export.rewrite.effects import node_flops

Float64 = NDArray[np.float64]

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_ELEMENTWISE = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_MOST_NUMBERS = 1 << 27


def fold_affine_chains(model: ir.Model) -> ir.Model:
    """Return the model with every affine chain that gets cheaper by it folded into one Gemm, in place."""
    while any(_fold(value, source) for value, source in _candidates(model)):
        with_shapes(swept(model))
    return model


def _candidates(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Return values that only something nonlinear reads, each with the matrices that it is affine in, nearest first."""
    found = []
    for node in model.graph:
        value = node.outputs[0]
        is_within = not value.is_graph_output() and all(_is_affine(user) for user, _ in value.uses())
        if _is_affine(node) and not is_within:
            found += [(value, source) for source in _sources(value)]
    return found


def _sources(value: ir.Value) -> list[ir.Value]:
    """Return all matrices that a value is an affine function of, the nearest first."""
    sources: list[ir.Value] = []
    frontier = {value}
    while frontier:
        if len(frontier) == 1 and (only := next(iter(frontier))) is not value and len(row_shape(only) or ()) == 1:
            sources.append(only)
        last = max(frontier, key=_position)  # the one that no other of them is computed from
        node = last.producer()
        if node is None or not _is_affine(node):
            return sources
        frontier = (frontier - {last}) | {
            entry for entry in node.inputs if entry is not None and constant(entry) is None
        }
    return sources


def _position(value: ir.Value) -> int:
    node = value.producer()
    return -1 if node is None or node.graph is None else list(node.graph).index(node)


def _fold(value: ir.Value, source: ir.Value) -> bool:
    """Replace the chain from source (N, Q) to value by a Gemm where that costs less."""
    inputs, outputs = row_shape(source), row_shape(value)
    if inputs is None or outputs is None or value.dtype != ir.DataType.FLOAT:
        return False
    size = math.prod(outputs)
    chain = _between(source, value)
    spared = [node for node in chain if _is_spared(node, value, chain)]
    gained = sum(node_flops(node, rows=1) for node in spared)
    new_flops, new_nodes = 2 * inputs[0] * size, 1 + (len(outputs) != 1)
    widest = max(math.prod(row_shape(node.outputs[0]) or (1,)) for node in chain)
    if inputs[0] * widest > _MOST_NUMBERS or new_flops > gained or new_nodes >= len(spared):
        return False
    result = _on_unit_vectors(chain, source, value, inputs[0]).reshape(inputs[0] + 1, size)
    place = value.producer()
    if place is None:
        return False
    patch = Patch(place, f"{value.name}_affine")
    matrix = patch.constant((result[1:] - result[0]).astype(np.float32), "matrix")
    folded = patch.node("Gemm", [source, matrix, patch.constant(result[0].astype(np.float32), "offset")])
    if len(outputs) != 1:
        folded = patch.node("Reshape", [folded, patch.constant(np.array([-1, *outputs], np.int64), "shape")])
    patch.replace(value, folded)
    return True


def _between(source: ir.Value, value: ir.Value) -> list[ir.Node]:
    """Return the nodes on the way from one value to another, in order."""
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        node = entry.producer()
        if entry is source or node is None or node in found:
            continue
        found.add(node)
        waiting += [below for below in node.inputs if below is not None and constant(below) is None]
    graph = next(iter(found)).graph
    return [node for node in graph or () if node in found]


def _is_spared(node: ir.Node, value: ir.Value, chain: list[ir.Node]) -> bool:
    """Whether a node of the chain is of no further use once `value` is computed otherwise."""
    result = node.outputs[0]
    if result is value:
        return True
    users = [user for user, _ in result.uses()]
    return not result.is_graph_output() and all(user in chain and _is_spared(user, value, chain) for user in users)


def _is_affine(node: ir.Node) -> bool:
    """Whether every row of a node's result is an affine function of the same row of its inputs, with known shapes."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return False
    varying = [index for index, value in enumerate(node.inputs) if value is not None and constant(value) is None]
    sides = row_shape(node.outputs[0])
    if not varying or sides is None or any(row_shape(node.inputs[index]) is None for index in varying):
        return False
    kind = node.op_type
    if kind in _RESHAPES:
        source = row_shape(node.inputs[0])
        return varying == [0] and source is not None and math.prod(source) == math.prod(sides)
    if kind == "Transpose":
        return tuple(node.attributes.get_ints("perm", ()))[:1] == (0,)
    if kind in ("Add", "Sub"):
        return all(_has_one_row(node.inputs[index], node.outputs[0]) for index in {0, 1} - {*varying})
    if kind == "Mul":
        return len(varying) == 1 and _has_one_row(node.inputs[1 - varying[0]], node.outputs[0])
    if kind == "Div":
        return varying == [0] and _has_one_row(node.inputs[1], node.outputs[0])
    if kind == "MatMul":
        weight = constant(node.inputs[1])
        return varying == [0] and weight is not None and weight.ndim == 2
    if kind == "Gemm":
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        return (
            varying == [0]
            and not node.attributes.get_int("transA", 0)
            and (bias is None or bias.size <= math.prod(sides))
        )
    if kind in ("Conv", "ConvTranspose"):
        return varying == [0] and len(sides) == 3 and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    return False


def _has_one_row(value: ir.Value | None, result: ir.Value) -> bool:
    """Whether a constant is the same for all rows of the result that it is broadcast to."""
    array = constant(value)
    if array is None or result.shape is None:
        return False
    return array.ndim < len(result.shape) or (array.ndim == len(result.shape) and array.shape[0] == 1)


def _on_unit_vectors(chain: list[ir.Node], source: ir.Value, value: ir.Value, size: int) -> Float64:
    """Run the chain in float64 on zero and on the unit vectors of x: shape (Q + 1, *row)."""
    known: dict[ir.Value, Any] = {source: np.concatenate([np.zeros((1, size)), np.eye(size)])}
    for node in chain:
        known[node.outputs[0]] = _evaluate(node, known)
    return np.asarray(known[value], np.float64)


def _evaluate(node: ir.Node, known: Mapping[ir.Value, Any]) -> Any:
    arrays: list[Any] = [None if value is None else known.get(value, constant(value)) for value in node.inputs]
    x = arrays[0]
    kind = node.op_type
    if kind in _RESHAPES:
        return x.reshape(len(x), *(row_shape(node.outputs[0]) or ()))
    if kind == "Transpose":
        return np.ascontiguousarray(x.transpose(node.attributes.get_ints("perm")))
    wide: list[Any] = [None if array is None else array.astype(np.float64) for array in arrays]
    if kind in _ELEMENTWISE:
        return _ELEMENTWISE[kind](*wide)
    if kind == "MatMul":
        return np.matmul(*wide)
    if kind == "Gemm":
        return _gemm(node, wide)
    return _convolution(node, wide)


def _gemm(node: ir.Node, arrays: list[Any]) -> Any:
    matrix = arrays[1].T if node.attributes.get_int("transB", 0) else arrays[1]
    result = node.attributes.get_float("alpha", 1.0) * (arrays[0] @ matrix)
    return result + node.attributes.get_float("beta", 1.0) * arrays[2] if len(arrays) > 2 else result


def _convolution(node: ir.Node, arrays: list[Any]) -> Float64:
    x, weight, *rest = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays if array is not None)
    get = node.attributes.get_ints
    pads = tuple(get("pads", (0, 0, 0, 0)))
    stride, dilation = tuple(get("strides", (1, 1))), tuple(get("dilations", (1, 1)))
    groups, bias = node.attributes.get_int("group", 1), rest[0] if rest else None
    if node.op_type == "Conv":
        padded = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
        return torch.nn.functional.conv2d(padded, weight, bias, stride, 0, dilation, groups).numpy()
    whole = torch.nn.functional.conv_transpose2d(
        x, weight, bias, stride, 0, tuple(get("output_padding", (0, 0))), groups, dilation
    )
    height, width = whole.shape[2:]
    return whole[:, :, pads[0] : height - pads[2], pads[1] : width - pads[3]].numpy()
