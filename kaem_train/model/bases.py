"""Radial basis functions on knots: the family whose weighted sums are the univariate functions of a KAN.

B_g(z) = exp(-1/2 ((z - g) / w)^2) with w = h tau, h the knot spacing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_TAU_BOUND = math.log(4.0)


def uniform_knots(low: float, high: float, num_intervals: int) -> Tensor:
    """Return the G + 1 equally spaced knots of G intervals, shape (G + 1,), default dtype."""
    return torch.linspace(low, high, num_intervals + 1, dtype=torch.float64).to(torch.get_default_dtype())


def radial_width(spacing: Tensor, log_tau: Tensor) -> Tensor:
    """Return w = h tau, tau = exp(log_tau) kept in [1/4, 4] so that the quadrature always resolves a function."""
    return spacing * torch.exp(log_tau.clamp(-_LOG_TAU_BOUND, _LOG_TAU_BOUND))


def radial_features(z: Tensor, centers: Tensor, width: Tensor) -> Tensor:
    """Evaluate all basis functions.

    Args:
        z: Any shape S.
        centers: Shape (..., G + 1), leading axes broadcast against S.
        width: Standard deviation w; scalar, or leading axes like those of `centers` with a final 1.

    Returns:
        Shape (S, G + 1).
    """
    scaled = (z.unsqueeze(-1) - centers) / width
    return torch.exp(-0.5 * scaled * scaled)


def expected_radial_features(mean: Tensor, std: Tensor, centers: Tensor, width: Tensor) -> Tensor:
    """Expectation of the basis functions under z ~ N(mean, std^2), in closed form.

    E B_g(z) = w / sqrt(w^2 + s^2) exp(-(m - g)^2 / (2 (w^2 + s^2))).

    Args:
        mean: Any shape S.
        std: The same shape.
        centers: Shape (G + 1,).
        width: Scalar w.

    Returns:
        Shape (S, G + 1).
    """
    variance = (width * width + std * std).unsqueeze(-1)
    offset = mean.unsqueeze(-1) - centers
    return width / variance.sqrt() * torch.exp(-0.5 * offset * offset / variance)
