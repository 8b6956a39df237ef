"""The importance-weighted bound with k draws of the encoder (IWAE; Burda et al. 2016).

    log p(x) >= E log (1/k) sum_i p(x|z_i) p(z_i) / q(z_i|x)

At k = 1 this is the evidence bound; with k it closes. Training costs about k times the generator's passes, so the
k draws may be kept for the last part of a run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.data import Images
from kaem_train.devices import normal
from kaem_train.families.kaem import Kaem
from kaem_train.model.prior.reference import log_reference
from kaem_train.posterior.amortized import AmortizedPosterior
from kaem_train.posterior.power import squared_error_of
from kaem_train.posterior.protocol import Terms
from kaem_train.training.objective import effective_sample_size, log_likelihood, log_mean_exp


class WeightedBoundPosterior:
    """An encoder trained by the importance-weighted bound.

    Args:
        encoder: Provides q(z|x), the start of the prior, and the held-out bound.
        config: k, and when its draws begin.
        updates: Length of the run.
    """

    infers = True

    def __init__(self, encoder: AmortizedPosterior, config: PosteriorConfig, *, updates: int) -> None:
        self.encoder = encoder
        self.network: nn.Module = encoder.network
        self.num_bound_samples = encoder.num_bound_samples
        self.num_samples = config.bound_samples
        self.bound_start = round(config.bound_from * updates)

    def prepare(self, model: Kaem, train: Images, step: int, rng: torch.Generator) -> None:
        """Start the prior from encoded training images when its turn comes."""
        self.encoder.prepare(model, train, step, rng)

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the negative bound of one batch."""
        if step < self.bound_start:
            return self.encoder.terms(model, images, step, rng)
        mean, log_std = self.network(images)
        shape = (self.num_samples, *mean.shape)
        noise = normal(shape, rng, mean)
        z = (mean + log_std.exp() * noise).flatten(0, 1)
        errors = squared_error_of(model, images.repeat(self.num_samples, 1, 1, 1), z)
        log_q = (log_reference("gaussian", noise) - log_std).flatten(2).sum(2)
        log_prior = prior_at(model, z, is_reference=step < self.encoder.prior_start)
        log_joint = log_likelihood(errors, images[0].numel(), model.sigma) + log_prior
        log_weights = log_joint.reshape(self.num_samples, -1) - log_q  # (k, B)
        bound = log_mean_exp(log_weights, 0).mean()
        weights = torch.softmax(log_weights.detach(), 0)
        errors = errors.detach().reshape(self.num_samples, -1)
        return Terms(
            loss=-bound,
            squared_error=(weights * errors).sum(0).mean(),
            latents=z.detach() if step >= self.encoder.prior_start else None,
            metrics={"bound": bound.detach(), "ess": effective_sample_size(weights.T).mean()},
        )

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return one draw of q(z|x) per image."""
        return self.encoder.latents(model, images, rng)

    def log_weights(self, model: Kaem, images: Tensor, num: int, rng: torch.Generator) -> Tensor:
        """Return log p(x|z) p(z) / q(z|x) of `num` draws per image."""
        return self.encoder.log_weights(model, images, num, rng)


def prior_at(model: Kaem, z: Tensor, *, is_reference: bool) -> Tensor:
    """Return log p(z), or log N(z; 0, I) while the prior has not been started: shape (S,)."""
    if is_reference:
        return log_reference("gaussian", z).flatten(1).sum(1)
    return model.prior.log_density(z)
