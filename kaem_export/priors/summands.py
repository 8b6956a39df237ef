"""Sums of functions of their own: z_q = sum_p F_qp^-1(u), u shared over q (D = P) or of every summand (D = Q P)."""

from __future__ import annotations

import onnx_ir as ir
from typing_extensions import override

from kaem.artifact import Figure
from kaem_export.onnx_builder import Op
from kaem_export.priors.layout import PriorLayout, apply_affine, apply_frame
from kaem_export.priors.ordered_sum import add_up
from kaem_export.proof.latents import MeasuredPrior, measure_summands
from kaem_export.tables.lookup import Head, look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.factorised import IndependentPrior


class SummandsLayout(PriorLayout):
    """Latents that are sums over components, in a fixed order.

    Args:
        prior: Prior in its trained form.
    """

    kind = "summands"
    sums_functions = True
    prior: IndependentPrior

    @property
    @override
    def noise_dim(self) -> int:
        return self.prior.num_components * (1 if self.prior.shares_uniforms else self.prior.num_latents)

    @override
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        shape = (self.prior.num_latents, self.prior.num_components)
        signed = sign_uniforms(op, uniform)
        signed = op.Unsqueeze(signed, [1]) if self.prior.shares_uniforms else op.Reshape(signed, [0, *shape])
        found = look_up(op, tables.reading(self.laws.law_of.reshape(shape)), signed)
        summands = apply_affine(op, self.affine(*shape), found.quantiles)
        latent = apply_frame(op, self.frame, add_up(op, summands, shape[1]))
        measured = self.measured_tensors(found.quantiles) | {"summands": summands}
        return Head(kind=self.kind, latent=latent, lookup=found, measured=measured)

    @override
    def measure(self, measured: MeasuredPrior) -> tuple[Figure, ...]:
        return measure_summands(measured)
