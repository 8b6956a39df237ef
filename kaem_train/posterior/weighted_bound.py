"""The importance-weighted bound with k draws of the encoder (IWAE; Burda et al. 2016).

    log p(x) >= E log (1/k) sum_i p(x|z_i) p(z_i) / q(z_i|x)

At k = 1 this is the evidence bound; with k it closes. Training costs about k times the generator's passes, so the
k draws may be kept for the last part of a run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kaem_train.devices import normal
from kaem_train.families.kaem import Kaem
from kaem_train.model.prior.reference import log_reference
from kaem_train.posterior.amortized import AmortizedPosterior, log_prior_or_reference
from kaem_train.posterior.power import squared_error_of
from kaem_train.posterior.protocol import Terms
from kaem_train.training.objective import effective_sample_size, log_likelihood, log_mean_exp


class WeightedBoundPosterior(AmortizedPosterior):
    """An encoder trained by the importance-weighted bound, with k = `bound_samples` from `bound_from` on."""

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the negative bound of one batch."""
        if step < round(self.config.bound_from * self.updates):
            return super().terms(model, images, step, rng)
        mean, log_std = self.encoder(images)
        num = self.config.bound_samples
        noise = normal((num, *mean.shape), rng, mean)
        z = (mean + log_std.exp() * noise).flatten(0, 1)
        errors = squared_error_of(model, images.repeat(num, 1, 1, 1), z)
        log_q = (log_reference("gaussian", noise) - log_std).flatten(2).sum(2)
        log_prior = log_prior_or_reference(model, z, is_reference=step < self.prior_start)
        log_joint = log_likelihood(errors, images[0].numel(), model.sigma) + log_prior
        log_weights = log_joint.reshape(num, -1) - log_q  # (k, B)
        bound = log_mean_exp(log_weights, 0).mean()
        weights = torch.softmax(log_weights.detach(), 0)
        errors = errors.detach().reshape(num, -1)
        return Terms(
            loss=-bound,
            squared_error=(weights * errors).sum(0).mean(),
            latents=z.detach() if step >= self.prior_start else None,
            metrics={"bound": bound.detach(), "ess": effective_sample_size(weights.T).mean()},
        )
