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
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from kaem_export.onnx_builder import Op, add_constant, split
from kaem_export.rewrite.editing import Patch, constant, row_shape, with_shapes

_REGISTER = 4
"""Numbers that are added at once."""

_SUMS = ("ReduceSum", "ReduceMean")


def add_up(op: Op, terms: ir.Value, num_terms: int) -> ir.Value:
    """Add up the last axis: float32 (..., P) -> (...).

    Args:
        op: Builder of the graph.
        terms: Terms of the sums.
        num_terms: P.
    """
    value, width = terms, num_terms
    odd: ir.Value | None = None
    while width > 1:
        half, rest = divmod(width, 2)
        front, back, *last = split(op, value, [half, half] + [1] * rest, -1)
        value, width = op.Add(front, back), half
        if last:
            odd = last[0] if odd is None else op.Add(odd, last[0])
    if odd is not None:
        value = op.Add(value, odd)
    return op.Squeeze(value, [-1])


def most_roundings(num_terms: int) -> int:
    """Return how many additions of `add_up` any term goes through, at most."""
    return num_terms.bit_length() - 1 + (num_terms & (num_terms - 1)).bit_count()


def fix_sum_orders(model: ir.Model) -> ir.Model:
    """Rewrite, in place, every sum that depends on where a row lies, as far as shapes are known; return the model.

    Args:
        model: Rows along the first axis of everything that depends on the input.
    """
    for node in list(with_shapes(model).graph):
        sides = _row_sides(node.inputs[0]) if node.inputs else None
        if not sides:
            continue
        write: Callable[[Op], ir.Value] | None = None
        if node.op_type in _SUMS:
            axes = _axes(node, len(sides) + 1)
            if axes is not None and depends_on_place(sides, axes):
                write = partial(_write_sum, node=node, sides=sides, axes=axes)
        elif node.op_type == "InstanceNormalization" and math.prod(sides[1:]) % _REGISTER:
            write = partial(_write_normalisation, node=node, sides=sides)
        if write is not None:
            patch = Patch(node, f"{node.outputs[0].name}_ordered")
            patch.replace(node.outputs[0], patch.write(write))
            model.graph.remove(node, safe=True)
    return model


def depends_on_place(sides: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether ONNX Runtime adds up some axes of rows (N, *sides) in an order that depends on the row's place."""
    num_terms = math.prod(sides[axis - 1] for axis in axes)
    is_last = list(axes) == list(range(len(sides) + 1 - len(axes), len(sides) + 1))
    return num_terms >= _REGISTER and not (is_last and num_terms % _REGISTER == 0)


def _row_sides(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sides behind the first of a float32 value; None where any is unknown."""
    return row_shape(value) if value is not None and value.dtype == ir.DataType.FLOAT else None


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """Return the axes that a node adds up, ascending; None where they are not known, or rows are added up."""
    if len(node.inputs) > 1:
        given = constant(node.inputs[1])
    else:
        given = np.array(node.attributes.get_ints("axes", ()), np.int64)
    axes = [] if given is None else sorted({int(axis) % rank for axis in np.atleast_1d(given)})
    return axes if axes and axes[0] > 0 else None


def _write_sum(op: Op, node: ir.Node, sides: tuple[int, ...], axes: list[int]) -> ir.Value:
    """Write ReduceSum or ReduceMean as additions."""
    keeps = node.attributes.get_int("keepdims", 1)
    rest = [axis for axis in range(1, len(sides) + 1) if axis not in axes]
    num_terms = math.prod(sides[axis - 1] for axis in axes)
    made = [1 if axis in axes else side for axis, side in enumerate(sides, start=1) if keeps or axis not in axes]
    value = node.inputs[0]
    if rest + axes != sorted(rest + axes):
        value = op.Transpose(value, perm=[0, *rest, *axes])
    value = add_up(op, op.Reshape(value, [0, *(sides[axis - 1] for axis in rest), num_terms]), num_terms)
    if node.op_type == "ReduceMean":
        value = op.Div(value, float(num_terms))
    return op.Reshape(value, [0, *made])


def _write_normalisation(op: Op, node: ir.Node, sides: tuple[int, ...]) -> ir.Value:
    """Write InstanceNormalization out: (x - mean) / sqrt(variance + epsilon), times scale, plus offset."""
    source, scale, offset = node.inputs
    channels, num_terms = sides[0], math.prod(sides[1:])
    epsilon = node.attributes.get_float("epsilon", 1e-5)

    def average(terms: ir.Value) -> ir.Value:
        return op.Div(add_up(op, terms, num_terms), float(num_terms))

    def each(value: ir.Value) -> ir.Value:
        return op.Reshape(value, [0, channels, 1])

    rows = op.Reshape(source, [0, channels, num_terms])
    centred = op.Sub(rows, each(average(rows)))
    variance = op.Add(average(op.Mul(centred, centred)), add_constant(op, np.float32(epsilon), "epsilon"))
    normal = op.Div(centred, each(op.Sqrt(variance)))
    scaled = op.Mul(normal, op.Reshape(scale, [channels, 1]))
    return op.Reshape(op.Add(scaled, op.Reshape(offset, [channels, 1])), [0, *sides])
