"""From a configuration to what the trainer trains: a model and its objective, by family."""

from __future__ import annotations

from typing import assert_never

from kaem_train.config.settings import Config
from kaem_train.families.diffusion import DenoisingObjective, Diffusion
from kaem_train.families.kaem import Kaem
from kaem_train.families.latent_ebm import LatentEbm, ShortRunInference
from kaem_train.families.vae import fix_standard_normal
from kaem_train.posterior import Objective, build_posterior

Model = Kaem | LatentEbm | Diffusion


def build_model(config: Config) -> Model:
    """Return the configured model with freshly drawn parameters."""
    match config.family:
        case "kaem":
            return Kaem(config)
        case "vae":
            model = Kaem(config)
            fix_standard_normal(model)
            return model
        case "latent_ebm":
            return LatentEbm(config)
        case "ddpm":
            return Diffusion(config.data.image_shape, config.diffusion)
        case _:
            assert_never(config.family)


def build_objective(config: Config, model: Model) -> Objective:
    """Return what `model`, as of `build_model`, learns from."""
    match model:
        case Kaem():
            return build_posterior(config, model.prior.latent_shape)
        case LatentEbm():
            return ShortRunInference(config)
        case Diffusion():
            return DenoisingObjective(config.diffusion)
        case _:
            assert_never(model)
