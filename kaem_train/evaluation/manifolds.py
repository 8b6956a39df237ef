"""Improved precision and recall (Kynkaanniemi et al. 2019): quality and variety, apart.

The manifold of a set is the union of balls about its feature vectors, each reaching to the vector's k-th nearest
neighbour in the set. Precision is the share of generated images inside the manifold of the real ones, recall
the share of real images inside the manifold of the generated ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kaem.errors import RequestError
from kaem_train.evaluation.features.network import Features

NEIGHBOURS = 3
"""k."""

_TOGETHER = 1000


def precision_and_recall(real: Features, generated: Features) -> tuple[float, float]:
    """Return (precision, recall) with k = 3.

    Args:
        real: Shape (M, F), M > k.
        generated: Shape (N, F), N > k; N = M makes the two figures comparable with each other.

    Raises:
        RequestError: A set has not enough vectors for a k-th neighbour.
    """
    if min(len(real), len(generated)) <= NEIGHBOURS:
        raise RequestError(
            f"{len(real)} real and {len(generated)} generated images have no {NEIGHBOURS} neighbours each",
            hint="raise --num or --num-real",
        )
    reals, generateds = torch.from_numpy(real).double(), torch.from_numpy(generated).double()
    return _share_inside(generateds, reals), _share_inside(reals, generateds)


def _share_inside(points: Tensor, centres: Tensor) -> float:
    radii = torch.cat(
        [
            # The nearest of all is the vector itself.
            _distances(part, centres).kthvalue(NEIGHBOURS + 1, dim=1).values
            for part in torch.split(centres, _TOGETHER)
        ]
    )
    inside = [(_distances(part, centres) <= radii).any(1) for part in torch.split(points, _TOGETHER)]
    return float(torch.cat(inside).double().mean())


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    # By matrix products, which in float64 lose nothing that matters here.
    return torch.cdist(points, centres, compute_mode="use_mm_for_euclid_dist")
