"""Sums whose order the graph fixes.

A runtime may choose how it adds up an axis. ONNX Runtime's ReduceSum takes as many numbers at once as a register holds,
from the first address on that is a multiple of its size: the order, and with it the last bits of a row, depends on
where the row lies in memory, which is to say on the rows before it. Additions of whole tensors leave no choice. Halves
are added to each other, so P terms take about log2 P of them, and each term is rounded about so often.

`fix_sum_orders` writes sums of generators down that way. Measured on ONNX Runtime 1.31, sums and means over
axes other than the last depend on the place; over the last ones, and InstanceNormalization, where the numbers are not
a multiple of four. What is neither stays as it is, and so do Softmax, LayerNormalization, pools and products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kaem_export.tables.lookup import Constants, Names

_REGISTER = 4
"""Numbers that are added at once."""

_SUMS = ("ReduceSum", "ReduceMean")


def sum_nodes(source: str, target: str, num_terms: int, prefix: str = "") -> tuple[list[onnx.NodeProto], Constants]:
    """Add up the last axis.

    Args:
        source: Float32 (..., P).
        target: Gets the sums, (...).
        num_terms: P.
        prefix: Prefix of all names.

    Returns:
        Nodes and constants.
    """
    name, node = Names(prefix), helper.make_node
    constants: Constants = {name("summand_axis"): np.array([-1], np.int64)}
    nodes: list[onnx.NodeProto] = []
    value, width, odd = source, num_terms, ""
    while width > 1:
        half, rest = divmod(width, 2)
        sizes = name(f"summand_sizes_{width}")
        constants[sizes] = np.array([half, half] + [1] * rest, np.int64)
        parts = [name(f"{part}_of_{width}") for part in ("front", "back", "last")[: 2 + rest]]
        nodes += [
            node("Split", [value, sizes], parts, axis=-1),
            node("Add", parts[:2], [name(f"sums_{half}")]),
        ]
        value, width = name(f"sums_{half}"), half
        if rest and odd:
            nodes.append(node("Add", [odd, parts[2]], [f"{parts[2]}_in_all"]))
            odd = f"{parts[2]}_in_all"
        elif rest:
            odd = parts[2]
    if odd:
        nodes.append(node("Add", [value, odd], [name("sums_in_all")]))
        value = name("sums_in_all")
    nodes.append(node("Squeeze", [value, name("summand_axis")], [target]))
    return nodes, constants


def most_roundings(num_terms: int) -> int:
    """Return how many additions of `sum_nodes` any term goes through, at most."""
    return num_terms.bit_length() - 1 + (num_terms & (num_terms - 1)).bit_count()


def fix_sum_orders(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which no sum depends on where a row lies, as far as shapes are known; the same one if none did.

    Args:
        model: Rows along the first axis of everything that depends on the input.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = {value.name: value for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    weights |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    nodes: list[onnx.NodeProto] = []
    constants: Constants = {}
    for number, node in enumerate(model.graph.node):
        sides = _row_sides(values.get(node.input[0])) if node.input else None
        more: list[onnx.NodeProto] = []
        name = Names(f"ordered_{number}_")
        if sides and node.op_type in _SUMS:
            axes = _axes(node, weights, len(sides) + 1)
            if axes is not None and depends_on_place(sides, axes):
                more, own = _sum(node, sides, axes, name)
        elif sides and node.op_type == "InstanceNormalization" and math.prod(sides[1:]) % _REGISTER:
            more, own = _normalisation(node, sides, name)
        if more:
            constants |= own
        nodes += more or [node]
    if not constants:
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.node[:]
    fixed.graph.node.extend(nodes)
    fixed.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return fixed


def depends_on_place(sides: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether ONNX Runtime adds up some axes of rows (N, *sides) in an order that depends on the row's place."""
    num_terms = math.prod(sides[axis - 1] for axis in axes)
    is_last = list(axes) == list(range(len(sides) + 1 - len(axes), len(sides) + 1))
    return num_terms >= _REGISTER and not (is_last and num_terms % _REGISTER == 0)


