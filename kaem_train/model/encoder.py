"""The encoder of the amortised posterior: an image to the mean and deviation of a diagonal Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SLOPE = 0.2
_LOG_STD_RANGE = (-6.0, 2.0)


class Encoder(nn.Module):
    """Stride-2 convolutions, one dense layer, then mean and log deviation; used in training only.

    Args:
        image_shape: (C, H, W).
        latent_shape: Shape of one latent, (Q,) or (Q, P).
        channels: Width of each stride-2 convolution.
        dense: Width of the dense layer.
    """

    def __init__(
        self, image_shape: tuple[int, ...], latent_shape: tuple[int, ...], channels: tuple[int, ...], dense: int
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        layers: list[nn.Module] = []
        width, height, breadth = image_shape
        for channel in channels:
            layers += [nn.Conv2d(width, channel, 3, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
            width, height, breadth = channel, (height + 1) // 2, (breadth + 1) // 2
        num_latents = int(torch.Size(latent_shape).numel())
        layers += [nn.Flatten(), nn.Linear(width * height * breadth, dense), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(dense, 2 * num_latents))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log deviation of q(z | x): shape (B, C, H, W) -> two of (B, *latent_shape)."""
        mean, log_std = self.layers(images).chunk(2, -1)
        log_std = log_std.clamp(*_LOG_STD_RANGE)
        return mean.unflatten(1, self.latent_shape), log_std.unflatten(1, self.latent_shape)
