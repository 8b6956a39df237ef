"""The training criteria: likelihood, evidence bound and the importance-sampled likelihood gradient.

Everything is in nats, sums over pixels and latents, and means over the batch. The prior is always the
normalised one, log Z differentiated through its quadrature (eq. 20): the zero-variance form of eq. 16.

The prior's part of the likelihood gradient, with an exact normaliser or by contrastive divergence.

Estimates of log p(x) from likelihoods along power posteriors: diagnostics, never a training loss.

With E_k the mean of log p(x|z) under p(z|x, t_k), and dt_k = t_k - t_{k-1}:

    steppingstone (eq. 23)       sum_k log E_{k-1} p(x|z)^dt_k
    thermodynamic (eqs. 21, 54)  sum_k dt_k (E_k + E_{k-1}) / 2
    corrected (eq. 55)           the same + sum_k [KL(p_{k-1} || p_k) - KL(p_k || p_{k-1})] / 2

`levels` holds log p(x|z) of samples at t_0 = 0 < t_1 < ... < t_N = 1, for each k a tensor (S_k, B); results
have shape (B,), in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, assert_never

import torch
from torch import Tensor

from kaem_train.model.prior.factorised import IndependentPrior, Prior


def log_likelihood(squared_error: Tensor, num_pixels: int, sigma: Tensor) -> Tensor:
    """Return log p(x|z) = -|x - G(z)|^2 / (2 sigma^2) - (D / 2) log(2 pi sigma^2) (eqs. 7-8).

    Args:
        squared_error: |x - G(z)|^2 summed over the D pixels, any shape.
        num_pixels: D = C H W.
        sigma: Standard deviation, scalar.

    Returns:
        The same shape.
    """
    variance = sigma * sigma
    return -0.5 * squared_error / variance - 0.5 * num_pixels * torch.log(2.0 * math.pi * variance)


def pairwise_squared_error(images: Tensor, means: Tensor) -> Tensor:
    """Return |x_b - G(z_s)|^2 for all pairs: shapes (B, C, H, W) and (N, C, H, W) -> (B, N)."""
    x, g = images.flatten(1), means.flatten(1)
    return (x * x).sum(1)[:, None] + (g * g).sum(1)[None, :] - 2.0 * x @ g.T


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return the entropy of a diagonal Gaussian: log deviations of shape (B, ...) -> (B,)."""
    return (log_std + 0.5 * math.log(2.0 * math.pi * math.e)).flatten(1).sum(1)


def standard_normal_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, I)) in closed form: shapes (B, ...) -> (B,)."""
    return (0.5 * (mean * mean + (2.0 * log_std).exp() - 1.0) - log_std).flatten(1).sum(1)


def importance_weights(log_likelihoods: Tensor) -> Tensor:
    """Return w = softmax over proposals of log p(x|z) for proposals from the prior (eqs. 37-38): (B, N)."""
    return torch.softmax(log_likelihoods.detach(), -1)


def effective_sample_size(weights: Tensor) -> Tensor:
    """Return 1 / sum_s w_s^2, between 1 and N: shape (B, N) -> (B,)."""
    return 1.0 / (weights * weights).sum(-1)


def importance_loss(weights: Tensor, log_likelihoods: Tensor, log_priors: Tensor) -> Tensor:
    """Return -(1/B) sum_b sum_s W_bs [log p(x_b|z_s) + log p(z_s)] (eqs. 4, 39), W held constant.

    Its gradient is the self-normalised estimate of the gradient of log p(x) (eq. 4). The weights are used
    as they are; they went through one softmax already.

    Args:
        weights: W, shape (B, N).
        log_likelihoods: Shape (B, N).
        log_priors: Shape (N,).
    """
    return -(weights.detach() * (log_likelihoods + log_priors)).sum(-1).mean()


PriorGradient = Literal["quadrature", "contrastive"]


def log_prior_term(prior: Prior, z: Tensor, gradient: PriorGradient, rng: torch.Generator) -> Tensor:
    """Return values whose gradient in the prior's parameters estimates that of log p(z).

    `quadrature` is log p(z) itself, log Z differentiated through eq. 20. `contrastive` is

        E(z+) - mean E(z-),    E(z) = sum_{q,p} f(z) + log pi0(z),    z- from the prior       (eq. 16)

    with as many z- as z+: equal in expectation (eq. 41), and noisy.

    Args:
        prior: The prior, of the independent variant where `gradient` is contrastive; the configuration sees to it.
        z: z+, held constant, inside the domain: shape (S, *latent_shape).
        gradient: Form of the gradient.
        rng: Source of z-.

    Returns:
        Shape (S,), in nats.
    """
    match gradient:
        case "quadrature":
            return prior.log_density(z)
        case "contrastive" if isinstance(prior, IndependentPrior):
            return _energy(prior, z) - _energy(prior, prior.sample(len(z), rng)).mean()
        case "contrastive":
            raise AssertionError("the configuration allows contrastive gradients of independent latents only")
        case _:
            assert_never(gradient)


def _energy(prior: IndependentPrior, z: Tensor) -> Tensor:
    return (prior.bank.paired(z) + prior.reference.paired(z)).sum((1, 2))


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """Return log of the mean of exponentials along `dim`.

    Of log p(x, z) / q(z) for z from q this is the importance sampling estimate of log p(x), below it in
    expectation.
    """
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def steppingstone_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the steppingstone estimate (eq. 23): each ratio Z_k / Z_{k-1} from samples of the colder side."""
    steps = temperatures.diff()
    return torch.stack([log_mean_exp(step * level, 0) for step, level in zip(steps, levels[:-1], strict=True)]).sum(0)


def thermodynamic_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the trapezium rule over E_t log p(x|z) (eqs. 21, 54), biased by its step size."""
    means = torch.stack([level.mean(0) for level in levels])
    return torch.trapezoid(means, temperatures, dim=0)


def corrected_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the trapezium rule corrected by its divergences (eq. 55), which is exact for exact expectations.

    The divergences contain Z_k / Z_{k-1} (eqs. 59-60). KL(p_{k-1} || p_k) takes it from the samples at k - 1,
    KL(p_k || p_{k-1}) from those at k, whose errors have opposite signs.
    """
    total = thermodynamic_evidence(levels, temperatures)
    for step, (colder, warmer) in zip(temperatures.diff(), pairwise(levels), strict=True):
        forward = -step * colder.mean(0) + log_mean_exp(step * colder, 0)
        backward = step * warmer.mean(0) + log_mean_exp(-step * warmer, 0)
        total = total + 0.5 * (forward - backward)
    return total
