"""What the trainer asks of a posterior."""

from __future__ import annotations

from typing import Any, Protocol, assert_never, runtime_checkable

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

__all__ = ["InfersLatents", "Objective", "Posterior", "Terms", "build_posterior"]


class Objective(Protocol):
    """What a model learns from; `model` is of the family that the objective is made for.

    `network` holds trainable parameters of the objective itself (none for importance sampling); they are
    optimised and saved with the model, buffers included. `rng` is the only source of randomness.
    """

    network: nn.Module

    def prepare(self, model: Any, train: Images, step: int, rng: torch.Generator) -> None:
        """Do what is due before update `step` (from 0), for example start the prior from data."""

    def terms(self, model: Any, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the loss of one batch, shape (B, C, H, W), at update `step` (from 0)."""


@runtime_checkable
class InfersLatents(Protocol):
    """An objective whose images have latents."""

    def latents(self, model: Any, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return latents for which the generator must work, without gradient: (N, *latent_shape).

        Where `infers`, they are of the images, in their order; of more images than a kind takes, of the first.
        """


@runtime_checkable
class Posterior(Objective, InfersLatents, Protocol):
    """Inference of latents given images, under a prior with a known density."""

    num_bound_samples: int
    """Latents per image that make the held-out bound worth reading."""
    infers: bool
    """Whether `latents` are those of the images given, one each."""

    def log_weights(self, model: Kaem, images: Tensor, num: int, rng: torch.Generator) -> Tensor:
        """Return log p(x, z) / q(z) of `num` latents per image, without gradient: shape (B, num)."""


def build_posterior(config: Config, latent_shape: tuple[int, ...]) -> Posterior:
    """Return the configured posterior."""
    settings, gradient, updates = config.posterior, config.training.prior_gradient, config.training.updates

    def encoder() -> AmortizedPosterior:
        return AmortizedPosterior(settings, config.data.image_shape, latent_shape, updates=updates)

    match settings.kind:
        case "amortized":
            return encoder()
        case "weighted_bound":
            return WeightedBoundPosterior(encoder(), settings, updates=updates)
        case "refined":
            return RefinedPosterior(encoder(), settings)
        case "importance":
            return ImportancePosterior(settings, gradient)
        case "langevin":
            return LangevinPosterior(settings, gradient)
        case "tempering":
            return TemperingPosterior(settings, gradient, updates=updates)
        case _:
            assert_never(settings.kind)
