"""Parity of a diffusion model's images: the graph's against torch and the library's own sampler, same noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.noise import uniforms
from kaem_export.families.recursive_noise import MODULI, NUM_WORDS
from kaem_export.proof.rows import inner_tensor
from kaem_train.config import DiffusionConfig
from kaem_train.families.diffusion import Diffusion, sampling_schedule

SAMPLER_BOUND = 5e-4
"""Largest difference of an intensity in [0, 1]: rounding grows over the steps; 2e-5 was measured after a thousand."""

_SEED = 2006_11239
_PASSES = 500
"""Network passes that one comparison may take; at least two images are compared."""


def probe_rows(settings: DiffusionConfig) -> int:
    """Return how many images to compare: 2 to 32, fewer where each takes many steps."""
    return min(32, max(2, _PASSES // settings.sampling_steps))


def sampler_parity(
    sampler: LocalSampler, artifact: Path, tensor: str, model: Diffusion, settings: DiffusionConfig
) -> Figure:
    """Compare the images.

    Args:
        sampler: The loaded graph.
        artifact: Its file.
        tensor: Name of the first noise in the graph.
        model: What it was compiled from.
        settings: Settings of the sampler that its manifest states.
    """
    uniform = uniforms(_SEED, 0, probe_rows(settings), sampler.manifest.noise_dim)
    first = torch.from_numpy(inner_tensor(artifact, tensor, uniform))
    expected = library_images(model, settings, first, uniform[:, first.shape[1] :]).numpy()
    images, bound = sampler.decode(uniform), SAMPLER_BOUND
    if sampler.manifest.image_type == "uint8":
        images, bound = images / np.float32(255), bound + 0.5 / 255  # rounding to 8 bits is part of the graph
    return Figure(
        name="image_parity",
        value=float(np.abs(images - expected).max()),
        bound=bound,
        meaning="max |onnx - torch| over images of the same noise, the steps those of diffusers' sampler, "
        "intensities in [0, 1]",
    )


@torch.no_grad()
def library_images(model: Diffusion, settings: DiffusionConfig, first: Tensor, seeds: NDArray[np.float32]) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as the library's sampler makes them of given noise.

    Args:
        model: Its network.
        settings: Settings of the sampler.
        first: The first noise, shape (N, C H W).
        seeds: Signed uniforms of the streams of step noise, shape (N, 6 C H W); no column where there is none.
    """
    library = sampling_schedule(settings)
    x = first.reshape(-1, *model.image_shape)
    noises = stream_uniforms(seeds) if seeds.shape[1] else None
    for timestep in library.timesteps:
        eps = model.predict_noise(x, timestep)
        noise = None if noises is None else torch.from_numpy(ndtri(next(noises))).float().reshape(x.shape)
        match settings.sampler:
            case "ddim":
                x = library.step(eps, timestep, x, eta=settings.eta, variance_noise=noise).prev_sample
            case "ddpm":
                # The library's DDPM draws its noise itself: let it, from a known seed, and put ours in its place.
                drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                x = library.step(eps, timestep, x, generator=torch.Generator().manual_seed(0)).prev_sample
                if timestep > 0 and noise is not None:
                    x = x + library._get_variance(timestep).sqrt() * (noise - drawn)
            case _:
                assert_never(settings.sampler)
    return ((x + 1.0) / 2.0).clamp(0.0, 1.0)


def stream_uniforms(seeds: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Yield u in (0, 1), shape (N, M), step by step: MRG32k3a as published, from signed uniforms (N, 6 M)."""
    words = np.floor(seeds.astype(np.float64) * 2.0**32).astype(np.int64) + 2**31
    states = words.reshape(len(seeds), NUM_WORDS, -1).swapaxes(0, 1)
    x, y = (list(1 + part % (modulus - 1)) for part, modulus in zip((states[:3], states[3:]), MODULI, strict=True))
    first, second = MODULI
    while True:
        x = [x[1], x[2], (1403580 * x[1] - 810728 * x[0]) % first]
        y = [y[1], y[2], (527612 * y[2] - 1370589 * y[0]) % second]
        difference = np.where(x[2] > y[2], x[2] - y[2], x[2] - y[2] + first)
        yield difference / (first + 1)
