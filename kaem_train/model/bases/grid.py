"""Knots: where they start and where samples move them; and the trained scale that widths are measured in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_TAU_BOUND = math.log(4.0)
_LEAST_SPAN = 1e-3


def uniform_knots(low: float, high: float, num_intervals: int) -> Tensor:
    """Return the G + 1 equally spaced knots of G intervals, shape (G + 1,), default dtype."""
    return torch.linspace(low, high, num_intervals + 1, dtype=torch.float64).to(torch.get_default_dtype())


def mixed_knots(samples: Tensor, num_intervals: int, uniform_share: float) -> Tensor:
    """Return knots r u + (1 - r) a (section 2.4 of the method; Liu et al.).

    a are quantiles of the samples, x_(floor(n j / G)) and the largest; u are equally spaced between the same ends.

    Args:
        samples: Shape (S, *K), a column per grid.
        num_intervals: G.
        uniform_share: r: 1 is equal spacing, 0 quantiles.

    Returns:
        Shape (*K, G + 1), ascending.
    """
    ordered = samples.sort(0).values
    ranks = [min(len(samples) * j // num_intervals, len(samples) - 1) for j in range(num_intervals + 1)]
    adaptive = ordered[ranks].movedim(0, -1)
    steps = torch.linspace(0.0, 1.0, num_intervals + 1, dtype=samples.dtype, device=samples.device)
    span = (adaptive[..., -1:] - adaptive[..., :1]).clamp_min(_LEAST_SPAN)
    uniform = adaptive[..., :1] + steps * span
    return uniform_share * uniform + (1.0 - uniform_share) * adaptive


def mean_spacing(knots: Tensor) -> Tensor:
    """Return h = (last - first) / G: shape (*K, G + 1) -> (*K, 1), or () without leading axes."""
    if knots.dim() == 1:
        return (knots[-1] - knots[0]) / (len(knots) - 1)
    return (knots[..., -1:] - knots[..., :1]) / (knots.shape[-1] - 1)


def widest_interval(knots: Tensor) -> float:
    """Return the largest spacing of a bank's knots, but no more than their mean spacing where they are uneven."""
    knots = knots.detach().to("cpu", torch.float64)
    # A rounding more than the mean is allowed, so that equal knots count as equal.
    return min(float(knots.diff().max()), 1.01 * float(mean_spacing(knots)))


def gaps_beyond(centres: Tensor, ends: Tensor) -> Tensor:
    """Return how far centres lie from (-inf, low] and from [high, inf), `ends` being (low, high): S -> (*S, 2)."""
    return torch.stack([centres - ends[0], ends[1] - centres], -1).clamp_min(0.0)


def scale(log_tau: Tensor) -> Tensor:
    """Return tau = exp(log_tau), kept in [1/4, 4] so that the quadrature always resolves a function."""
    return torch.exp(log_tau.clamp(-_LOG_TAU_BOUND, _LOG_TAU_BOUND))


def lower_step(value: Tensor) -> float:
    """Return the largest power of sqrt 2 that is at most `value`, a scalar.

    Cells follow a trained scale in such steps, so the nodes of a quadrature rule seldom change.
    """
    return float(2.0 ** (math.floor(2.0 * math.log2(float(value.detach())) + 1e-6) / 2.0))
