"""A latent EBM as a graph: normal draws, the short Langevin run with its gradient, then the decoder.

    z_0 = xi_0,     z_{t+1} = (1 - s^2/2) z_t + s^2/2 grad f(z_t) + s xi_{t+1},     t = 0 .. T - 1

f is a perceptron of two hidden layers with LeakyReLU, so its gradient is two matrix products forward and two back,
written out below. Each xi_t is Q normal draws of the row's own uniforms, in order: D = Q (1 + T).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from kaem.artifact import Figure, Manifest
from kaem.errors import RequestError
from kaem_export.families.family import (
    Compiled,
    Description,
    ExportedFamily,
    Request,
    Subject,
    require_noise_dim,
    stated_steps,
)
from kaem_export.families.latent_ebm_certificate import chain_parity
from kaem_export.graph import join_generator
from kaem_export.onnx_builder import Op, add_constant, split, start_graph, write_loop
from kaem_export.proof.head import measured_tensors, require_head
from kaem_export.proof.images import generator_figures
from kaem_export.proof.normal_draws import normal_figures
from kaem_export.tables.lookup import Head
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, draw_normals
from kaem_train.config import LatentEbmConfig
from kaem_train.config.settings import Config
from kaem_train.families.latent_ebm import EnergyPrior, LatentEbm

_HEAD = "Langevin chains"


class ExportedLatentEbm(ExportedFamily[LatentEbm]):
    """A latent EBM: D = Q (1 + T), and `latent` is where the chains end."""

    manifest_names = ("latent_ebm",)
    has_loop = True

    @override
    def compile(self, config: Config, model: LatentEbm, request: Request) -> Compiled:
        request.refuse_tables(config.family)
        if request.sampling.sampler is not None:
            raise RequestError(
                f"--sampler {request.sampling.sampler}: a latent EBM has Langevin chains only",
                hint="leave --sampler out",
            )
        chain = config.latent_ebm
        if request.sampling.steps is not None:
            chain = replace(chain, prior_steps=request.sampling.steps)
        description = _describe(config, chain)
        require_noise_dim(description.noise_dim, "give fewer --steps")
        builder, uniform = start_graph("uniform", description.noise_dim)
        head = write_chains(builder.op, uniform, model.prior, chain)
        graph = join_generator(builder, head, description.latent_dim, model.generator, request.image_type)
        return Compiled(graph=graph, description=description, head=head.describe())

    @override
    def describe(self, config: Config, manifest: Manifest) -> Description:
        return _describe(config, _stated_chain(config, manifest))

    @override
    def measure(self, subject: Subject[LatentEbm]) -> tuple[Figure, ...]:
        sampler, artifact, manifest = subject.sampler, subject.artifact, subject.sampler.manifest
        require_head(manifest, _HEAD)
        draws, chain = measured_tensors(manifest)["quantiles"], _stated_chain(subject.config, manifest)
        return (
            *normal_figures(artifact, manifest.noise_dim, draws),
            chain_parity(sampler, artifact, draws, subject.model.prior, chain),
            *generator_figures(sampler, artifact, subject.config, subject.model.generator),
        )

    @override
    def set_sampling(self, config: Config, model: LatentEbm, manifest: Manifest) -> None:
        model.prior.config = _stated_chain(config, manifest)


def _describe(config: Config, chain: LatentEbmConfig) -> Description:
    dim = config.prior.num_latents
    prior = {
        "kind": "energy on N(0, I), short Langevin runs",
        "steps": chain.prior_steps,
        "step_size": chain.prior_step_size,
        "hidden": chain.hidden,
        "u_error_bound": NORMAL_U_ERROR_BOUND,
    }
    noise_dim = dim * (1 + chain.prior_steps)
    return Description(family="latent_ebm", name=config.name, noise_dim=noise_dim, latent_dim=dim, prior=prior)


def _stated_chain(config: Config, manifest: Manifest) -> LatentEbmConfig:
    """Return the chain with the number of steps that a manifest states."""
    return replace(config.latent_ebm, prior_steps=stated_steps(manifest))


def write_chains(op: Op, uniform: ir.Value, prior: EnergyPrior, chain: LatentEbmConfig) -> Head:
    """Write the nodes from uniforms (N, Q (1 + T)) to latents (N, Q).

    Args:
        op: Builder of the graph.
        uniform: Uniforms, float32 (N, D).
        prior: Energy in its trained form.
        chain: Number of steps and step size.
    """
    first, hinge, second, _, last = prior.layers
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and isinstance(last, nn.Linear)):
        raise AssertionError("the gradient below is that of three linear layers")
    slope, dim = float(hinge.negative_slope), prior.num_latents  # type: ignore[arg-type]
    rate = 0.5 * chain.prior_step_size**2
    into_first, into_second, into_last = (layer.weight.detach().double().numpy() for layer in (first, second, last))

    def constant(name: str, value: NDArray[np.float64] | torch.Tensor) -> ir.Value:
        return add_constant(op, np.asarray(value, np.float32), name)

    weight_1, bias_1 = constant("weight_1", into_first.T), constant("bias_1", first.bias.detach())
    weight_2, bias_2 = constant("weight_2", into_second.T), constant("bias_2", second.bias.detach())
    # The gradient of f by the outputs of the last hidden layer, where its unit is up and where it is not: (1, H).
    up, down = constant("back_3", into_last), constant("back_3_negative", slope * into_last)
    back_2, back_1 = constant("back_2", into_second), constant("back_1", rate * into_first)
    draws = draw_normals(op, uniform)
    start, noises = split(op, draws.quantiles, [dim, dim * chain.prior_steps], 1)
    noise_by_step = op.Reshape(op.Mul(noises, float(chain.prior_step_size)), [-1, chain.prior_steps, dim])

    def write_step(op: Op, number: ir.Value, z: ir.Value) -> list[ir.Value]:
        hidden_1 = op.LeakyRelu(op.Gemm(z, weight_1, bias_1), alpha=slope)
        sum_2 = op.Gemm(hidden_1, weight_2, bias_2)
        # Back through both layers. An output is positive exactly where its input is, and slope is 1 there.
        at_hidden_1 = op.Gemm(op.Where(op.Greater(sum_2, 0.0), up, down), back_2)
        at_sum_1 = op.Where(op.Greater(hidden_1, 0.0), at_hidden_1, op.Mul(at_hidden_1, slope))
        unguided = op.Add(op.Mul(z, 1.0 - rate), op.Gather(noise_by_step, number, axis=1))
        return [op.Gemm(at_sum_1, back_1, unguided)]

    (latent,) = write_loop(op, chain.prior_steps, write_step, {"z": start})
    return Head(kind=_HEAD, latent=latent, lookup=draws, measured={"quantiles": draws.quantiles})
