"""Experts: z_q = F_kq^-1(u_q), k picked by one more uniform, D = Q + 1."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx_ir as ir
from typing_extensions import override

from kaem.artifact import Figure
from kaem_export.onnx_builder import Op, split
from kaem_export.priors.layout import (
    Affine,
    Float32,
    PriorLayout,
    apply_affine,
    apply_frame,
    choose,
    find_thresholds,
    normalise_logits,
)
from kaem_export.proof.latents import MeasuredPrior, measure_univariate
from kaem_export.tables.chebyshev_cdf import Float64, Integers
from kaem_export.tables.lookup import Head, look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.own_frames import OwnFramesPrior


class ExpertsLayout(PriorLayout):
    """Experts in one frame or in none.

    Args:
        prior: Prior in its trained form.
    """

    kind = "experts"
    prior: ExpertsPrior | OwnFramesPrior

    @property
    @override
    def noise_dim(self) -> int:
        return self.prior.num_latents + 1

    @cached_property
    @override
    def weights(self) -> Float64:
        """pi, shape (K,)."""
        return normalise_logits(self.prior.logits)

    @property
    def thresholds(self) -> Float32:
        """Thresholds of the uniform that picks the expert, shape (K - 1,)."""
        return find_thresholds(self.weights)

    @property
    def columns(self) -> Integers:
        """Number of the function of every expert and latent, shape (K, Q)."""
        return self.laws.law_of.reshape(self.prior.num_latents, self.prior.num_components).T

    @property
    def own_affine(self) -> Affine | None:
        """Affine map behind the tables, of every expert: offset and scale of shape (K, Q)."""
        affine = self.affine(self.prior.num_latents, self.prior.num_components)
        return None if affine is None else Affine(offset=affine.offset.T, scale=affine.scale.T)

    @override
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        sizes = [self.prior.num_latents, 1]
        signed, choice = split(op, sign_uniforms(op, uniform), sizes, 1)
        expert = choose(op, choice, self.thresholds[None], axis=1)
        if tables.num_functions == 1:
            found = look_up(op, tables.reading(np.zeros(1, np.int64)), signed)
        else:
            found = look_up(op, tables.reading(self.columns), signed, chosen=expert)
        latent = apply_frame(op, self.frame, apply_affine(op, self.own_affine, found.quantiles, expert))
        measured = self.measured_tensors(found.quantiles)
        return Head(kind=self.kind, latent=latent, lookup=found, measured=measured)

    @override
    def measure(self, measured: MeasuredPrior) -> tuple[Figure, ...]:
        return measure_univariate(measured)
