"""The loss of one batch and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


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
