"""From a configuration to what the trainer trains: a model and its objective, by family."""

from __future__ import annotations

from kaem_train.baselines.diffusion import DenoisingObjective, Diffusion
from kaem_train.baselines.latent_ebm import LatentEbm, ShortRunInference
from kaem_train.baselines.vae import fix_standard_normal
from kaem_train.model.kaem import Kaem
from kaem_train.posterior import Objective, build_posterior
from kaem_train.settings import Config

Model = Kaem | LatentEbm | Diffusion


def build_model(config: Config) -> Model:
    """Return the configured model with freshly drawn parameters."""
    if config.family == "latent_ebm":
        return LatentEbm(config)
    if config.family == "ddpm":
        return Diffusion(config.data.image_shape, config.diffusion)
    model = Kaem(config)
    if config.family == "vae":
        fix_standard_normal(model)
    return model


def build_objective(config: Config, model: Model) -> Objective:
    """Return what `model`, as of `build_model`, learns from."""
    if isinstance(model, Kaem):
        return build_posterior(config, model.prior.latent_shape)
    if isinstance(model, LatentEbm):
        return ShortRunInference(config)
    return DenoisingObjective(config.diffusion)
