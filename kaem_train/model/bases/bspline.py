"""Cubic B-splines on knots (Cox and de Boor).

The G + 1 knots are continued on both sides by three at their mean spacing h; there are G + 3 functions, each not
zero on four cells of the longer grid. Nothing is zero-padded inside [first, last]: there the functions sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kaem_train.model.bases.grid import mean_spacing, uniform_knots, widest_interval
from kaem_train.model.bases.protocol import Tensors

_DEGREE = 3


@dataclass(frozen=True, slots=True)
class BSplineBasis:
    """G + 3 splines; trains nothing beside their coefficients; knots `knots`.

    Attributes:
        grid_size: G.
        low: First knot at the start.
        high: Last knot.
    """

    grid_size: int
    low: float
    high: float
    knots_name = "knots"
    tensor_names = ("knots",)
    is_shared = True
    is_scaled = True

    @property
    def size(self) -> int:
        """G + 3."""
        return self.grid_size + _DEGREE

    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {}

    def buffers(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {"knots": uniform_knots(self.low, self.high, self.grid_size).repeat(*rows, 1)}

    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """See `Basis`: zeros, for there are knots."""
        return torch.zeros(*functions, self.size)

    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """See `Basis`: the recursion over degrees, 0 / 0 = 0; cells are half open, the last one is closed."""
        knots = _extended(tensors["knots"])
        z = z.unsqueeze(-1)
        is_last = torch.zeros(knots.shape[-1] - 1, dtype=torch.bool, device=knots.device)
        is_last[-1] = True
        is_inside = (z >= knots[..., :-1]) & ((z < knots[..., 1:]) | (is_last & (z == knots[..., 1:])))
        spline = is_inside.to(z.dtype)
        for degree in range(1, _DEGREE + 1):
            inverse = _inverse(knots[..., degree:] - knots[..., :-degree])
            rising = (z - knots[..., : -degree - 1]) * inverse[..., :-1]
            falling = (knots[..., degree + 1 :] - z) * inverse[..., 1:]
            spline = rising * spline[..., :-1] + falling * spline[..., 1:]
        return spline

    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """See `Basis`: none is below 0 or above 1, and outside its four cells each is 0."""
        knots = _extended(tensors["knots"])
        reaches = torch.stack([knots[: -_DEGREE - 1] < ends[0], knots[_DEGREE + 1 :] > ends[1]], -1)
        greatest = reaches.to(knots)
        return None, greatest

    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """The knots and their continuation: the third derivative jumps there."""
        return tuple(_extended(tensors["knots"]).tolist())

    def cell(self, tensors: Tensors) -> float:
        """See `Basis`."""
        return widest_interval(tensors["knots"])

    def equal_step(self, tensors: Tensors) -> float | None:
        """See `Basis`."""
        return None


def _extended(knots: Tensor) -> Tensor:
    """Continue knots by three on each side: shape (*K, G + 1) -> (*K, G + 7)."""
    spacing = mean_spacing(knots)
    steps = spacing * torch.arange(1, _DEGREE + 1, dtype=knots.dtype, device=knots.device)
    return torch.cat([knots[..., :1] - steps.flip(-1), knots, knots[..., -1:] + steps], -1)


def _inverse(span: Tensor) -> Tensor:
    is_positive = span > 0
    return torch.where(is_positive, 1.0 / torch.where(is_positive, span, 1.0), 0.0)
