"""The training criteria: likelihood, evidence bound and the importance-sampled likelihood gradient.

Everything is in nats, sums over pixels and latents, and means over the batch. The prior is always the
normalised one, log Z differentiated through its quadrature (eq. 20): the zero-variance form of eq. 16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
