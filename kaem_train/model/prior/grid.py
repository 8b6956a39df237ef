"""Where the grid of a prior follows its latents (section 2.4 of the method)."""

from __future__ import annotations

import torch
from torch import Tensor

from kaem_train.model.bases import mixed_knots

_TAIL = 0.001
_MARGIN = 0.1
_FITTED_SAMPLES = 1024
_FITTED_PER_KNOT = 8
_SHARE_OF_SAMPLES = 0.9
_SHARE_OF_ALL = 1e-3

Range = tuple[float, float]


def find_used_range(samples: Tensor, domain: Range) -> Range:
    """Return [q_0.001 - 0.1 w, q_0.999 + 0.1 w], w = q_0.999 - q_0.001, as far as it lies in the domain."""
    values = samples.flatten().double().sort().values
    tail = int(_TAIL * len(values))
    lower, upper = float(values[tail]), float(values[-1 - tail])
    margin = _MARGIN * (upper - lower)
    return max(lower - margin, domain[0]), min(upper + margin, domain[1])


def place_knots(samples: Tensor, num_intervals: int, ratio: float, ends: Range) -> Tensor:
    """Return knots that follow samples between two ends, for functions that all share them.

    Args:
        samples: Any shape; all latents together.
        num_intervals: G.
        ratio: Share of equal spacing, the rest follows quantiles.
        ends: First and last knot.

    Returns:
        Shape (G + 1,), ascending.
    """
    values = samples.flatten().clamp(*ends)
    return mixed_knots(torch.cat([values, values.new_tensor(ends)]), num_intervals, ratio)


def fit_points(samples: Tensor, num_knots: int, domain: Range) -> tuple[Tensor, int]:
    """Return points for the refit of coefficients: quantiles of the samples, then the whole domain in equal steps.

    The density is defined on the domain, so the functions must keep their values where no sample is, too.

    Args:
        samples: Any shape.
        num_knots: G + 1.
        domain: Its ends.

    Returns:
        Points, shape (M,), and how many of them are quantiles.
    """
    values = samples.flatten().sort().values
    ranks = torch.linspace(0, len(values) - 1, min(len(values), _FITTED_SAMPLES)).round().long()
    everywhere = torch.linspace(*domain, _FITTED_PER_KNOT * num_knots, dtype=values.dtype)
    return torch.cat([values[ranks].clamp(*domain), everywhere]), len(ranks)


def fit_weights(density: Tensor, num_quantiles: int) -> Tensor:
    """Return the importance of the points of `fit_points`.

    Nine tenths go to the quantiles, the rest to the domain in proportion to the density there: an error matters
    where there is mass. A small share goes to all of the domain, lest mass should arise where there was none.

    Args:
        density: Density of the prior at the points, up to a factor, shape (M,).
        num_quantiles: How many of the points are quantiles.

    Returns:
        Shape (M,).
    """
    weights = torch.full_like(density, _SHARE_OF_SAMPLES / num_quantiles)
    everywhere = density[num_quantiles:]
    share = (1.0 - _SHARE_OF_SAMPLES) * everywhere / everywhere.sum() + _SHARE_OF_ALL / len(everywhere)
    weights[num_quantiles:] = share
    return weights
