"""What the trainer asks of an objective, and what every posterior offers beside that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kaem_train.data import Images
from kaem_train.families.kaem import Kaem
from kaem_train.training.objective import log_likelihood, pairwise_squared_error

__all__ = ["InfersLatents", "Objective", "Posterior", "Terms"]

_DECODED_TOGETHER = 500


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
        ...


@runtime_checkable
class InfersLatents(Protocol):
    """An objective whose images have latents."""

    def latents(self, model: Any, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return latents for which the generator must work, without gradient: (N, *latent_shape).

        Where `infers`, they are of the images, in their order; of more images than a kind takes, of the first.
        """
        ...


class Posterior(Objective, InfersLatents):
    """Inference of latents given images, under a prior with a known density.

    By default nothing is due before an update, and the held-out bound draws from the prior.
    """

    num_bound_samples: int = 2000
    """Latents per image that make the held-out bound worth reading."""
    infers: bool = True
    """Whether `latents` are those of the images given, one each."""

    def prepare(self, model: Kaem, train: Images, step: int, rng: torch.Generator) -> None:
        """Do what is due before update `step` (from 0): by default nothing."""

    @torch.no_grad()
    def log_weights(self, model: Kaem, images: Tensor, num: int, rng: torch.Generator) -> Tensor:
        """Return log p(x, z) / q(z) of `num` latents per image, without gradient: shape (B, num).

        By default q is the prior, one set of z for all images: log p(x|z) (eq. 37).
        """
        proposals = model.prior.sample(num, rng)
        means = torch.cat([model.decode(part) for part in torch.split(proposals, _DECODED_TOGETHER)])
        errors = pairwise_squared_error(images, means)
        return log_likelihood(errors, images[0].numel(), model.sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The loss of one batch.

    Attributes:
        loss: What to minimise, scalar; in nats per image where it bounds a likelihood.
        squared_error: |x - G(z)|^2 per image under the posterior, without gradient, scalar; None where nothing is
            reconstructed.
        latents: Encoded latents that the prior learned from, without gradient: (S, *latent_shape); None where it did
            not, or they cannot leave its domain.
        metrics: Parts of the loss and diagnostics, for people to watch; scalars without gradient.
    """

    loss: Tensor
    squared_error: Tensor | None
    metrics: Mapping[str, Tensor]
    latents: Tensor | None = None
