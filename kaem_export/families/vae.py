"""A VAE as a graph: one normal draw per latent, then the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

from kaem.artifact import ImageType
from kaem_export.families.compiled import Compiled
from kaem_export.graph import join_generator
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, normal_nodes
from kaem_train.config.settings import Config
from kaem_train.families.kaem import Kaem

_PLOT_REACH = 4.0
_PLOT_BINS = 64


def compile_vae(config: Config, model: Kaem, image_type: ImageType) -> Compiled:
    """Compile a VAE: D = Q, and `latent` is the N(0, I) that the decoder sees."""
    dim = config.prior.num_latents
    nodes, constants = normal_nodes("uniform", "latent", "normal_")
    return Compiled(
        graph=join_generator(nodes, constants, dim, dim, model.generator, image_type),
        family="vae",
        name=config.name,
        noise_dim=dim,
        latent_dim=dim,
        prior=vae_prior(),
        densities=_normal_densities(dim),
    )


def vae_prior() -> dict[str, Any]:
    """Describe the prior, for the manifest."""
    return {"kind": "standard normal", "u_error_bound": NORMAL_U_ERROR_BOUND}


def _normal_densities(dim: int) -> dict[str, Any]:
    edges = np.linspace(-_PLOT_REACH, _PLOT_REACH, _PLOT_BINS + 1)
    density = [float(f"{value:.4g}") for value in np.diff(ndtr(edges)) / np.diff(edges)]
    return {"low": [-_PLOT_REACH] * dim, "high": [_PLOT_REACH] * dim, "density": [density] * dim}
