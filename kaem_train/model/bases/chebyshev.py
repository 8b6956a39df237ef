"""Chebyshev polynomials of a squashed argument.

B_g(z) = T_g(tanh(z) / 1.001) for g = 0..G, by their recurrence: cos(g acos x) has no derivative at |x| = 1. The sum
has no factor w_s in front.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import Basis, Tensors

_SQUASH = 1.001
_CELLS_PER_WAVE = 5.0
_WIDEST_CELL = 0.5


class ChebyshevBasis(Basis):
    """G + 1 polynomials; trains nothing beside their coefficients; no knots."""

    is_scaled = False

    @property
    @override
    def size(self) -> int:
        """G + 1."""
        return self.grid_size + 1

    @override
    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw c ~ N(0, 1 / (I (G + 1))^2)."""
        return torch.randn(*functions, self.size) / (functions[1] * self.size)

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """T_(g+1) = 2 x T_g - T_(g-1)."""
        x = torch.tanh(z) / _SQUASH
        polynomials = [torch.ones_like(x), x]
        while len(polynomials) < self.size:
            polynomials.append(2.0 * x * polynomials[-1] - polynomials[-2])
        return torch.stack(polynomials, -1)

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """T_g(x) = cos(g acos x), which between two points moves by the arc at most."""
        outwards = torch.arange(-1.0, 2.0, 2.0, dtype=ends.dtype, device=ends.device)
        angles = torch.acos(torch.stack([ends.tanh(), outwards]) / _SQUASH)  # (2, 2): at the ends, and at infinity
        degrees = torch.arange(self.size, dtype=ends.dtype, device=ends.device)[:, None]
        values = torch.cos(degrees[:, None] * angles)  # (size, 2, 2)
        slack = degrees * (angles[0] - angles[1]).abs()
        return (values.amin(1) - slack).clamp_min(-1.0), (values.amax(1) + slack).clamp_max(1.0)

    @override
    def cell(self, tensors: Tensors) -> float:
        """T_g(tanh z) is about cos(g theta) with |d theta / dz| <= 1."""
        return min(_WIDEST_CELL, 2.0 * math.pi / (_CELLS_PER_WAVE * self.grid_size))
