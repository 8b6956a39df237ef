"""Experts in frames of their own: z = b_k + W_k u as one product [W_k | b_k] [u; 1], k picked by the last uniform.

The column of that uniform is looked up with the others. What it follows is 1 everywhere, so that no sum adds the
offset; and where one function serves all experts, unless they are very many, the leaf in which it is found is k, so
that nothing else picks it. At one row, where every node costs about as much as any other, that is a third of what
experts cost.

Which expert or component a signed uniform picks: how many cumulative weights it has passed.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kaem_export.priors.prior_tables import ExpertTables
from kaem_export.tables.lookup import Constants, quantile_nodes, signed_nodes
from kaem_export.tables.tree import QuantileTables

MOST_BLOCKS = 16
"""Blocks of steps up to which they pick the expert: they make the first level of the search wider for every column,
which from 64 rows on costs more than counting thresholds where there are many. With 256 experts a sixth was lost."""


def own_frame_nodes(
    tables: ExpertTables, offset: NDArray[np.float32], matrix: NDArray[np.float32]
) -> tuple[list[onnx.NodeProto], Constants]:
    """Return nodes and constants from `uniform` (N, Q + 1) to `latent` (N, Q).

    Args:
        tables: Tables of the experts, with nothing between table and frame.
        offset: b, shape (K, Q).
        matrix: W, shape (K, Q, Q).
    """
    node = helper.make_node
    latent_dim = offset.shape[1]
    looked_up, one = tables.tables, _one(tables.tables)
    nodes, constants = signed_nodes("uniform", "signed")
    constants |= {
        "choice_column": np.array(latent_dim, np.int32),
        "frame_matrix": np.concatenate([matrix, offset[..., None] / one], axis=2),  # (K, Q, Q + 1)
    }
    is_shared = looked_up.num_functions == 1
    has_steps = is_shared and len(tables.thresholds) < looked_up.fan_out * MOST_BLOCKS
    looked_up = looked_up.with_steps(tables.thresholds if has_steps else tables.thresholds[:0], one)
    own_columns = np.zeros(latent_dim, np.int64) if is_shared else tables.tables.columns
    pad = [(0, 0)] * (own_columns.ndim - 1) + [(0, 1)]
    looked_up = looked_up.reading(np.pad(own_columns, pad, constant_values=looked_up.num_functions - 1))
    more, own = quantile_nodes(looked_up, "signed", "unframed", chosen=None if is_shared else "expert", keep_axis=True)
    if has_steps:
        nodes += [*more, node("Gather", ["leaf_row", "choice_column"], ["expert"], axis=1)]
    else:
        constants |= {"thresholds": tables.thresholds[:, None], "choice_axis": np.array([0], np.int64)}
        nodes += [
            node("Gather", ["signed", "choice_column"], ["choice"], axis=1),
            *choice_nodes("choice", "expert"),
            *more,
        ]
    constants |= own
    nodes += [
        # A row of a matrix product does not depend on the others; the certificate measures it.
        node("Gather", ["frame_matrix", "expert"], ["own_matrix"], axis=0),  # (N, Q, Q + 1)
        node("MatMul", ["own_matrix", "unframed"], ["framed"]),  # (N, Q, 1)
        node("Squeeze", ["framed", "last_axis"], ["latent"]),
    ]
    return nodes, constants


def _one(tables: QuantileTables) -> np.float32:
    """Return a number that the clip lets through, to stand for 1.

    The largest power of two, or its negative: dividing by it rounds nothing. Where the domain holds none, say [5, 7],
    its end that is farther from 0; what is divided then is right to one float.
    """
    high, low = tables.high, tables.low
    end = high if high >= -low else low
    power = np.float32(np.copysign(2.0 ** np.floor(np.log2(np.abs(end))), end))
    return power if low <= power <= high else end


def choice_nodes(source: str, target: str) -> list[onnx.NodeProto]:
    """Count the `thresholds` that a signed uniform has passed, along `choice_axis`, to an int32."""
    return [
        helper.make_node("GreaterOrEqual", [source, "thresholds"], ["choice_is_passed"]),
        helper.make_node("Cast", ["choice_is_passed"], ["choice_passed"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["choice_passed", "choice_axis"], [target], keepdims=0),
    ]
