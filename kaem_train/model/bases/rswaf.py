"""Reflectional switch activation functions on knots.

B_g(z) = 1 - tanh^2((z - g) / w) with w = h tau, h the mean knot spacing. The method's table gives the width as
tau itself, start 1; in units of h the same functions suit a grid of any range from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kaem_train.model.bases.grid import gaps_beyond, lower_step, mean_spacing, scale, uniform_knots, widest_interval
from kaem_train.model.bases.protocol import Tensors


@dataclass(frozen=True, slots=True)
class RswafBasis:
    """G + 1 bumps; trains `log_tau` (), start 0; knots `centers`.

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
        return 1.0 - torch.tanh((z.unsqueeze(-1) - tensors["centers"]) / _width(tensors)).square()

    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """See `Basis`: a bump is above 0, and highest at the point next to its centre."""
        greatest = 1.0 - torch.tanh(gaps_beyond(tensors["centers"], ends) / _width(tensors)).square()
        return None, greatest

    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """The knots: nothing breaks there, but cells between them suit the bumps best."""
        return tuple(tensors["centers"].tolist())

    def cell(self, tensors: Tensors) -> float:
        """See `Basis`."""
        return widest_interval(tensors["centers"]) * min(1.0, lower_step(scale(tensors["log_tau"])))

    def equal_step(self, tensors: Tensors) -> float | None:
        """See `Basis`."""
        return None


def _width(tensors: Tensors) -> Tensor:
    return mean_spacing(tensors["centers"]) * scale(tensors["log_tau"])
