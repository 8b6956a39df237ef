"""The quantile lookup of `tree.py`, node by node.

31 or 32 nodes, two gathers, indices in int32; block numbers stay exact in float32, in which ONNX Runtime counts faster
than in integers. Everything here must stay in float32 on every target: half precision cannot hold a uniform or a block
number. Only operators whose rows do not depend on the batch around them are used.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kaem_export.tables.tree import QuantileTables

Constants = dict[str, NDArray[np.generic] | np.generic]

LEAST_UNIFORM, MOST_UNIFORM = np.float32(-0.5), np.nextafter(np.float32(1), np.float32(0))
"""Ends of what names a quantile: signed uniforms from -1/2, plain ones below 1."""


class Names:
    """Gives every name of a piece of a graph the same prefix.

    Args:
        prefix: So that pieces of one kind can stand in one graph.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __call__(self, name: str) -> str:
        """Return the name with the prefix."""
        return f"{self._prefix}{name}"


def signed_nodes(source: str, target: str, prefix: str = "") -> tuple[list[onnx.NodeProto], Constants]:
    """Turn plain uniforms in [1/2, 1) into signed ones; exact, since both lie within a factor of two of 1.

    What is no uniform becomes the nearest one first: an infinity would pass the separators that stand for none, be
    looked up beyond the tables, and so fail the rows of others. NaN passes no comparison, and stays NaN.
    """
    name = Names(prefix)
    nodes = [
        helper.make_node("Clip", [source, name("least_uniform"), name("most_uniform")], [name("uniform_within")]),
        helper.make_node("GreaterOrEqual", [name("uniform_within"), name("half")], [name("is_upper")]),
        helper.make_node("Cast", [name("is_upper")], [name("upper")], to=TensorProto.FLOAT),
        helper.make_node("Sub", [name("uniform_within"), name("upper")], [target]),
    ]
    constants: Constants = {
        name("least_uniform"): LEAST_UNIFORM,
        name("most_uniform"): MOST_UNIFORM,
        name("half"): np.float32(0.5),
    }
    return nodes, constants


def quantile_nodes(
    tables: QuantileTables,
    signed: str,
    target: str,
    prefix: str = "",
    *,
    chosen: str | None = None,
    chosen_axes: Literal[1, 2] = 1,
    keep_axis: bool = False,
) -> tuple[list[onnx.NodeProto], Constants]:
    """Look up one quantile per signed uniform.

    Args:
        tables: Their `columns` have the shape of one row of quantiles, (C,) or (Q, P); of all that may be chosen where
            there is a choice.
        signed: Signed uniforms, shape (N, C), or one that broadcasts with (N, *columns).
        target: Gets the quantiles, shape (N, *columns).
        prefix: Prefix of all names.
        chosen: int32 indices, by default none: of shape (N,) where row n follows the functions `columns[chosen[n]]`,
            or (N, C) where every quantile follows a function `columns[chosen[n, c]]` of its own.
        chosen_axes: Which of both.
        keep_axis: Leave the axis that fields of a leaf are read along: shape (N, *columns, 1).

    Returns:
        Nodes and constants.
    """
    name, node = Names(prefix), helper.make_node
    columns = tables.columns
    separators = np.moveaxis(tables.first[:, columns], 0, 0 if chosen is None else 1)
    blocks = tables.block[columns].astype(np.float32)
    rank = 1 + columns.ndim if chosen is None else 2
    fields = [name(field) for field in ("v0", "kappa", "gamma", *(f"c{k}" for k in range(6)))]
    constants: Constants = {
        name("leading_axis"): np.array([0], np.int64),
        name("last_axis"): np.array([-1], np.int64),
        name("first"): separators[:, None] if chosen is None else separators,
        name("second"): tables.second,
        name("fan_out"): np.float32(tables.fan_out),
        name("leaves"): tables.leaves,
        name("low"): tables.low,
        name("high"): tables.high,
    }
    nodes: list[onnx.NodeProto] = []
    v, first, first_axis, block = signed, name("first"), name("leading_axis"), name("in_function")
    if chosen is not None:
        v, first, first_axis = name("v_first"), name("own_first"), name("first_axis")
        constants[first_axis] = np.array([chosen_axes], np.int64)
        nodes += [
            node("Gather", [name("first"), chosen], [first], axis=0),
            node("Unsqueeze", [signed, first_axis], [v]),
        ]
    nodes += [
        # The block: how many of the first level's separators v has passed.
        node("GreaterOrEqual", [v, first], [name("is_passed")]),
        node("Cast", [name("is_passed")], [name("passed")], to=TensorProto.FLOAT),
        node("ReduceSum", [name("passed"), first_axis], [name("in_function")], keepdims=0),
    ]
    if blocks.any():  # otherwise every function begins at block 0
        first_block = name("blocks")
        constants[first_block] = blocks[None] if chosen is None else blocks
        if chosen is not None:
            nodes.append(node("Gather", [first_block, chosen], [name("own_blocks")], axis=0))
            first_block = name("own_blocks")
        block = name("block")
        nodes.append(node("Add", [name("in_function"), first_block], [block]))
    nodes += [
        node("Cast", [block], [name("block_row")], to=TensorProto.INT32),
        # The leaf: how many of the block's. Separators are put in front of v's axes: compared a few numbers at a time,
        # they would take a quarter of the whole lookup.
        node("Gather", [name("second"), name("block_row")], [name("block_separators")], axis=0),
        node("Transpose", [name("block_separators")], [name("separators")], perm=[rank, *range(rank)]),
        node("GreaterOrEqual", [signed, name("separators")], [name("is_behind")]),
        node("Cast", [name("is_behind")], [name("behind")], to=TensorProto.FLOAT),
        node("ReduceSum", [name("behind"), name("leading_axis")], [name("in_block")], keepdims=0),
        node("Mul", [block, name("fan_out")], [name("before")]),
        node("Add", [name("before"), name("in_block")], [name("leaf")]),
        node("Cast", [name("leaf")], [name("leaf_row")], to=TensorProto.INT32),
        node("Gather", [name("leaves"), name("leaf_row")], [name("row")], axis=0),
        node("Unsqueeze", [signed, name("last_axis")], [name("v")]),
        node("Split", [name("row")], fields, axis=-1, num_outputs=len(fields)),
        # y = r / (gamma r + kappa), then Horner's rule.
        node("Sub", [name("v"), name("v0")], [name("r")]),
        node("Mul", [name("gamma"), name("r")], [name("bend")]),
        node("Add", [name("bend"), name("kappa")], [name("divisor")]),
        node("Div", [name("r"), name("divisor")], [name("y")]),
    ]
    value = name("c5")
    for power in range(4, -1, -1):
        nodes.append(node("Mul", [value, name("y")], [name(f"product_{power}")]))
        nodes.append(node("Add", [name(f"product_{power}"), name(f"c{power}")], [name(f"sum_{power}")]))
        value = name(f"sum_{power}")
    if not keep_axis:
        nodes.append(node("Squeeze", [value, name("last_axis")], [name("unclipped")]))
        value = name("unclipped")
    nodes.append(node("Clip", [value, name("low"), name("high")], [target]))
    return nodes, constants


def wrap(
    nodes: list[onnx.NodeProto],
    constants: Constants,
    *,
    source: tuple[str, int],
    target: tuple[str, int],
    opset: int,
    ir_version: int,
) -> onnx.ModelProto:
    """Make a model of nodes from one float32 matrix to another; source and target: name and columns."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns]) for name, columns in (source, target)
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "head", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
