"""Importance sampling with the prior as proposal (Algorithm 2; eqs. 33-39).

One set of N prior samples serves the whole batch. Works for small images; where the best of N proposals is
far from every image, the weights collapse onto it (watch the effective sample size).

Resampling: weights become multiplicities m with E[m_s] = N w_s (Algorithm 2; Douc & Cappe 2005).

All three schemes keep that expectation and differ in variance. On weights that are used once, as here,
resampling only adds variance; it is kept for comparison with the paper and is off by default.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.families.kaem import Kaem
from kaem_train.posterior.protocol import Posterior, Terms
from kaem_train.training.objective import (
    PriorGradient,
    effective_sample_size,
    importance_loss,
    importance_weights,
    log_likelihood,
    log_mean_exp,
    log_prior_term,
    pairwise_squared_error,
)

Resampling = Literal["residual", "systematic", "stratified"]


class ImportancePosterior(Posterior):
    """Self-normalised importance sampling, with resampling where the weights degenerate.

    Args:
        config: N = `num_proposals`; gamma = `resample_below`; the scheme of `resampling`.
        prior_gradient: Form of the prior's gradient.
    """

    infers = False

    def __init__(self, config: PosteriorConfig, prior_gradient: PriorGradient) -> None:
        self.config = config
        self.prior_gradient = prior_gradient
        self.network: nn.Module = nn.Identity()

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the loss whose gradient estimates that of -log p(x) (eq. 4)."""
        proposals = model.prior.sample(self.config.num_proposals, rng)
        errors = pairwise_squared_error(images, model.decode(proposals))
        likelihoods = log_likelihood(errors, images[0].numel(), model.sigma)
        weights = importance_weights(likelihoods)
        effective = effective_sample_size(weights)
        is_degenerate = effective < self.config.resample_below * self.config.num_proposals
        if bool(is_degenerate.any()):
            counts = resample(weights[is_degenerate].cpu(), self.config.resampling, rng)
            weights[is_degenerate] = counts.to(weights) / self.config.num_proposals
        log_priors = log_prior_term(model.prior, proposals, self.prior_gradient, rng)
        learned, noise = likelihoods, model.draw_noise(len(proposals), rng)
        if noise is not None:  # the weights know nothing of it
            noisy = pairwise_squared_error(images, model.decode(proposals, noise))
            learned = log_likelihood(noisy, images[0].numel(), model.sigma)
        loss = importance_loss(weights, learned, log_priors)
        squared_error = (weights * errors.detach()).sum(-1).mean()
        metrics = {
            "reconstruction": -(weights * likelihoods.detach()).sum(-1).mean(),
            "prior": -(weights * log_priors.detach()).sum(-1).mean(),
            "ess": effective.mean(),
            "evidence_importance": log_mean_exp(likelihoods.detach(), -1).mean(),
        }
        return Terms(loss=loss, squared_error=squared_error, metrics=metrics)

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return prior samples: these are what the generator is given."""
        return model.prior.sample(max(self.config.num_proposals, 512), rng)


def resample(weights: Tensor, scheme: Resampling, rng: torch.Generator) -> Tensor:
    """Draw multiplicities for every row.

    Args:
        weights: Shape (B, N), rows summing to 1.
        scheme: `residual` keeps floor(N w_s) copies and draws the rest from what the floors left over;
            `systematic` inverts the row's distribution function at (i + U) / N with one U for all i,
            `stratified` with its own U_i.
        rng: Source of the draws.

    Returns:
        Whole numbers as floats, shape (B, N), rows summing to N.
    """
    num_rows, num = weights.shape
    match scheme:
        case "residual":
            return _resample_residual(weights, rng)
        case "systematic":
            offsets = torch.rand((num_rows, 1), generator=rng, dtype=torch.float64)
        case "stratified":
            offsets = torch.rand((num_rows, num), generator=rng, dtype=torch.float64)
        case _:
            assert_never(scheme)
    points = (torch.arange(num, dtype=torch.float64) + offsets) / num
    chosen = torch.searchsorted(weights.double().cumsum(-1), points.contiguous(), right=True)
    return _count(chosen.clamp_(max=num - 1), num).to(weights.dtype)


def _resample_residual(weights: Tensor, rng: torch.Generator) -> Tensor:
    expected = weights.double() / weights.double().sum(-1, keepdim=True) * weights.shape[-1]
    # An expectation that means a whole number must not lose one to the float32 rounding of its weight.
    counts = torch.floor(expected * (1.0 + 1e-6))
    leftover = (expected - counts).clamp_min(0.0)
    for row, missing in enumerate((weights.shape[-1] - counts.sum(-1)).round().long().tolist()):
        if missing > 0:
            drawn = torch.multinomial(leftover[row], missing, replacement=True, generator=rng)
            counts[row] += _count(drawn[None], weights.shape[-1])[0]
    return counts.to(weights.dtype)


def _count(indices: Tensor, num: int) -> Tensor:
    """Return how often each of 0 .. num - 1 occurs in a row: shape (B, M) -> (B, num), float64."""
    counts = torch.zeros(len(indices), num, dtype=torch.float64)
    return counts.scatter_add_(1, indices, torch.ones(indices.shape, dtype=torch.float64))
