"""The quantile lookup of `tree.py` as nodes of a graph, and what a head made of lookups tells of itself.

31 or 32 nodes, two gathers, indices in int32; block numbers stay exact in float32, in which ONNX Runtime counts faster
than in integers. Everything here must stay in float32 on every target: half precision cannot hold a uniform or a block
number. Only operators whose rows do not depend on the batch around them are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from kaem_export.onnx_builder import Op, add_constant, split_evenly
from kaem_export.tables.tree import ROW, QuantileTables

LEAST_UNIFORM, MOST_UNIFORM = np.float32(-0.5), np.nextafter(np.float32(1), np.float32(0))
"""Ends of what names a quantile: signed uniforms from -1/2, plain ones below 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A lookup in a graph.

    Attributes:
        quantiles: Quantiles, float32 of shape (N, *columns); (N, *columns, 1) where the axis of fields is kept.
        row: Row of the leaves that every quantile was read from, int32.
        leaves: Leaves as the graph holds them, shape (B F2, 9).
        separators: Separators of the second level, shape (B, F2 - 1).
    """

    quantiles: ir.Value
    row: ir.Value
    leaves: ir.Value
    separators: ir.Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The part of a graph that makes latents of uniforms.

    Attributes:
        kind: Kind of the head, for the manifest.
        latent: Latents, float32 (N, Q).
        lookup: Lookup that the latents come from.
        measured: Tensors of the graph that a certificate speaks of, by what they hold.
    """

    kind: str
    latent: ir.Value
    lookup: Lookup
    measured: dict[str, ir.Value] = field(default_factory=dict)

    def describe(self) -> dict[str, object]:
        """Return the field `head` of a manifest: the kind, and the names of what is measured in this very graph."""
        tables = {"leaves": self.lookup.leaves, "separators": self.lookup.separators}
        return {"kind": self.kind, "tensors": {what: value.name for what, value in (tables | self.measured).items()}}


def sign_uniforms(op: Op, uniform: ir.Value) -> ir.Value:
    """Turn plain uniforms in [1/2, 1) into signed ones; exact, since both lie within a factor of two of 1.

    What is no uniform becomes the nearest one first: an infinity would pass the separators that stand for none, be
    looked up beyond the tables, and so fail the rows of others. NaN passes no comparison, and stays NaN.
    """
    within = op.Clip(uniform, float(LEAST_UNIFORM), float(MOST_UNIFORM))
    upper = op.Cast(op.GreaterOrEqual(within, 0.5), to=ir.DataType.FLOAT)
    return op.Sub(within, upper)


def look_up(
    op: Op,
    tables: QuantileTables,
    signed: ir.Value,
    *,
    chosen: ir.Value | None = None,
    chosen_axes: Literal[1, 2] = 1,
    keep_axis: bool = False,
) -> Lookup:
    """Look up one quantile per signed uniform.

    Args:
        op: Builder of the graph.
        tables: Tables whose `columns` have the shape of one row of quantiles, (C,) or (Q, P); of all that may be chosen
            where there is a choice.
        signed: Signed uniforms, shape (N, C), or one that broadcasts with (N, *columns).
        chosen: int32 indices, by default none: of shape (N,) where row n follows the functions `columns[chosen[n]]`,
            or (N, C) where every quantile follows a function `columns[chosen[n, c]]` of its own.
        chosen_axes: Number of axes of `chosen`.
        keep_axis: Whether to leave the axis that fields of a leaf are read along: shape (N, *columns, 1).
    """
    columns = tables.columns
    thresholds = np.moveaxis(tables.first[:, columns], 0, 0 if chosen is None else 1)
    blocks = tables.block[columns].astype(np.float32)
    rank = 1 + columns.ndim if chosen is None else 2
    # The block: how many of the first level's separators v has passed.
    if chosen is None:
        first_axis, first = 0, add_constant(op, thresholds[:, None], "first")
        is_passed = op.GreaterOrEqual(signed, first)
    else:
        first_axis, first = chosen_axes, add_constant(op, thresholds, "first")
        is_passed = op.GreaterOrEqual(op.Unsqueeze(signed, [first_axis]), op.Gather(first, chosen, axis=0))
    block = op.ReduceSum(op.Cast(is_passed, to=ir.DataType.FLOAT), [first_axis], keepdims=0)
    if blocks.any():  # otherwise every function begins at block 0
        first_block = add_constant(op, blocks[None] if chosen is None else blocks, "blocks")
        block = op.Add(block, first_block if chosen is None else op.Gather(first_block, chosen, axis=0))
    # The leaf: how many of the block's. Separators are put in front of v's axes: compared a few numbers at a time,
    # they would take a quarter of the whole lookup.
    second = add_constant(op, tables.second, "second")
    own = op.Gather(second, op.Cast(block, to=ir.DataType.INT32), axis=0)
    is_behind = op.GreaterOrEqual(signed, op.Transpose(own, perm=[rank, *range(rank)]))
    in_block = op.ReduceSum(op.Cast(is_behind, to=ir.DataType.FLOAT), [0], keepdims=0)
    leaf = op.Add(op.Mul(block, float(tables.fan_out)), in_block)
    row = op.Cast(leaf, to=ir.DataType.INT32)
    leaves = add_constant(op, tables.leaves, "leaves")
    start, kappa, gamma, *coefficients = split_evenly(op, op.Gather(leaves, row, axis=0), ROW, axis=-1)
    # y = r / (gamma r + kappa), then Horner's rule.
    r = op.Sub(op.Unsqueeze(signed, [-1]), start)
    y = op.Div(r, op.Add(op.Mul(gamma, r), kappa))
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = op.Add(op.Mul(value, y), coefficient)
    if not keep_axis:
        value = op.Squeeze(value, [-1])
    quantiles = op.Clip(value, add_constant(op, tables.low, "low"), add_constant(op, tables.high, "high"))
    return Lookup(quantiles=quantiles, row=row, leaves=leaves, separators=second)
