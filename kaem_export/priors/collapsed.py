"""One function per latent: z_q = F_q^-1(u_q), D = Q; for mixtures and for sums whose law is tabulated as a whole."""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir
from typing_extensions import override

from kaem.artifact import Figure
from kaem_export.onnx_builder import Op
from kaem_export.priors.layout import PriorLayout, apply_affine, apply_frame
from kaem_export.proof.latents import MeasuredPrior, measure_univariate
from kaem_export.tables.collapse import collapse
from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import Head, look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.factorised import IndependentPrior, MixturePrior


class CollapsedLayout(PriorLayout):
    """Latents that are independent of each other.

    Args:
        prior: Prior in its trained form.
    """

    kind = "collapsed"
    prior: MixturePrior | IndependentPrior

    @property
    @override
    def noise_dim(self) -> int:
        return self.prior.num_latents

    @cached_property
    @override
    def laws(self) -> Laws:
        return collapse(self.prior)

    @override
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        affine, frame = self.affine(self.prior.num_latents), self.frame
        if frame is not None:
            affine, frame = None, frame.fold(affine)
        found = look_up(op, tables, sign_uniforms(op, uniform))
        latent = apply_frame(op, frame, apply_affine(op, affine, found.quantiles))
        measured = self.measured_tensors(found.quantiles)
        return Head(kind=self.kind, latent=latent, lookup=found, measured=measured)

    @override
    def measure(self, measured: MeasuredPrior) -> tuple[Figure, ...]:
        return measure_univariate(measured)
