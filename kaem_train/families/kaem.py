"""The whole model p(x, z) = p(z) N(x; G(z), sigma^2 I) (eqs. 2, 6-8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config.settings import Config
from kaem_train.devices import normal
from kaem_train.model.generators.generator import build_generator
from kaem_train.model.prior.factorised import build_prior

_FRAMES = ("frame.", "frames.")


class Kaem(nn.Module):
    """Prior, generator and the deviation of the likelihood.

    State: `prior.*`, `generator.*` and `sigma` (), the likelihood's standard deviation.

    Attributes:
        image_shape: (C, H, W).
    """

    sigma: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image_shape = config.data.image_shape
        self.generator_noise = config.training.generator_noise
        # Chains and proposals stay inside the domain, and the density ends with it; an encoder's latents do not.
        self.prior = build_prior(config.prior, has_tails=config.posterior.has_encoder)
        self.generator = build_generator(config.prior.num_latents, self.image_shape, config.generator)
        self.register_buffer("sigma", torch.tensor(config.training.sigma))

    def decode(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the mean images of latents: shape (N, *latent_shape) -> (N, C, H, W), in [0, 1].

        Args:
            z: Latents.
            noise: Draws of `draw_noise`; none is the mean.
        """
        inputs = self.prior.generator_input(z)
        images: Tensor = self.generator(inputs) if noise is None else self.generator(inputs, noise)
        return images

    def draw_noise(self, num: int, rng: torch.Generator) -> Tensor | None:
        """Draw what the generator's update adds to `num` images before their sigmoid; None where it adds nothing."""
        if self.generator_noise == 0.0:
            return None
        return self.generator_noise * normal((num, *self.image_shape), rng, self.sigma)

    def parameter_groups(self, inference: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return what learns at the networks' rate and what at the prior's.

        The order is part of every checkpoint: optimiser states are kept by position.

        Args:
            inference: Network of the posterior, trained along.
        """
        named = list(self.prior.named_parameters())
        frames = [value for name, value in named if name.startswith(_FRAMES)]
        energies = [value for name, value in named if not name.startswith(_FRAMES)]
        # A frame is a linear layer: it learns at the rate of the networks that it stands between.
        return [*self.generator.parameters(), *inference.parameters(), *frames], energies

    @torch.no_grad()
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw images: exact prior samples, decoded; shape (num, C, H, W), in [0, 1]."""
        return self.decode(self.prior.sample(num, rng)).clamp(0.0, 1.0)  # a generator of the user's may leave it
