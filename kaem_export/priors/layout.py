"""What the ways from uniforms to latents have in common: laws, an affine map behind the tables, a frame, a choice.

Each way is a class of its own in this folder: how many uniforms it takes, the nodes that it writes, and the figures
that prove them. `layouts.py` says which prior takes which.

A choice is made by a signed uniform v: with cumulative weights c_k summed in float64, k owns v + 1/2 in
[c_k, c_{k+1}), so k is the number of thresholds c_j - 1/2, 0 < j < K, that are at most v. That counts to K - 1 at most,
whatever v is. Rounding v and the thresholds to float32 moves a share by less than 2^-24.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from kaem.artifact import Figure
from kaem_export.onnx_builder import Op, add_constant
from kaem_export.proof.latents import MeasuredPrior
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.collapse import function_laws
from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import Head
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.factorised import Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """z = offset + scale x, of the shape of the tables' columns."""

    offset: Float64
    scale: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """z = b + W u in float32: offset b (Q,), matrix W (Q, Q); of each expert: (K, Q), (K, Q, Q)."""

    offset: Float32
    matrix: Float32

    def fold(self, affine: Affine | None) -> Frame:
        """Return the frame with an affine map before it: b + W (offset + scale x) = (b + W offset) + (W scale) x."""
        if affine is None:
            return self
        matrix = self.matrix.astype(np.float64)
        return Frame(
            offset=(self.offset + (matrix @ affine.offset[..., None])[..., 0]).astype(np.float32),
            matrix=(matrix * affine.scale[..., None, :]).astype(np.float32),
        )


class PriorLayout(ABC):
    """A way from uniforms to latents.

    Args:
        prior: Prior in its trained form.
    """

    kind: ClassVar[str]
    """Kind of the head, for the manifest."""

    sums_functions: ClassVar[bool] = False
    """Whether a latent is the sum of several tabulated functions."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    @property
    @abstractmethod
    def noise_dim(self) -> int:
        """D, number of uniforms that a sample takes."""

    @cached_property
    def laws(self) -> Laws:
        """Distributions that are tabulated, in float64: by default of all functions, row q P + p.

        Raises:
            ArtifactError: A density cannot be integrated.
        """
        return function_laws(self.prior)

    @property
    def weights(self) -> Float64 | None:
        """Weights of what is chosen from, in float64; None where nothing is."""
        return None

    @abstractmethod
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        """Write the nodes from uniforms to latents.

        Args:
            op: Builder of the graph.
            uniform: Uniforms, float32 (N, D).
            tables: Tables of the laws.
        """

    @abstractmethod
    def measure(self, measured: MeasuredPrior) -> tuple[Figure, ...]:
        """Measure the latents of an artifact with such a head against independent quadrature."""

    @property
    def is_affine(self) -> bool:
        """Whether tables hold standard laws, which a product and a sum, or the frame, carry to place and size."""
        return self.laws.is_affine

    @cached_property
    def frame(self) -> Frame | None:
        """Linear map behind the quantiles, of every expert its own where they have some; None without."""
        frame = self.prior.frames if isinstance(self.prior, OwnFramesPrior) else self.prior.frame
        if frame is None:
            return None
        state = {name: value.detach().float().numpy() for name, value in frame.state_dict().items()}
        return Frame(offset=state["offset"], matrix=state["matrix"])

    def affine(self, *shape: int) -> Affine | None:
        """Return the affine map behind the tables, its rows in a shape; None where there is none."""
        if not self.laws.is_affine:
            return None
        return Affine(offset=self.laws.offset.reshape(shape), scale=self.laws.scale.reshape(shape))

    def measured_tensors(self, quantiles: ir.Value) -> dict[str, ir.Value]:
        """Return the looked-up quantiles by name where they follow the checkpoint's own densities; else nothing."""
        return {} if self.is_affine else {"quantiles": quantiles}


def normalise_logits(logits: torch.Tensor) -> Float64:
    """Return softmax(logits) over the last axis, in float64."""
    with torch.no_grad():
        return np.asarray(logits.double().softmax(-1), np.float64)


def find_thresholds(weights: Float64) -> Float32:
    """Return c_j - 1/2 of the cumulative weights, 0 < j < K: shape (..., K) -> (..., K - 1)."""
    cumulative = np.cumsum(weights, axis=-1)
    return np.asarray(cumulative[..., :-1] / cumulative[..., -1:] - 0.5, np.float32)


def choose(op: Op, signed: ir.Value, thresholds: Float32, axis: int) -> ir.Value:
    """Count the thresholds that a signed uniform has passed, along an axis, to an int32."""
    passed = op.GreaterOrEqual(signed, add_constant(op, thresholds, "thresholds"))
    return op.ReduceSum(op.Cast(passed, to=ir.DataType.INT32), [axis], keepdims=0)


def apply_affine(op: Op, affine: Affine | None, standard: ir.Value, chosen: ir.Value | None = None) -> ir.Value:
    """Carry standard quantiles to their place and size.

    Args:
        op: Builder of the graph.
        affine: Offset and scale in the shape of one row; of the shape that is chosen from where there is a choice.
        standard: Quantiles of the standard law.
        chosen: int32 indices of the first axis of offset and scale; None where there is one of each.
    """
    if affine is None:
        return standard
    scale, offset = (
        add_constant(op, (value if chosen is not None else value[None]).astype(np.float32), name)
        for name, value in (("scale", affine.scale), ("offset", affine.offset))
    )
    if chosen is not None:
        scale, offset = op.Gather(scale, chosen, axis=0), op.Gather(offset, chosen, axis=0)
    return op.Add(op.Mul(standard, scale), offset)


def apply_frame(op: Op, frame: Frame | None, unframed: ir.Value) -> ir.Value:
    """Apply a common frame, where there is one; a row of a matrix product does not depend on the others."""
    if frame is None:
        return unframed
    matrix = add_constant(op, np.ascontiguousarray(frame.matrix.T), "frame_matrix")
    return op.Gemm(unframed, matrix, add_constant(op, frame.offset, "frame_offset"))
