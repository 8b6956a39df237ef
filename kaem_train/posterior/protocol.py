"""What the trainer asks of a posterior."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from kaem_train.data import Images
from kaem_train.model.kaem import Kaem
from kaem_train.posterior.amortized import AmortizedPosterior
from kaem_train.posterior.importance import ImportancePosterior
from kaem_train.posterior.refined import RefinedPosterior
from kaem_train.posterior.short_run import LangevinPosterior
from kaem_train.posterior.tempering import TemperingPosterior
from kaem_train.posterior.terms import Terms
from kaem_train.posterior.weighted_bound import WeightedBoundPosterior
from kaem_train.settings import Config

__all__ = ["Posterior", "Terms", "build_posterior"]


class Posterior(Protocol):
    """Inference of latents given images.

    `network` holds trainable parameters of the posterior itself (none for importance sampling); they are
    optimised and saved with the model, buffers included. `rng` is the only source of randomness.
    """

    network: nn.Module
    num_bound_samples: int
    """Latents per image that make the held-out bound worth reading."""
    infers: bool
    """Whether `latents` are those of the images given, one each."""

    def prepare(self, model: Kaem, train: Images, step: int, rng: torch.Generator) -> None:
        """Do what is due before update `step` (from 0), for example start the prior from data."""

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the loss of one batch, shape (B, C, H, W), at update `step` (from 0)."""

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return latents for which the generator must work, without gradient: (N, *latent_shape).

        Where `infers`, they are of the images, in their order; of more images than a kind takes, of the first.
        """

    def log_weights(self, model: Kaem, images: Tensor, num: int, rng: torch.Generator) -> Tensor:
        """Return log p(x, z) / q(z) of `num` latents per image, without gradient: shape (B, num)."""


def build_posterior(config: Config, latent_shape: tuple[int, ...]) -> Posterior:
    """Return the configured posterior."""
    settings, gradient, updates = config.posterior, config.training.prior_gradient, config.training.updates
    if settings.kind == "importance":
        return ImportancePosterior(settings, gradient)
    if settings.kind == "langevin":
        return LangevinPosterior(settings, gradient)
    if settings.kind == "tempering":
        return TemperingPosterior(settings, gradient, updates=updates)
    encoder = AmortizedPosterior(settings, config.data.image_shape, latent_shape, updates=updates)
    if settings.kind == "weighted_bound":
        return WeightedBoundPosterior(encoder, settings.bound_samples)
    if settings.kind == "refined":
        return RefinedPosterior(encoder, settings)
    return encoder
