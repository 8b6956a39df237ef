"""How well a model explains images it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from kaem_train.data import Images
from kaem_train.families.kaem import Kaem
from kaem_train.posterior import Posterior
from kaem_train.training.objective import log_mean_exp

_BATCH = 250
MOST_IMAGES = 1000
"""Images of which the bound is taken, the first ones."""


def held_out_bound(
    model: Kaem, posterior: Posterior, images: Images | Tensor, rng: torch.Generator, *, num_samples: int
) -> float:
    """Return a lower bound of the mean log p(x), nats per image, the Gaussian constant included.

    log p(x) >= E log (1/K) sum_k p(x, z_k) / q(z_k), with q the encoder's posterior or the prior itself. It is
    a density of pixels on [0, 1], so it can be positive.

    Args:
        model: The trained model.
        posterior: Source of the latents z_k.
        images: Shape (N, C, H, W); of more than 1000 the first 1000 are used.
        rng: Source of the draws.
        num_samples: K.
    """
    some = images[:MOST_IMAGES]
    total = 0.0
    for batch in torch.split(some, _BATCH):
        weights = posterior.log_weights(model, batch, num_samples, rng)
        total += float(log_mean_exp(weights, -1).sum())
    return total / len(some)
