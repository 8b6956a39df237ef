"""The latent energy-based model: its energy, its chains and its learning rate.

The denoising diffusion model: its network, its noise and its sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.config.checks import MOST_STEPS, MOST_WIDTH, require_at_least, require_at_most, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentEbmConfig:
    """The latent energy-based model of Pang et al. 2020; the defaults are theirs but for the learning rate.

    Step sizes s are in their convention, z + s^2/2 score + s xi, which is eta = s^2/2 in eq. 11.

    Attributes:
        hidden: Width of the two hidden layers of the energy.
        prior_steps: Langevin steps from N(0, I) that make a prior sample.
        prior_step_size: Their s.
        posterior_steps: Langevin steps from N(0, I) that make a posterior sample.
        posterior_step_size: Their s at the first update; it adapts as `posterior.adapt_step` says.
        learning_rate: Adam step size of the energy, in place of `training.prior_learning_rate`. A fifth of the
            default `training.learning_rate`, which is their ratio (2e-5 to 1e-4).
    """

    hidden: int = 200
    prior_steps: int = 60
    prior_step_size: float = 0.4
    posterior_steps: int = 20
    posterior_step_size: float = 0.1
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("hidden", "prior_steps", "posterior_steps"):
            require_at_least(name, getattr(self, name), 1)
        require_at_most("hidden", self.hidden, MOST_WIDTH)
        for name in ("prior_steps", "posterior_steps"):
            require_at_most(name, getattr(self, name), MOST_STEPS)
        for name in ("prior_step_size", "posterior_step_size", "learning_rate"):
            require_positive(name, getattr(self, name))


_MOST_LAYERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionConfig:
    """A denoising diffusion model (DDPM, Ho et al. 2020) and its samplers.

    Attributes:
        channels: Widths of the UNet, one per resolution, halved from each to the next; multiples of 8.
        layers_per_block: Residual layers per resolution.
        attention: Sides in pixels of the feature maps that get self-attention; the innermost always has it.
        noise_steps: T, levels of noise.
        betas: `linear` (Ho et al.) or `cosine` (Nichol & Dhariwal 2021) growth of the noise.
        sampler: `ddim` (Song et al. 2021) or `ddpm`.
        sampling_steps: Network passes per sample; divides `noise_steps`.
        eta: DDIM: 0 is deterministic given the first noise, 1 has the variance of DDPM.
        learning_rate: Adam step size, in place of `training.learning_rate`.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    attention: tuple[int, ...] = (7, 8)
    noise_steps: int = 1000
    betas: Literal["linear", "cosine"] = "linear"
    sampler: Literal["ddim", "ddpm"] = "ddim"
    sampling_steps: int = 50
    eta: float = 0.0
    learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        if not self.channels or any(width < 8 or width % 8 for width in self.channels):
            raise ConfigError(
                f"channels = {list(self.channels)} must hold multiples of 8",
                hint="for example diffusion.channels=[32, 64, 64]",
            )
        require_at_most("the largest of channels", max(self.channels), MOST_WIDTH)
        for name in ("layers_per_block", "sampling_steps"):
            require_at_least(name, getattr(self, name), 1)
        require_at_most("layers_per_block", self.layers_per_block, _MOST_LAYERS)
        require_at_most("noise_steps", self.noise_steps, MOST_STEPS)
        require_at_least("noise_steps", self.noise_steps, 2)
        require_positive("learning_rate", self.learning_rate)
        if self.noise_steps % self.sampling_steps:
            raise ConfigError(
                f"sampling_steps = {self.sampling_steps} does not divide noise_steps = {self.noise_steps}",
                hint="for 1000 noise steps take 1000, 250, 100, 50, 20 or 10",
            )
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta = {self.eta} is outside [0, 1]")

    @property
    def used_eta(self) -> float:
        """Share of the variance of DDPM's steps that the sampler's have: `eta` of DDIM, 1 of DDPM itself."""
        return {"ddim": self.eta, "ddpm": 1.0}[self.sampler]
