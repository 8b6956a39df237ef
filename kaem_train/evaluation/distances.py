"""Distances between two sets of feature vectors, by torchmetrics, in float64.

    Frechet   |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2))         of Gaussians fitted to the sets (Heusel et al. 2017)
    kernel    unbiased squared maximum mean discrepancy for       (Binkowski et al. 2018)
              k(a, b) = (a.b / F + 1)^3, the mean over subsets

Features go through identity modules, so that a network runs once per image and not once per metric.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from kaem.errors import RequestError
from kaem_train.evaluation.features.network import Features

SUBSET = 1000
"""Vectors of each set in one subset of the kernel distance, where there are so many."""


class _Identity(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


class FrechetDistance:
    """The Frechet distance of any set to one real set, whose moments are computed once.

    Args:
        real: Shape (M, F), M at least 2.
    """

    def __init__(self, real: Features) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance  # seconds to load: mistakes are answered sooner

        _require_two(real)
        self._metric = FrechetInceptionDistance(_Identity(real.shape[1]), reset_real_features=False)
        self._metric.update(_float64(real), real=True)

    def to(self, features: Features) -> float:
        """Return the distance of `features`, shape (N, F), N at least 2, to the real set."""
        _require_two(features)
        self._metric.reset()
        self._metric.update(_float64(features), real=False)
        return float(self._metric.compute())


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        mean: Over the subsets.
        deviation: Between the subsets.
        subset_size: Vectors of each set in a subset.
    """

    mean: float
    deviation: float
    subset_size: int


def kernel_distance(real: Features, generated: Features, *, num_subsets: int, seed: int) -> KernelDistance:
    """Return the kernel distance between two sets.

    Args:
        real: Shape (M, F), M at least 2.
        generated: Shape (N, F), N at least 2.
        num_subsets: Random subsets to average over.
        seed: Seed of their choice.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    for features in (real, generated):
        _require_two(features)
    size = min(SUBSET, len(real), len(generated))
    with warnings.catch_warnings():
        # It says that it keeps all features, which are in memory anyway.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance`", UserWarning)
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=num_subsets, subset_size=size)
    metric.update(_float64(real), real=True)
    metric.update(_float64(generated), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torchmetrics draws its subsets from the global generator
        mean, deviation = metric.compute()
    return KernelDistance(mean=float(mean), deviation=float(deviation), subset_size=size)


def _float64(features: Features) -> torch.Tensor:
    return torch.from_numpy(features).double()


def _require_two(features: Features) -> None:
    if len(features) < 2:
        raise RequestError(
            f"{len(features)} image gives no covariance; at least 2 are needed", hint="raise --num or --num-real"
        )