def _row_sides(value: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    """Return the sides behind the first of a float32 value; None where any is unknown."""
    if value is None or value.type.tensor_type.elem_type != TensorProto.FLOAT:
        return None
    sides = tuple(side.dim_value for side in value.type.tensor_type.shape.dim[1:])
    return sides if all(sides) else None


def _axes(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], rank: int) -> list[int] | None:
    """Return the axes that a node adds up, ascending; None where they are not known, or rows are added up."""
    given: Sequence[int] | NDArray[np.int64] | None = None
    if len(node.input) > 1 and node.input[1] in weights:
        given = numpy_helper.to_array(weights[node.input[1]])
    elif len(node.input) == 1:
        given = next((entry.ints for entry in node.attribute if entry.name == "axes"), None)
    axes = sorted({int(axis) % rank for axis in np.atleast_1d(np.asarray([] if given is None else given))})
    return axes if axes and axes[0] > 0 else None


def _sum(
    node: onnx.NodeProto, sides: tuple[int, ...], axes: list[int], name: Names
) -> tuple[list[onnx.NodeProto], Constants]:
    """Write ReduceSum or ReduceMean down as additions."""
    keeps = next((entry.i for entry in node.attribute if entry.name == "keepdims"), 1)
    rest = [axis for axis in range(1, len(sides) + 1) if axis not in axes]
    num_terms = math.prod(sides[axis - 1] for axis in axes)
    made = [1 if axis in axes else side for axis, side in enumerate(sides, start=1) if keeps or axis not in axes]
    make = helper.make_node
    constants: Constants = {
        name("terms"): np.array([0, *(sides[axis - 1] for axis in rest), num_terms], np.int64),
        name("made"): np.array([0, *made], np.int64),
        name("number"): np.float32(num_terms),
    }
    nodes, value = [], node.input[0]
    if rest + axes != sorted(rest + axes):
        nodes.append(make("Transpose", [value], [name("turned")], perm=[0, *rest, *axes]))
        value = name("turned")
    added, own = sum_nodes(name("rows"), name("sum"), num_terms, name(""))
    nodes += [make("Reshape", [value, name("terms")], [name("rows")]), *added]
    value = name("sum")
    if node.op_type == "ReduceMean":
        nodes.append(make("Div", [value, name("number")], [name("mean")]))
        value = name("mean")
    nodes.append(make("Reshape", [value, name("made")], list(node.output)))
    return nodes, constants | own


def _normalisation(node: onnx.NodeProto, sides: tuple[int, ...], name: Names) -> tuple[list[onnx.NodeProto], Constants]:
    """Write InstanceNormalization down: (x - mean) / sqrt(variance + epsilon), times scale, plus offset."""
    source, scale, offset = node.input
    channels, num_terms = sides[0], math.prod(sides[1:])
    epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
    make = helper.make_node
    constants: Constants = {
        name("terms"): np.array([0, channels, num_terms], np.int64),
        name("made"): np.array([0, *sides], np.int64),
        name("one_each"): np.array([0, channels, 1], np.int64),
        name("by_channel"): np.array([channels, 1], np.int64),
        name("number"): np.float32(num_terms),
        name("epsilon"): np.float32(epsilon),
    }
    first, first_constants = sum_nodes(name("rows"), name("sum"), num_terms, name("of_terms_"))
    second, second_constants = sum_nodes(name("squares"), name("square_sum"), num_terms, name("of_squares_"))
    nodes = [
        make("Reshape", [source, name("terms")], [name("rows")]),
        *first,
        make("Div", [name("sum"), name("number")], [name("flat_mean")]),
        make("Reshape", [name("flat_mean"), name("one_each")], [name("mean")]),
        make("Sub", [name("rows"), name("mean")], [name("centred")]),
        make("Mul", [name("centred"), name("centred")], [name("squares")]),
        *second,
        make("Div", [name("square_sum"), name("number")], [name("flat_variance")]),
        make("Add", [name("flat_variance"), name("epsilon")], [name("lifted")]),
        make("Sqrt", [name("lifted")], [name("flat_deviation")]),
        make("Reshape", [name("flat_deviation"), name("one_each")], [name("deviation")]),
        make("Div", [name("centred"), name("deviation")], [name("normal")]),
        make("Reshape", [scale, name("by_channel")], [name("scale")]),
        make("Reshape", [offset, name("by_channel")], [name("offset")]),
        make("Mul", [name("normal"), name("scale")], [name("scaled")]),
        make("Add", [name("scaled"), name("offset")], [name("shifted")]),
        make("Reshape", [name("shifted"), name("made")], list(node.output)),
    ]
    return nodes, constants | first_constants | second_constants
