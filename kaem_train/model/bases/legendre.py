"""Legendre polynomials, which are orthogonal on the domain.

B_g(z) = P_g(x) for g = 0..G, with x = (2 z - low - high) / (high - low), held inside [-1, 1]: beyond the domain all
functions keep the values that they have at its ends. (g + 1) P_(g+1) = (2 g + 1) x P_g - g P_(g-1) is stable there
(Abramowitz & Stegun 1964, 22.7.10). The sum has no factor w_s in front.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import Basis, Tensors

_WIDEST_CELL = 0.5


class LegendreBasis(Basis):
    """G + 1 polynomials; trains nothing beside their coefficients; no knots."""

    is_scaled = False

    @property
    @override
    def size(self) -> int:
        """G + 1."""
        return self.grid_size + 1

    @property
    @override
    def kinks(self) -> tuple[float, ...]:
        """Both ends of the domain, where the functions become constant."""
        return (self.low, self.high)

    @override
    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw c ~ N(0, 1 / (I (G + 1))^2)."""
        return torch.randn(*functions, self.size) / (functions[1] * self.size)

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        x = ((2.0 * z - (self.low + self.high)) / (self.high - self.low)).clamp(-1.0, 1.0)
        polynomials = [torch.ones_like(x), x]
        for g in range(1, self.grid_size):
            polynomials.append(((2 * g + 1) * x * polynomials[-1] - g * polynomials[-2]) / (g + 1))
        return torch.stack(polynomials, -1)

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """Beyond ends that lie at the domain's or outside, functions are constant; |P_g| <= 1 elsewhere."""
        values = self.features(ends, tensors).T  # (size, 2)
        is_constant = torch.stack([ends[0] <= self.low, ends[1] >= self.high])
        return torch.where(is_constant, values, -1.0), torch.where(is_constant, values, 1.0)

    @override
    def cell(self, tensors: Tensors) -> float:
        """At an end of the domain the slope is G (G + 1) / 2: a polynomial falls by 1 in about 1 / G^2 of it."""
        return min(_WIDEST_CELL, (self.high - self.low) * math.pi / (2.0 * self.grid_size**2))
