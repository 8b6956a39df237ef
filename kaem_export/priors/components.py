"""Mixtures whose components are functions of their own: z_q = F_qk^-1(u_q), k picked by another uniform, D = 2 Q."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx_ir as ir
from typing_extensions import override

from kaem.artifact import Figure
from kaem_export.onnx_builder import Op, add_constant, split
from kaem_export.priors.layout import (
    PriorLayout,
    apply_affine,
    apply_frame,
    choose,
    find_thresholds,
    normalise_logits,
)
from kaem_export.proof.latents import MeasuredPrior, measure_components
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.lookup import Head, look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.factorised import MixturePrior


class ComponentsLayout(PriorLayout):
    """Latents that each pick a component.

    Args:
        prior: Prior in its trained form.
    """

    kind = "components"
    prior: MixturePrior

    @property
    @override
    def noise_dim(self) -> int:
        return 2 * self.prior.num_latents

    @cached_property
    @override
    def weights(self) -> Float64:
        """alpha, shape (Q, P)."""
        return normalise_logits(self.prior.logits)

    @override
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        latent_dim, terms = self.prior.num_latents, self.prior.num_components
        signed, choice = split(op, sign_uniforms(op, uniform), [latent_dim, latent_dim], 1)
        own = choose(op, op.Unsqueeze(choice, [2]), find_thresholds(self.weights)[None], axis=2)
        first = add_constant(op, (np.arange(latent_dim, dtype=np.int32) * terms)[None], "first_components")
        component = op.Add(own, first)
        found = look_up(op, tables.reading(self.laws.law_of), signed, chosen=component, chosen_axes=2)
        affine = self.affine(latent_dim * terms)
        latent = apply_frame(op, self.frame, apply_affine(op, affine, found.quantiles, component))
        measured = self.measured_tensors(found.quantiles)
        return Head(kind=self.kind, latent=latent, lookup=found, measured=measured)

    @override
    def measure(self, measured: MeasuredPrior) -> tuple[Figure, ...]:
        return measure_components(measured)
