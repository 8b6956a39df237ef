"""What the encoder and the generator make of real images, apart from the prior.

    error     mean over pixels of (x - G(m))^2, m the posterior mean that the encoder gives
    floor     distance of the images G(z), z ~ q(z|x), from real ones
    active    coordinates whose posterior mean varies over the data, Var_x m_q(x) > 0.01 (Burda et al. 2016)

G(z) is what samples would look like if the prior were the posterior of the data: a floor that no prior goes below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kaem_train.data import Images
from kaem_train.devices import normal
from kaem_train.evaluation.features.network import Pixels, Progress
from kaem_train.evaluation.models import round_pixels
from kaem_train.families.kaem import Kaem
from kaem_train.model.encoder import Encoder

ACTIVE_VARIANCE = 0.01
"""Of a posterior mean, in the latent's own unit, in which the reference N(0, 1) has variance 1."""

_TOGETHER = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionError:
    """Figures of one set of images.

    Attributes:
        squared_error: Per pixel, of images in [0, 1].
        num_active: Active latent coordinates.
        num_latents: All of them.
    """

    squared_error: float
    num_active: int
    num_latents: int


@torch.no_grad()
def reconstruction_error(model: Kaem, encoder: Encoder, images: Images) -> ReconstructionError:
    """Decode posterior means of `images`, shape (N, C, H, W)."""
    means, total = [], 0.0
    for start in range(0, len(images), _TOGETHER):
        batch = images[start : start + _TOGETHER]
        mean, _ = encoder(batch)
        total += float((batch - model.decode(mean)).double().square().sum())
        means.append(mean.flatten(1))
    return ReconstructionError(
        squared_error=total / (len(images) * batch[0].numel()),
        num_active=count_active_coordinates(torch.cat(means)),
        num_latents=means[0].shape[1],
    )


def count_active_coordinates(means: Tensor) -> int:
    """Return how many columns of posterior means, shape (N, Q), have a variance above 0.01."""
    return int((means.double().var(0, correction=0) > ACTIVE_VARIANCE).sum())


@torch.no_grad()
def decode_draws(model: Kaem, encoder: Encoder, images: Images, rng: torch.Generator, progress: Progress) -> Pixels:
    """Return G(z), z ~ q(z|x), one per image, as 8 bits: shape (N, C, H, W)."""
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _TOGETHER):
        mean, log_std = encoder(images[start : start + _TOGETHER])
        noise = normal(mean.shape, rng, mean)
        found[start : start + _TOGETHER] = round_pixels(model.decode(mean + log_std.exp() * noise))
        progress("decoding posteriors", min(start + _TOGETHER, len(images)), len(images))
    return found
