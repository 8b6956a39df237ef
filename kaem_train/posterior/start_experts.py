"""Where the experts start: at clusters of encoded images, found by k-means on the posterior means."""

from __future__ import annotations

import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from kaem_train.model.experts import ExpertsPrior

_ITERATIONS = 15
_LEAST_COUNT = 1e-3
_SHRINKAGE = 5.0
"""Images' worth of weight that the variance of all clusters has in the variance of each."""


@torch.no_grad()
def start_experts(prior: ExpertsPrior, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
    """Set pi, m and s of the experts from K clusters; their radial coefficients stay near 0.

    m is a cluster's centre, pi its share, and s^2 = (n v + 5 v_all) / (n + 5): v is the variance inside the
    cluster plus the mean posterior variance, v_all its average over all n of all clusters.

    Args:
        prior: Changed in place.
        mean: Mean of the posteriors of S >= K images, in the coordinates of the univariate densities, shape (S, Q).
        std: The same shape.
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
        clusters = KMeans(num_experts, n_init=1, max_iter=_ITERATIONS, random_state=seed).fit(points.numpy())
    member = torch.nn.functional.one_hot(torch.from_numpy(clusters.labels_).long(), num_experts).double()  # (S, K)
    count = member.sum(0)
    # Where fewer points than experts differ some clusters stay empty: such an expert waits at the mean of all.
    is_empty = (count == 0.0).unsqueeze(-1)
    centres = torch.where(is_empty, points.mean(0), (member.T @ points) / count.clamp_min(1.0).unsqueeze(-1))  # (K, Q)
    inside = member.T @ ((points - member @ centres).square() + std.double().square())  # (K, Q), summed over members
    everywhere = inside.sum(0) / len(points)
    variances = (inside + _SHRINKAGE * everywhere) / (count + _SHRINKAGE).unsqueeze(-1)
    prior.start(count.clamp_min(_LEAST_COUNT) / len(points), centres.T, variances.sqrt().T)
