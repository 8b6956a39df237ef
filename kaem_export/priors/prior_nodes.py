"""The nodes in front of the generator: from `uniform` to `latent`, one function per kind of prior.

Only operators whose rows do not depend on the batch around them are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from kaem_export.priors.ordered_sum import sum_nodes
from kaem_export.priors.own_frames import choice_nodes, own_frame_nodes
from kaem_export.priors.prior_tables import (
    Affine,
    CollapsedTables,
    ComponentTables,
    ExpertTables,
    PriorTables,
    SummandTables,
)
from kaem_export.tables.lookup import Constants, quantile_nodes, signed_nodes

Nodes = list[onnx.NodeProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """z = b + W u in float32: offset b (Q,), matrix W (Q, Q); of each expert: (K, Q), (K, Q, Q)."""

    offset: NDArray[np.float32]
    matrix: NDArray[np.float32]


def head_nodes(tables: PriorTables, frame: Frame | None) -> tuple[Nodes, Constants, int, int]:
    """Return the nodes and constants from `uniform` (N, D) to `latent` (N, Q), then D and Q."""
    target = "latent" if frame is None else "unframed"
    match tables:
        case CollapsedTables():
            latent_dim = noise_dim = len(tables.tables.columns)
            if tables.affine is not None and frame is not None:
                frame = _folded(tables.affine, frame)
                tables = CollapsedTables(tables=tables.tables, affine=None)
            nodes, constants = _collapsed_nodes(tables, target)
        case ExpertTables():
            latent_dim = tables.tables.columns.shape[1]
            noise_dim = latent_dim + 1
            if frame is not None and frame.offset.ndim == 2:
                frame = frame if tables.affine is None else _folded(tables.affine, frame)
                nodes, constants = own_frame_nodes(tables, frame.offset, frame.matrix)
                return nodes, constants, noise_dim, latent_dim
            nodes, constants = _expert_nodes(tables, target)
        case SummandTables():
            latent_dim, terms = tables.tables.columns.shape
            noise_dim = terms if tables.shares_uniforms else latent_dim * terms
            nodes, constants = _summand_nodes(tables, target)
        case ComponentTables():
            latent_dim = len(tables.tables.columns)
            noise_dim = 2 * latent_dim
            nodes, constants = _component_nodes(tables, target)
        case _:
            assert_never(tables)
    if frame is not None:
        # A row of a matrix product does not depend on the others; the certificate measures it.
        constants |= {"frame_matrix": np.ascontiguousarray(frame.matrix.T), "frame_offset": frame.offset}
        nodes.append(helper.make_node("Gemm", [target, "frame_matrix", "frame_offset"], ["latent"]))
    return nodes, constants, noise_dim, latent_dim


def _folded(affine: Affine, frame: Frame) -> Frame:
    """b + W (offset + scale x) = (b + W offset) + (W scale) x."""
    matrix = frame.matrix.astype(np.float64)
    return Frame(
        offset=(frame.offset + (matrix @ affine.offset[..., None])[..., 0]).astype(np.float32),
        matrix=(matrix * affine.scale[..., None, :]).astype(np.float32),
    )


def _collapsed_nodes(tables: CollapsedTables, target: str) -> tuple[Nodes, Constants]:
    nodes, constants = signed_nodes("uniform", "signed")
    looked_up = target if tables.affine is None else "standard"
    more, own = quantile_nodes(tables.tables, "signed", looked_up)
    nodes += more
    constants |= own
    if tables.affine is not None:
        nodes += _affine_nodes(looked_up, target)
        constants |= _affine_constants(tables.affine, (1,))
    return nodes, constants


def _expert_nodes(tables: ExpertTables, target: str) -> tuple[Nodes, Constants]:
    """Pick an expert with the last uniform and look the others up in its tables: (N, Q + 1) -> (N, Q)."""
    node = helper.make_node
    latent_dim = tables.tables.columns.shape[1]
    nodes, constants = signed_nodes("uniform", "all_signed")
    constants |= {
        "uniform_sizes": np.array([latent_dim, 1], np.int64),
        "thresholds": tables.thresholds[None, :],
        "choice_axis": np.array([1], np.int64),
    }
    nodes += [
        node("Split", ["all_signed", "uniform_sizes"], ["signed", "choice"], axis=1),
        *choice_nodes("choice", "expert"),
    ]
    if tables.tables.num_functions == 1:
        alike = tables.tables.reading(np.zeros(1, np.int64))
        more, own = quantile_nodes(alike, "signed", target if tables.affine is None else "standard")
    else:
        looked_up = target if tables.affine is None else "standard"
        more, own = quantile_nodes(tables.tables, "signed", looked_up, chosen="expert")
    nodes += more
    constants |= own
    if tables.affine is not None:
        nodes += [
            node("Gather", ["offsets", "expert"], ["offset"], axis=0),
            node("Gather", ["scales", "expert"], ["scale"], axis=0),
            *_affine_nodes("standard", target),
        ]
        constants |= {f"{name}s": value for name, value in _affine_constants(tables.affine, ()).items()}
    return nodes, constants


def _summand_nodes(tables: SummandTables, target: str) -> tuple[Nodes, Constants]:
    """Look up every summand and add them over p, in a fixed order: (N, P) or (N, Q P) -> (N, Q)."""
    node = helper.make_node
    nodes, constants = signed_nodes("uniform", "flat_signed")
    if tables.shares_uniforms:
        constants["latent_axis"] = np.array([1], np.int64)
        nodes.append(node("Unsqueeze", ["flat_signed", "latent_axis"], ["signed"]))
    else:
        constants["summand_shape"] = np.array([0, *tables.tables.columns.shape], np.int64)
        nodes.append(node("Reshape", ["flat_signed", "summand_shape"], ["signed"]))
    looked_up = "summands" if tables.affine is None else "standard"
    more, own = quantile_nodes(tables.tables, "signed", looked_up)
    nodes += more
    constants |= own
    if tables.affine is not None:
        nodes += _affine_nodes("standard", "summands")
        constants |= _affine_constants(tables.affine, (1,))
    more, own = sum_nodes("summands", target, tables.tables.columns.shape[1])
    return nodes + more, constants | own


def _component_nodes(tables: ComponentTables, target: str) -> tuple[Nodes, Constants]:
    """Pick a component for every latent with the second half of the uniforms: (N, 2 Q) -> (N, Q)."""
    node = helper.make_node
    latent_dim, terms = tables.tables.columns.shape
    nodes, constants = signed_nodes("uniform", "all_signed")
    constants |= {
        "uniform_sizes": np.array([latent_dim, latent_dim], np.int64),
        "thresholds": tables.thresholds[None],
        "choice_axis": np.array([2], np.int64),
        "first_components": (np.arange(latent_dim, dtype=np.int32) * terms)[None],
    }
    looked_up = target if tables.affine is None else "standard"
    more, own = quantile_nodes(
        tables.tables.reading(tables.tables.columns.reshape(-1)), "signed", looked_up, chosen="component", chosen_axes=2
    )
    nodes += [
        node("Split", ["all_signed", "uniform_sizes"], ["signed", "flat_choice"], axis=1),
        node("Unsqueeze", ["flat_choice", "choice_axis"], ["choice"]),
        *choice_nodes("choice", "own_component"),
        node("Add", ["own_component", "first_components"], ["component"]),
        *more,
    ]
    constants |= own
    if tables.affine is not None:
        nodes += [
            node("Gather", ["offsets", "component"], ["offset"], axis=0),
            node("Gather", ["scales", "component"], ["scale"], axis=0),
            *_affine_nodes("standard", target),
        ]
        constants |= {
            f"{name}s": np.asarray(value).reshape(-1) for name, value in _affine_constants(tables.affine, ()).items()
        }
    return nodes, constants


def _affine_nodes(source: str, target: str) -> Nodes:
    return [
        helper.make_node("Mul", [source, "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], [target]),
    ]


def _affine_constants(affine: Affine, leading: tuple[int, ...]) -> Constants:
    return {
        name: value.astype(np.float32).reshape(*leading, *value.shape)
        for name, value in (("offset", affine.offset), ("scale", affine.scale))
    }
