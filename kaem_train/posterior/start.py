"""Where the prior starts once latents of real images are known.

The common frame starts at their mean and principal axes. In its coordinates, experts start at clusters of posterior
means, found by k-means, and the other variants at univariate Gaussian mixtures. Experts with frames of their own start
at a Gaussian mixture.
"""

from __future__ import annotations

import math
import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from kaem_train.fitting.mixtures import fit_full_mixture
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import IndependentPrior, MixturePrior, Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior
from kaem_train.model.prior.reference import log_reference

_ITERATIONS = 30
_FRAME_ITERATIONS = 15
_CLUSTER_ITERATIONS = 15
_LEAST_STD = 0.25
_LEAST_COUNT = 1e-3
_SHRINKAGE = 5.0
"""Images' worth of weight that the variance of all clusters has in the variance of each."""


@torch.no_grad()
def start_prior(prior: Prior, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
    """Start the prior from the posteriors N(mean, diag std^2) of real images, its domain wide enough for them.

    Args:
        prior: Changed in place.
        mean: Shape (S, *latent_shape).
        std: Deviations of the posteriors, the shape of `mean`.
        rng: Source of the draws.
    """
    latents = mean + std * torch.randn(mean.shape, generator=rng, dtype=mean.dtype)
    _start_at(prior, latents, mean, std, rng)
    prior.widen(latents)


def _start_at(prior: Prior, latents: Tensor, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
    if isinstance(prior, OwnFramesPrior):
        seed = int(torch.randint(2**31, (), generator=rng))
        mixture = fit_full_mixture(latents, prior.num_components, seed=seed, iterations=_FRAME_ITERATIONS)
        prior.start(mixture.weights, mixture.means, mixture.covariances)
        return
    if prior.frame is not None:
        prior.frame.start(latents)
        latents = prior.frame.inverse(latents)
        mean, std = prior.frame.inverse_moments(mean, std)
    if isinstance(prior, ExpertsPrior):
        start_experts(prior, mean, std, rng)
    else:
        start_marginals(prior, latents)


@torch.no_grad()
def start_marginals(prior: MixturePrior | IndependentPrior, latents: Tensor) -> None:
    """Set the prior's energies so that its univariate densities match those of `latents`.

    A mixture coordinate gets P Gaussian components fitted by expectation maximisation; an independent
    latent gets one Gaussian. A learnable reference becomes that Gaussian; with any other, f = log Gaussian - log pi0
    is fitted by least squares where the Gaussian has its mass. Training shapes it from there.

    Args:
        prior: Changed in place.
        latents: Latents in the coordinates of the univariate densities, shape (S, *latent_shape).
    """
    columns = latents.double().flatten(1).T  # (functions or coordinates, S)
    is_mixture = isinstance(prior, MixturePrior)
    weights, means, stds = fit_gaussian_mixtures(columns, prior.num_components if is_mixture else 1)
    shape = (prior.num_latents, prior.num_components)
    means, stds = means.reshape(shape), stds.reshape(shape)
    if isinstance(prior, MixturePrior):
        prior.start_weights(weights)
    if prior.reference.is_learnable:
        prior.reference.start(means, stds)
        return
    low, high = prior.bank.range
    # Eight to a cell, and to half a cell beyond either end.
    nodes = torch.linspace(low, high, 8 * (round((high - low) / prior.bank.cell) + 1), dtype=torch.float64)
    log_normal = log_reference("gaussian", (nodes - means.unsqueeze(-1)) / stds.unsqueeze(-1))
    targets = log_normal - prior.reference.nodes(nodes)
    importance = log_normal.exp() + 1e-9
    dtype = prior.bank.coefficients.dtype
    prior.bank.fit(targets, importance / importance.sum(-1, keepdim=True), nodes.to(dtype))


def fit_gaussian_mixtures(columns: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit one univariate Gaussian mixture to every row, from quantile starts.

    Args:
        columns: Shape (F, S), float64.
        num_components: P.

    Returns:
        Weights, means and standard deviations, each of shape (F, P); weights of a row sum to 1 and are
        positive, deviations are at least 0.25 so that a few knots always resolve a component.
    """
    quantiles = (torch.arange(num_components, dtype=torch.float64) + 0.5) / num_components
    means = torch.quantile(columns, quantiles, dim=1).T
    stds = (columns.std(1, keepdim=True) / math.sqrt(num_components)).expand_as(means).clamp_min(_LEAST_STD)
    weights = torch.full_like(means, 1.0 / num_components)
    for _ in range(_ITERATIONS):
        scaled = (columns.unsqueeze(1) - means.unsqueeze(-1)) / stds.unsqueeze(-1)
        log_joint = log_reference("gaussian", scaled) + (weights / stds).log().unsqueeze(-1)
        responsibility = torch.softmax(log_joint, 1)  # (F, P, S)
        # One pseudo-observation keeps an empty component alive where it stands.
        mass = responsibility.sum(-1) + 1.0
        means = ((responsibility * columns.unsqueeze(1)).sum(-1) + means) / mass
        spread = (responsibility * (columns.unsqueeze(1) - means.unsqueeze(-1)) ** 2).sum(-1)
        stds = ((spread + stds * stds) / mass).sqrt().clamp_min(_LEAST_STD)
        weights = mass / mass.sum(-1, keepdim=True)
    return weights, means, stds


@torch.no_grad()
def start_experts(prior: ExpertsPrior, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
    """Set pi, m and s of the experts from K clusters; their radial coefficients stay near 0.

    m is a cluster's centre, pi its share, and s^2 = (n v + 5 v_all) / (n + 5): v is the variance inside the
    cluster plus the mean posterior variance, v_all its average over all n of all clusters.

    Args:
        prior: Changed in place.
        mean: Mean of the posteriors of S >= K images, in the coordinates of the univariate densities, shape (S, Q).
        std: Deviations of the posteriors, the shape of `mean`.
        rng: Decides where k-means starts.
    """
    from sklearn.cluster import KMeans  # a second to load, which a model that is only read does not need
    from sklearn.exceptions import ConvergenceWarning

    num_experts = prior.num_components
    points = mean.double()
    seed = int(torch.randint(2**31, (), generator=rng))
    # One thread: the order in which several add up their parts, and so the last bits, would change from run to run.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than experts: see below
        clusters = KMeans(num_experts, n_init=1, max_iter=_CLUSTER_ITERATIONS, random_state=seed).fit(points.numpy())
    member = torch.nn.functional.one_hot(torch.from_numpy(clusters.labels_).long(), num_experts).double()  # (S, K)
    count = member.sum(0)
    # Where fewer points than experts differ some clusters stay empty: such an expert waits at the mean of all.
    is_empty = (count == 0.0).unsqueeze(-1)
    centres = torch.where(is_empty, points.mean(0), (member.T @ points) / count.clamp_min(1.0).unsqueeze(-1))  # (K, Q)
    inside = member.T @ ((points - member @ centres).square() + std.double().square())  # (K, Q), summed over members
    everywhere = inside.sum(0) / len(points)
    variances = (inside + _SHRINKAGE * everywhere) / (count + _SHRINKAGE).unsqueeze(-1)
    prior.start(count.clamp_min(_LEAST_COUNT) / len(points), centres.T, variances.sqrt().T)
