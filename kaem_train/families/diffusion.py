"""The denoising diffusion model (Ho et al. 2020): a UNet of `diffusers` that learns to name the noise in an image.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,     loss = mean |eps - eps_theta(x_t, t)|^2

Network, noise schedule and samplers are the library's; here images go to [-1, 1] and back, and all noise comes from
the run's streams. There is no likelihood to report.
"""

from __future__ import annotations

import math
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from kaem_train.config import DiffusionConfig
from kaem_train.data import Images
from kaem_train.devices import normal, upload
from kaem_train.posterior.protocol import Terms

_BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_HEAD_CHANNELS = 8


class Diffusion(nn.Module):
    """The denoising network and its samplers.

    State: `generator.*`, the UNet.

    Attributes:
        image_shape: (C, H, W).
        sigma: None; there is no likelihood whose deviation it could be.
    """

    sigma = None

    def __init__(self, image_shape: tuple[int, ...], config: DiffusionConfig) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.config = config
        self.generator = _unet(image_shape, config)

    def predict_noise(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return eps_theta(x_t, t): shapes (N, C, H, W) and (N,) or () -> (N, C, H, W)."""
        noise: Tensor = self.generator(noisy, timesteps, return_dict=False)[0]
        return noise

    @torch.no_grad()
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw images with the configured sampler: shape (num, C, H, W), in [0, 1]."""
        sampler = sampling_schedule(self.config)
        options = step_options(self.config)
        x = normal((num, *self.image_shape), rng, next(self.parameters()))
        for timestep in sampler.timesteps:
            x = sampler.step(self.predict_noise(x, timestep), timestep, x, generator=rng, **options).prev_sample
        return ((x + 1.0) / 2.0).clamp(0.0, 1.0)

    def parameter_groups(self, inference: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters of the network; there is no prior to learn. See `Kaem.parameter_groups`."""
        return [*self.generator.parameters(), *inference.parameters()], []


class DenoisingObjective:
    """The mean squared error of the predicted noise, at one random level of noise per image.

    Args:
        config: T and the growth of the noise.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.network: nn.Module = nn.Module()
        self.num_levels = config.noise_steps
        self.schedule = noise_schedule(config)

    def prepare(self, model: Diffusion, train: Images, step: int, rng: torch.Generator) -> None:
        """Nothing is due."""

    def terms(self, model: Diffusion, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the loss, a mean over pixels, not nats."""
        noise = normal(images.shape, rng, images)
        timesteps = upload(torch.randint(self.num_levels, (len(images),), generator=rng), images.device)
        noisy = self.schedule.add_noise(2.0 * images - 1.0, noise, timesteps)
        loss = (noise - model.predict_noise(noisy, timesteps)).square().mean()
        return Terms(loss=loss, squared_error=None, metrics={})


def noise_schedule(config: DiffusionConfig) -> Any:
    """Return the library's forward process, a `DDPMScheduler`."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_schedule_settings(config))


def sampling_schedule(config: DiffusionConfig) -> Any:
    """Return the library's sampler, its steps set: a `DDIMScheduler` or a `DDPMScheduler`.

    Steps trail: the first is at the last level of noise, where its input is what the network was trained on.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    kinds = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
    sampler = kinds[config.sampler](**_schedule_settings(config), timestep_spacing="trailing")
    sampler.set_timesteps(config.sampling_steps)
    return sampler


def step_options(config: DiffusionConfig) -> dict[str, float]:
    """Return what the library's sampler is told at every step, beside what is there."""
    match config.sampler:
        case "ddim":
            return {"eta": config.eta}
        case "ddpm":
            return {}
        case _:
            assert_never(config.sampler)


def _schedule_settings(config: DiffusionConfig) -> dict[str, Any]:
    return {
        "num_train_timesteps": config.noise_steps,
        "beta_schedule": _BETAS[config.betas],
        "prediction_type": "epsilon",
        "clip_sample": True,
    }


def _unet(image_shape: tuple[int, ...], config: DiffusionConfig) -> nn.Module:
    from diffusers import UNet2DModel

    channels, height, width = image_shape
    levels = [height // 2**level in config.attention for level in range(len(config.channels))]
    model: nn.Module = UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in levels),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)),
        attention_head_dim=_HEAD_CHANNELS,
        norm_num_groups=math.gcd(32, *config.channels),
    )
    return model
