"""Sines and cosines.

B(z) = cos(2 pi g z tau / L) for g = 0..G and sin(2 pi g z tau / L) for g = 1..G, L the length of the domain. The
method's formula has no L, for its domain is [0, 1]; here the slowest wave fits any domain once at the start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import Basis, Tensors
from kaem_train.model.bases.grid import lower_step, scale
from kaem_train.model.bases.waves import cosine, sine

_CELLS_PER_WAVE = 5.0
_WIDEST_CELL = 0.5


class FourierBasis(Basis):
    """2 G + 1 waves; trains `log_tau` (), start 0; no knots."""

    tensor_names = ("log_tau",)

    @property
    @override
    def size(self) -> int:
        """2 G + 1."""
        return 2 * self.grid_size + 1

    @override
    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        return {"log_tau": torch.zeros(())}

    @override
    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw c ~ N(0, 1 / (g + 1)^4): a rough start would be a rough function."""
        waves = torch.arange(self.grid_size + 1)
        return torch.randn(*functions, self.size) / (torch.cat([waves, waves[1:]]) + 1.0).square()

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        angle = z.unsqueeze(-1) * self._frequencies(tensors)
        return torch.cat([cosine(angle), sine(angle[..., 1:])], -1)

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """E cos(k z) = cos(k m) exp(-k^2 s^2 / 2), and the same for the sine."""
        frequencies = self._frequencies(tensors)
        angle = mean.unsqueeze(-1) * frequencies
        damping = torch.exp(-0.5 * (std.unsqueeze(-1) * frequencies).square())
        return torch.cat([damping * angle.cos(), damping[..., 1:] * angle[..., 1:].sin()], -1)

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """A wave goes on for ever; the first is the constant 1."""
        greatest = torch.ones_like(tensors["log_tau"]).expand(self.size, 2)
        least = -greatest
        least[0] = 1.0
        return least, greatest

    @override
    def cell(self, tensors: Tensors) -> float:
        fastest = self.grid_size * math.sqrt(2.0) * lower_step(scale(tensors["log_tau"]))
        return min(_WIDEST_CELL, (self.high - self.low) / (_CELLS_PER_WAVE * fastest))

    def _frequencies(self, tensors: Tensors) -> Tensor:
        """Return 2 pi g tau / L, shape (G + 1,)."""
        log_tau = tensors["log_tau"]
        waves = torch.arange(self.grid_size + 1, dtype=log_tau.dtype, device=log_tau.device)
        return waves * (2.0 * math.pi / (self.high - self.low)) * scale(log_tau)
