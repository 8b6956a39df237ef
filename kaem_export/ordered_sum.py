"""A sum whose order the graph fixes.

A runtime may choose how it adds up an axis: ONNX Runtime's ReduceSum takes as many numbers at once as a register holds
from the first address that is a multiple of its size on, so the order depends on where a row lies in memory, and its
last bits on the rows before it. Additions of whole tensors leave no choice. Halves are added to each other, so P terms
take about log2 P of them, and each term is rounded about so often.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from kaem_export.lookup import Constants


def sum_nodes(source: str, target: str, num_terms: int) -> tuple[list[onnx.NodeProto], Constants]:
    """Add up the last axis.

    Args:
        source: Float32 (..., P).
        target: Gets the sums, (...).
        num_terms: P.

    Returns:
        Nodes and constants.
    """
    node = helper.make_node
    constants: Constants = {"summand_axis": np.array([-1], np.int64)}
    nodes: list[onnx.NodeProto] = []
    value, width, odd = source, num_terms, ""
    while width > 1:
        half, rest = divmod(width, 2)
        constants[f"summand_sizes_{width}"] = np.array([half, half] + [1] * rest, np.int64)
        parts = [f"{part}_{width}_summands" for part in ("first", "second", "last")[: 2 + rest]]
        nodes += [
            node("Split", [value, f"summand_sizes_{width}"], parts, axis=-1),
            node("Add", parts[:2], [f"sums_{half}"]),
        ]
        value, width = f"sums_{half}", half
        if rest and odd:
            nodes.append(node("Add", [odd, parts[2]], [f"{parts[2]}_in_all"]))
            odd = f"{parts[2]}_in_all"
        elif rest:
            odd = parts[2]
    if odd:
        nodes.append(node("Add", [value, odd], ["sums_in_all"]))
        value = "sums_in_all"
    nodes.append(node("Squeeze", [value, "summand_axis"], [target]))
    return nodes, constants


def most_roundings(num_terms: int) -> int:
    """Return how many additions of `sum_nodes` any term goes through, at most."""
    return num_terms.bit_length() - 1 + (num_terms & (num_terms - 1)).bit_count()
