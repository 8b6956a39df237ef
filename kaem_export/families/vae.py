"""A VAE as a graph: one normal draw per latent, then the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr
from typing_extensions import override

from kaem.artifact import Figure, Manifest
from kaem_export.families.family import Compiled, Description, ExportedFamily, Request, Subject
from kaem_export.graph import join_generator
from kaem_export.onnx_builder import start_graph
from kaem_export.proof.head import measured_tensors, require_head
from kaem_export.proof.images import generator_figures
from kaem_export.proof.normal_draws import normal_figures
from kaem_export.tables.lookup import Head
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, draw_normals
from kaem_train.config.settings import Config
from kaem_train.families.kaem import Kaem

_HEAD = "normal draws"
_PLOT_REACH = 4.0
_PLOT_BINS = 64


class ExportedVae(ExportedFamily[Kaem]):
    """A VAE: D = Q, and `latent` is the N(0, I) that the decoder sees."""

    manifest_names = ("vae",)

    @override
    def compile(self, config: Config, model: Kaem, request: Request) -> Compiled:
        request.refuse_tables(config.family)
        request.sampling.refuse_steps(config.family)
        description = _describe(config)
        dim = description.latent_dim
        builder, uniform = start_graph("uniform", dim)
        draws = draw_normals(builder.op, uniform)
        head = Head(kind=_HEAD, latent=draws.quantiles, lookup=draws, measured={"quantiles": draws.quantiles})
        graph = join_generator(builder, head, dim, model.generator, request.image_type)
        return Compiled(graph=graph, description=description, head=head.describe(), densities=_normal_densities(dim))

    @override
    def describe(self, config: Config, manifest: Manifest) -> Description:
        return _describe(config)

    @override
    def measure(self, subject: Subject[Kaem]) -> tuple[Figure, ...]:
        manifest = subject.sampler.manifest
        require_head(manifest, _HEAD)
        return (
            *normal_figures(subject.artifact, manifest.noise_dim, measured_tensors(manifest)["quantiles"]),
            *generator_figures(subject.sampler, subject.artifact, subject.config, subject.model.generator),
        )


def _describe(config: Config) -> Description:
    dim = config.prior.num_latents
    prior = {"kind": "standard normal", "u_error_bound": NORMAL_U_ERROR_BOUND}
    return Description(family="vae", name=config.name, noise_dim=dim, latent_dim=dim, prior=prior)


def _normal_densities(dim: int) -> dict[str, Any]:
    edges = np.linspace(-_PLOT_REACH, _PLOT_REACH, _PLOT_BINS + 1)
    density = [float(f"{value:.4g}") for value in np.diff(ndtr(edges)) / np.diff(edges)]
    return {"low": [-_PLOT_REACH] * dim, "high": [_PLOT_REACH] * dim, "density": [density] * dim}
