"""Radial basis functions on knots.

B_g(z) = exp(-1/2 ((z - g) / w)^2) with w = h tau, h the mean knot spacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kaem_train.model.bases.grid import gaps_beyond, lower_step, mean_spacing, scale, uniform_knots, widest_interval
from kaem_train.model.bases.protocol import Tensors

_EQUAL_STEPS_PER_CELL = 3.6


@dataclass(frozen=True, slots=True)
class RbfBasis:
    """G + 1 Gaussians; trains `log_tau` (), start 0; knots `centers`.

    Attributes:
        grid_size: G.
        low: First knot at the start.
        high: Last knot.
    """

    grid_size: int
    low: float
    high: float
    knots_name = "centers"
    tensor_names = ("log_tau", "centers")
    is_shared = True
    is_scaled = True

    @property
    def size(self) -> int:
        """G + 1."""
        return self.grid_size + 1

    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {"log_tau": torch.zeros(())}

    def buffers(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Basis`."""
        return {"centers": uniform_knots(self.low, self.high, self.grid_size).repeat(*rows, 1)}

    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """See `Basis`: zeros, for there are knots."""
        return torch.zeros(*functions, self.size)

    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """See `Basis`."""
        scaled = (z.unsqueeze(-1) - tensors["centers"]) / self._width(tensors)
        return torch.exp(-0.5 * scaled * scaled)

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """E B_g(z) = w / sqrt(w^2 + s^2) exp(-(m - g)^2 / (2 (w^2 + s^2)))."""
        width = self._width(tensors)
        variance = (width * width + std * std).unsqueeze(-1)
        offset = mean.unsqueeze(-1) - tensors["centers"]
        return width / variance.sqrt() * torch.exp(-0.5 * offset * offset / variance)

    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """See `Basis`: a bump is above 0, and highest at the point next to its centre."""
        greatest = torch.exp(-0.5 * (gaps_beyond(tensors["centers"], ends) / self._width(tensors)).square())
        return None, greatest

    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """The knots: nothing breaks there, but cells between them suit the Gaussians best."""
        return tuple(tensors["centers"].tolist())

    def cell(self, tensors: Tensors) -> float:
        """See `Basis`."""
        # Not finer for a width that has shrunk by less than sqrt 2: there the rule is as good as float32 can tell.
        return widest_interval(tensors["centers"]) * min(1.0, math.sqrt(2.0) * lower_step(scale(tensors["log_tau"])))

    def equal_step(self, tensors: Tensors) -> float | None:
        """See `Basis`: Gaussians vanish at both ends, where equal steps are more accurate than any other rule."""
        return self.cell(tensors) / _EQUAL_STEPS_PER_CELL

    def _width(self, tensors: Tensors) -> Tensor:
        return mean_spacing(tensors["centers"]) * scale(tensors["log_tau"])
