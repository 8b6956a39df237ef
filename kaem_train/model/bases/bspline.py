"""Cubic B-splines on knots (Cox and de Boor).

The G + 1 knots are continued on both sides by three at their mean spacing h; there are G + 3 functions, each not
zero on four cells of the longer grid. Nothing is zero-padded inside [first, last]: there the functions sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import Basis, Tensors
from kaem_train.model.bases.grid import mean_spacing, widest_interval

_DEGREE = 3


class BSplineBasis(Basis):
    """G + 3 splines; trains nothing beside their coefficients; knots `knots`."""

    knots_name = "knots"
    tensor_names = ("knots",)

    @property
    @override
    def size(self) -> int:
        """G + 3."""
        return self.grid_size + _DEGREE

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """The recursion over degrees, 0 / 0 = 0; cells are half open, the last one is closed."""
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

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """None is below 0 or above 1, and outside its four cells each is 0."""
        knots = _extended(tensors["knots"])
        reaches = torch.stack([knots[: -_DEGREE - 1] < ends[0], knots[_DEGREE + 1 :] > ends[1]], -1)
        greatest = reaches.to(knots)
        return None, greatest

    @override
    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """The knots and their continuation: the third derivative jumps there."""
        return tuple(_extended(tensors["knots"]).tolist())

    @override
    def cell(self, tensors: Tensors) -> float:
        return widest_interval(tensors["knots"])


def _extended(knots: Tensor) -> Tensor:
    """Continue knots by three on each side: shape (*K, G + 1) -> (*K, G + 7)."""
    spacing = mean_spacing(knots)
    steps = spacing * torch.arange(1, _DEGREE + 1, dtype=knots.dtype, device=knots.device)
    return torch.cat([knots[..., :1] - steps.flip(-1), knots, knots[..., -1:] + steps], -1)


def _inverse(span: Tensor) -> Tensor:
    is_positive = span > 0
    return torch.where(is_positive, 1.0 / torch.where(is_positive, span, 1.0), 0.0)
