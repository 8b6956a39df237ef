"""Gaussian mixtures with full covariances, fitted to latents by expectation maximisation (scikit-learn's).

Maximum likelihood gives a component of n images in Q dimensions a covariance of Q^2 / 2 numbers, far too free
where n is not many times Q. Each is therefore shrunk to the average of all, as if Q images more had that spread.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

_SCORED_TOGETHER = 512
_LEAST_VARIANCE = 1e-4
"""Of a principal axis, in units of the largest one's: float32 resolves u = W^-1 (z - b) from z."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMixture:
    """A Gaussian mixture in float64.

    Attributes:
        weights: pi, shape (K,), positive, summing to 1.
        means: Shape (K, Q).
        covariances: Shape (K, Q, Q), positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats: shape (S, Q) -> (S,), float64."""
        mixture = MixtureSameFamily(Categorical(self.weights), MultivariateNormal(self.means, self.covariances))
        parts = torch.split(z.double(), _SCORED_TOGETHER)
        return torch.cat([mixture.log_prob(part) for part in parts])  # type: ignore[no-untyped-call]


def fit_full_mixture(
    latents: Tensor, num_components: int, *, seed: int, draws: int = 1, iterations: int = 30
) -> FullMixture:
    """Fit K Gaussians, from a k-means start; the same inputs give the same bits.

    Args:
        latents: Shape (S, Q), S >= max(2, K).
        num_components: K.
        seed: Decides where k-means starts, in [0, 2^32).
        draws: Latents of the same image among them: they are not as many images as they are points.
        iterations: Number of iterations of expectation maximisation, at most.
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to load, which no other use of this module needs
    from sklearn.mixture import GaussianMixture

    points = latents.double().cpu()
    spread = float(points.var(0).mean())
    model = GaussianMixture(
        num_components,
        covariance_type="full",
        reg_covar=_LEAST_VARIANCE * max(spread, _LEAST_VARIANCE),
        max_iter=iterations,
        random_state=seed,
    )
    # One thread: the order in which several add up their parts, and so the last bits, would change from run to run.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the held-out likelihood judges the result
        model.fit(points.numpy())
    weights, means, covariances = (
        torch.from_numpy(part) for part in (model.weights_, model.means_, model.covariances_)
    )
    weights = weights.clamp_min(1e-9)
    weights = weights / weights.sum()
    return FullMixture(
        weights=weights,
        means=means,
        covariances=_raise_variances(_shrink(weights * (len(points) / draws), covariances)),
    )


def _shrink(counts: Tensor, covariances: Tensor) -> Tensor:
    """Return (n_k C_k + Q C) / (n_k + Q), C the average of all, weighted by n_k: shape (K, Q, Q)."""
    prior_count = float(covariances.shape[-1])
    counts = counts[:, None, None]
    average = (counts * covariances).sum(0) / counts.sum()
    return (counts * covariances + prior_count * average) / (counts + prior_count)


def _raise_variances(covariances: Tensor) -> Tensor:
    """Raise the variances of principal axes to 1e-4 of the largest one's, itself at least 1e-4."""
    variances, axes = torch.linalg.eigh(covariances)
    least = _LEAST_VARIANCE * variances[:, -1:].clamp_min(_LEAST_VARIANCE)
    raised: Tensor = (axes * variances.clamp_min(least).unsqueeze(-2)) @ axes.mT
    return raised
