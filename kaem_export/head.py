"""The nodes in front of the generator: from `uniform` to `latent`, one function per step.

Float32 arithmetic is exact up to the final multiply-add of a quantile. Only operators whose rows do not depend
on the batch around them are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kaem_export.experts import ExpertTables
from kaem_export.quantile import LEVEL_SCALE, LEVELS, QuantileTables
from kaem_export.shared import SharedTables
from kaem_export.warp import REACH

Constants = dict[str, NDArray[np.generic] | np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """z = b + W u in float32: offset b (Q,), matrix W (Q, Q); of each expert: (K, Q), (K, Q, Q)."""

    offset: NDArray[np.float32]
    matrix: NDArray[np.float32]


def head_nodes(
    tables: QuantileTables | ExpertTables | SharedTables, frame: Frame | None
) -> tuple[list[onnx.NodeProto], Constants, int, int]:
    """Return the nodes and constants from `uniform` (N, D) to `latent` (N, Q), then D and Q."""
    target = "latent" if frame is None else "unframed"
    if isinstance(tables, QuantileTables):
        latent_dim = noise_dim = len(tables.left)
        nodes, constants = quantile_nodes(tables, "uniform", target)
    elif isinstance(tables, SharedTables):
        latent_dim, noise_dim = tables.latent_dim, tables.num_components
        nodes, constants = shared_nodes(tables, "uniform", target)
    else:
        latent_dim, noise_dim = tables.latent_dim, tables.latent_dim + 1
        nodes, constants = expert_nodes(tables, "uniform", target)
    if frame is not None:
        # A row of a matrix product does not depend on the others; the certificate measures it.
        constants |= {"frame_matrix": np.ascontiguousarray(frame.matrix.swapaxes(-1, -2)), "frame_offset": frame.offset}
        nodes += _own_frame_nodes(target) if frame.offset.ndim == 2 else _common_frame_nodes(target)
    return nodes, constants, noise_dim, latent_dim


def _common_frame_nodes(source: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Gemm", [source, "frame_matrix", "frame_offset"], ["latent"])]


def _own_frame_nodes(source: str) -> list[onnx.NodeProto]:
    """z = b_k + W_k u, k from `expert` (N, 1): every row is multiplied by the matrix gathered for it."""
    node = helper.make_node
    return [
        node("Gather", ["frame_matrix", "expert"], ["own_matrix_1"], axis=0),  # (N, 1, Q, Q)
        node("Gather", ["frame_offset", "expert"], ["own_offset"], axis=0),  # (N, 1, Q)
        node("Squeeze", ["own_matrix_1", "expert_axis"], ["own_matrix"]),
        node("Unsqueeze", [source, "expert_axis"], ["row_vector"]),  # (N, 1, Q)
        node("MatMul", ["row_vector", "own_matrix"], ["turned"]),
        node("Add", ["turned", "own_offset"], ["moved"]),
        node("Squeeze", ["moved", "expert_axis"], ["latent"]),
    ]


def quantile_nodes(tables: QuantileTables, source: str, target: str) -> tuple[list[onnx.NodeProto], Constants]:
    """Look up one quantile per uniform: (N, Q) -> (N, Q), in Q tables or in one that all columns share."""
    num_tables, _, cells = tables.left.shape
    constants: Constants = {
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "one": np.float32(1),
        "cells": np.float32(cells),
        "last_cell": np.float32(cells - 1),
        "tail_1": np.float32(0.5 / LEVEL_SCALE),
        "tail_2": np.float32(0.5 / LEVEL_SCALE**2),
        "finer": np.float32(LEVEL_SCALE - 1),
        "level_rows": np.int32(cells),
        "coordinate_rows": (np.arange(num_tables, dtype=np.int32) * (LEVELS * cells))[None, :],
        "table": np.stack([tables.left, tables.width], axis=-1).reshape(-1, 2),
        "pair_axis": np.array([2], np.int64),
    }
    if LEVELS != 3:
        raise AssertionError("the lookup below chooses between exactly three levels")
    node = helper.make_node
    nodes = [
        # Plain uniforms in [1/2, 1) become signed ones; exact, since both lie within a factor of two of 1.
        node("GreaterOrEqual", [source, "half"], ["is_upper"]),
        node("Cast", ["is_upper"], ["upper"], to=TensorProto.FLOAT),
        node("Sub", [source, "upper"], ["signed"]),
        # The finest level whose tails contain v.
        node("Abs", ["signed"], ["depth"]),
        node("Less", ["depth", "tail_1"], ["is_tail_1"]),
        node("Less", ["depth", "tail_2"], ["is_tail_2"]),
        node("Cast", ["is_tail_1"], ["in_tail_1"], to=TensorProto.FLOAT),
        node("Cast", ["is_tail_2"], ["in_tail_2"], to=TensorProto.FLOAT),
        node("Mul", ["in_tail_1", "finer"], ["more_1"]),
        node("Mul", ["in_tail_2", "finer"], ["more_2"]),
        node("Add", ["more_1", "one"], ["scale_1"]),
        node("Add", ["more_2", "one"], ["scale_2"]),
        node("Mul", ["signed", "cells"], ["scaled_0"]),
        node("Mul", ["scaled_0", "scale_1"], ["scaled_1"]),
        node("Mul", ["scaled_1", "scale_2"], ["position"]),
        # Cell and fraction; negative positions are the upper half of u, so they wrap around by K.
        node("Floor", ["position"], ["floor"]),
        node("Sub", ["position", "floor"], ["fraction"]),
        node("Less", ["floor", "zero"], ["is_negative"]),
        node("Cast", ["is_negative"], ["negative"], to=TensorProto.FLOAT),
        node("Mul", ["negative", "cells"], ["wrap"]),
        node("Add", ["floor", "wrap"], ["wrapped"]),
        node("Clip", ["wrapped", "zero", "last_cell"], ["cell"]),
        # One gather of (left, width) pairs from the table [Q * LEVELS * K, 2].
        node("Add", ["in_tail_1", "in_tail_2"], ["level_float"]),
        node("Cast", ["level_float"], ["level"], to=TensorProto.INT32),
        node("Cast", ["cell"], ["cell_row"], to=TensorProto.INT32),
        node("Mul", ["level", "level_rows"], ["level_row"]),
        node("Add", ["cell_row", "level_row"], ["row_in_coordinate"]),
        node("Add", ["row_in_coordinate", "coordinate_rows"], ["row"]),
        node("Gather", ["table", "row"], ["left_and_width"], axis=0),
        node("Split", ["left_and_width"], ["left_1", "width_1"], axis=2, num_outputs=2),
        node("Squeeze", ["left_1", "pair_axis"], ["left"]),
        node("Squeeze", ["width_1", "pair_axis"], ["width"]),
        node("Mul", ["fraction", "width"], ["gain"]),
        node("Add", ["left", "gain"], [target]),
    ]
    return nodes, constants


def expert_nodes(tables: ExpertTables, source: str, target: str) -> tuple[list[onnx.NodeProto], Constants]:
    """Pick an expert with the last uniform and warp the normal quantiles of the others: (N, Q + 1) -> (N, Q)."""
    cells, latent_dim = tables.warps.coefficients.shape[1], tables.latent_dim
    node = helper.make_node
    lookup, constants = _piece_nodes(tables.normal, cells, "latent_uniform", "t")
    constants |= {
        "uniform_sizes": np.array([latent_dim, 1], np.int64),
        "thresholds": tables.thresholds[None, :],
        "expert_axis": np.array([1], np.int64),
        "expert_rows": np.int32(latent_dim * cells),
        "latent_rows": (np.arange(latent_dim, dtype=np.int32) * cells)[None, :],
        "warps": tables.warps.coefficients.reshape(-1, 4),
    }
    nodes = [
        node("Split", [source, "uniform_sizes"], ["latent_uniform", "choice"], axis=1),
        # The number of thresholds at or below the signed uniform is the expert.
        node("GreaterOrEqual", ["choice", "half"], ["choice_is_upper"]),
        node("Cast", ["choice_is_upper"], ["choice_upper"], to=TensorProto.FLOAT),
        node("Sub", ["choice", "choice_upper"], ["signed_choice"]),
        node("GreaterOrEqual", ["signed_choice", "thresholds"], ["is_passed"]),
        node("Cast", ["is_passed"], ["passed"], to=TensorProto.FLOAT),
        node("ReduceSum", ["passed", "expert_axis"], ["expert_float"], keepdims=1),
        node("Cast", ["expert_float"], ["expert"], to=TensorProto.INT32),
        node("Mul", ["expert", "expert_rows"], ["expert_row"]),
        *lookup,
        node("Add", ["piece_row", "latent_rows"], ["row_in_expert"]),
        node("Add", ["row_in_expert", "expert_row"], ["warp_row"]),
        *_cubic_nodes("pair_axis", 2, target),
    ]
    return nodes, constants


def shared_nodes(tables: SharedTables, source: str, target: str) -> tuple[list[onnx.NodeProto], Constants]:
    """Warp the normal quantile of each u_p for every q and sum over p: (N, P) -> (N, Q)."""
    num_rows, cells, _ = tables.warps.coefficients.shape
    node = helper.make_node
    lookup, constants = _piece_nodes(tables.normal, cells, source, "t_of_uniform")
    constants |= {
        "latent_axis": np.array([1], np.int64),
        "component_axis": np.array([2], np.int64),
        "coefficient_axis": np.array([3], np.int64),
        "component_rows": (np.arange(num_rows, dtype=np.int32) * cells).reshape(1, -1, tables.num_components),
        "warps": tables.warps.coefficients.reshape(-1, 4),
    }
    nodes = [
        *lookup,
        node("Unsqueeze", ["piece_row", "latent_axis"], ["piece_of_all"]),
        node("Unsqueeze", ["t_of_uniform", "latent_axis"], ["t"]),
        node("Add", ["piece_of_all", "component_rows"], ["warp_row"]),
        *_cubic_nodes("coefficient_axis", 3, "components"),
        node("ReduceSum", ["components", "component_axis"], [target], keepdims=0),
    ]
    return nodes, constants


def _piece_nodes(
    normal: QuantileTables, cells: int, source: str, fraction: str
) -> tuple[list[onnx.NodeProto], Constants]:
    """From uniforms (N, M) to the piece of T that holds their normal quantiles, `piece_row`, and where in it."""
    node = helper.make_node
    lookup, constants = quantile_nodes(normal, source, "normal")
    constants |= {
        "reach": np.float32(REACH),
        "cells_per_unit": np.float32(cells / (2 * REACH)),
        "last_piece": np.float32(cells - 1),
    }
    nodes = [
        *lookup,
        node("Add", ["normal", "reach"], ["from_left"]),
        node("Mul", ["from_left", "cells_per_unit"], ["warp_position"]),
        node("Floor", ["warp_position"], ["warp_floor"]),
        node("Clip", ["warp_floor", "zero", "last_piece"], ["piece"]),
        node("Sub", ["warp_position", "piece"], [fraction]),
        node("Cast", ["piece"], ["piece_row"], to=TensorProto.INT32),
    ]
    return nodes, constants


def _cubic_nodes(axis_name: str, axis: int, target: str) -> list[onnx.NodeProto]:
    """One gather of four coefficients per `warp_row` from `warps`, then Horner's rule in `t`; `axis` holds the four."""
    node = helper.make_node
    return [
        node("Gather", ["warps", "warp_row"], ["pieces"], axis=0),
        node("Split", ["pieces"], ["a0_1", "a1_1", "a2_1", "a3_1"], axis=axis, num_outputs=4),
        *(node("Squeeze", [f"a{power}_1", axis_name], [f"a{power}"]) for power in range(4)),
        node("Mul", ["a3", "t"], ["cubic"]),
        node("Add", ["cubic", "a2"], ["to_quadratic"]),
        node("Mul", ["to_quadratic", "t"], ["quadratic"]),
        node("Add", ["quadratic", "a1"], ["to_linear"]),
        node("Mul", ["to_linear", "t"], ["linear"]),
        node("Add", ["linear", "a0"], [target]),
    ]
