"""Composite Gauss-Legendre quadrature on cells, and the exact cumulative distribution built from cell masses.

Cells end at the knots and kinks of the integrand and at the ends of its support, so the integrand is smooth
in every cell. F at a cell's edge is the sum of the masses of the cells before it. (Partial sums of the terms
of one global rule are not F at its nodes: they lag by half a weight.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_SAMPLING_ORDER = 6

LogDensity = Callable[[Tensor], Tensor]
"""Maps nodes, shape (M,) float64, to unnormalised log densities, shape (..., M)."""


def cell_edges(
    low: float, high: float, knots: Sequence[float], breaks: Iterable[float] = (), *, widest: float
) -> Tensor:
    """Return ascending cell boundaries over [low, high], shape (E,), float64.

    Every knot and break inside the domain is an edge; no cell is wider than `widest`.
    """
    inside = {float(point) for point in (*knots, *breaks) if low < point < high}
    points = [low, *sorted(inside), high]
    # Knots from float32 grids sit a rounding error beside a break (0.0) or an end; such slivers are merged.
    tolerance = 1e-6 * (high - low)
    exact = {low, high, *breaks}
    merged = [low]
    for point in points[1:]:
        if point - merged[-1] > tolerance:
            merged.append(point)
        elif point in exact:
            merged[-1] = point
    pieces = []
    for start, end in pairwise(merged):
        count = max(1, round((end - start) / widest + 0.499))
        pieces.append(torch.linspace(start, end, count + 1, dtype=torch.float64)[:-1])
    return torch.cat([*pieces, torch.tensor([high], dtype=torch.float64)])


def gauss_legendre(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the `order`-point rule in every cell.

    Args:
        edges: Shape (E,), float64.
        order: Nodes per cell; exact for polynomials of degree 2 order - 1 in a cell.

    Returns:
        Nodes and weights, each of shape (E - 1, order), float64.
    """
    points, weights = (torch.from_numpy(part).to(edges.device) for part in np.polynomial.legendre.leggauss(order))
    half = 0.5 * edges.diff().unsqueeze(-1)
    middle = 0.5 * (edges[1:] + edges[:-1]).unsqueeze(-1)
    return middle + half * points, half * weights


def trapezoid(low: float, high: float, *, spacing: float) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the trapezoidal rule on [low, high], steps at most `spacing`; both (M,), float64."""
    count = math.ceil((high - low) / spacing)
    weights = torch.full((count + 1,), (high - low) / count, dtype=torch.float64)
    weights[[0, -1]] *= 0.5
    return torch.linspace(low, high, count + 1, dtype=torch.float64), weights


@dataclass(frozen=True, slots=True)
class Cumulative:
    """Cumulative distribution functions of a family of densities, exact at the cell edges.

    Inside a cell the density is linear between its values at the two edges, scaled to the cell's exact
    mass; that makes the inverse a closed form.

    Attributes:
        edges: Shape (E,), float64.
        at_edges: F at the edges, shape (..., E), float64; first 0, last 1.
        left: Mass-matched density at each cell's left edge times its width, shape (..., E - 1).
        right: Mass-matched density at each cell's right edge times its width, shape (..., E - 1).
        log_total: Logarithm of the normaliser Z (eq. 20), shape (...).
    """

    edges: Tensor
    at_edges: Tensor
    left: Tensor
    right: Tensor
    log_total: Tensor

    def of_component(self, p: int) -> Cumulative:
        """Return the functions of component p alone: shapes (Q, P, .) -> (Q, .)."""
        return Cumulative(
            self.edges, self.at_edges[:, p].contiguous(), self.left[:, p], self.right[:, p], self.log_total[:, p]
        )

    def invert(self, uniform: Tensor) -> Tensor:
        """Return F^-1(u) (Algorithm 1): shape (..., M) in [0, 1] -> (..., M), float64."""
        last = len(self.edges) - 2
        cell = torch.searchsorted(self.at_edges, uniform.contiguous(), right=True).sub_(1).clamp_(0, last)
        excess = uniform - self.at_edges.gather(-1, cell)
        left, right = self.left.gather(-1, cell), self.right.gather(-1, cell)
        root = (left * left + 2.0 * (right - left) * excess).clamp_min(0.0).sqrt()
        # The rationalised quadratic formula keeps its digits where the density is flat.
        fraction = torch.where(excess > 0.0, 2.0 * excess / (left + root), torch.zeros_like(excess))
        return self.edges[cell] + fraction.clamp(0.0, 1.0) * self.edges.diff()[cell]


def integrate(log_density: LogDensity, edges: Tensor) -> Cumulative:
    """Integrate densities over cells (section 2.7 of the method; eq. 20 and Algorithm 1 of the paper).

    Args:
        log_density: Unnormalised; may return any floating dtype.
        edges: Shape (E,), float64, with the integrand smooth in every cell.

    Returns:
        The normalised cumulative functions.
    """
    nodes, weights = gauss_legendre(edges, _SAMPLING_ORDER)
    values = log_density(nodes.flatten()).double()
    at_edges = log_density(edges).double()
    shift = torch.maximum(values.amax(-1, keepdim=True), at_edges.amax(-1, keepdim=True))
    density = torch.exp(values - shift).reshape(*values.shape[:-1], *nodes.shape)
    masses = (density * weights).sum(-1)
    total = masses.sum(-1, keepdim=True)
    cumulative = torch.nn.functional.pad(masses.cumsum(-1) / total, (1, 0)).clamp_max(1.0)
    cumulative[..., -1] = 1.0
    ends = torch.exp(at_edges - shift)
    mean_end = 0.5 * (ends[..., :-1] + ends[..., 1:])
    # A cell whose both ends are (numerically) empty gets a flat density of its own mass.
    is_flat = mean_end <= torch.finfo(torch.float64).tiny
    share = masses / total
    left = torch.where(is_flat, share, share * ends[..., :-1] / mean_end)
    right = torch.where(is_flat, share, share * ends[..., 1:] / mean_end)
    return Cumulative(edges, cumulative, left, right, (total.log() + shift).squeeze(-1))
