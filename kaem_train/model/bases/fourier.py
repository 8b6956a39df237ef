"""Sines and cosines.

B(z) = cos(2 pi g z tau / L) for g = 0..G and sin(2 pi g z tau / L) for g = 1..G, L the length of the domain. The
method's formula has no L, for its domain is [0, 1]; here the slowest wave fits any domain once at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kaem_train.model.bases.grid import lower_step, scale
from kaem_train.model.bases.protocol import Tensors
from kaem_train.model.bases.waves import cosine, sine

_CELLS_PER_WAVE = 5.0
_WIDEST_CELL = 0.5


@dataclass(frozen=True, slots=True)
class FourierBasis:
    """2 G + 1 waves; trains `log_tau` (), start 0; no knots.

    Attributes:
        grid_size: G.
        low: Lower end of the domain.
        high: Upper end.
    """

    grid_size: int
    low: float
    high: float
    knots_name = None
    tensor_names = ("log_tau",)
    is_shared = True
    is_scaled = True

    @property
    def size(self) -> int:
        """2 G + 1."""
        return 2 * self.grid_size + 1

    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {"log_tau": torch.zeros(())}

    def buffers(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {}

    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw c ~ N(0, 1 / (g + 1)^4): a rough start would be a rough function."""
        waves = torch.arange(self.grid_size + 1)
        return torch.randn(*functions, self.size) / (torch.cat([waves, waves[1:]]) + 1.0).square()

    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """See `Basis`."""
        angle = z.unsqueeze(-1) * self._frequencies(tensors)
        return torch.cat([cosine(angle), sine(angle[..., 1:])], -1)

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """E cos(k z) = cos(k m) exp(-k^2 s^2 / 2), and the same for the sine."""
        frequencies = self._frequencies(tensors)
        angle = mean.unsqueeze(-1) * frequencies
        damping = torch.exp(-0.5 * (std.unsqueeze(-1) * frequencies).square())
        return torch.cat([damping * angle.cos(), damping[..., 1:] * angle[..., 1:].sin()], -1)

    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """See `Basis`: a wave goes on for ever; the first is the constant 1."""
        greatest = torch.ones_like(tensors["log_tau"]).expand(self.size, 2)
        least = -greatest
        least[0] = 1.0
        return least, greatest

    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """None: waves are smooth everywhere."""
        return ()

    def cell(self, tensors: Tensors) -> float:
        """See `Basis`."""
        fastest = self.grid_size * math.sqrt(2.0) * lower_step(scale(tensors["log_tau"]))
        return min(_WIDEST_CELL, (self.high - self.low) / (_CELLS_PER_WAVE * fastest))

    def equal_step(self, tensors: Tensors) -> float | None:
        """See `Basis`."""
        return None

    def _frequencies(self, tensors: Tensors) -> Tensor:
        """Return 2 pi g tau / L, shape (G + 1,)."""
        log_tau = tensors["log_tau"]
        waves = torch.arange(self.grid_size + 1, dtype=log_tau.dtype, device=log_tau.device)
        return waves * (2.0 * math.pi / (self.high - self.low)) * scale(log_tau)
