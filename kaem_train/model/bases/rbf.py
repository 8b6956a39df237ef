"""Radial basis functions on knots.

B_g(z) = exp(-1/2 ((z - g) / w)^2) with w = h tau, h the mean knot spacing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import BumpBasis, Tensors
from kaem_train.model.bases.grid import lower_step, scale, widest_interval

_EQUAL_STEPS_PER_CELL = 3.6


class RbfBasis(BumpBasis):
    """G + 1 Gaussians."""

    @override
    def bump(self, scaled: Tensor) -> Tensor:
        return torch.exp(-0.5 * scaled * scaled)

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """E B_g(z) = w / sqrt(w^2 + s^2) exp(-(m - g)^2 / (2 (w^2 + s^2)))."""
        width = self.width(tensors)
        variance = (width * width + std * std).unsqueeze(-1)
        offset = mean.unsqueeze(-1) - tensors["centers"]
        return width / variance.sqrt() * torch.exp(-0.5 * offset * offset / variance)

    @override
    def cell(self, tensors: Tensors) -> float:
        # Not finer for a width that has shrunk by less than sqrt 2: there the rule is as good as float32 can tell.
        return widest_interval(tensors["centers"]) * min(1.0, math.sqrt(2.0) * lower_step(scale(tensors["log_tau"])))

    @override
    def equal_step(self, tensors: Tensors) -> float | None:
        """Gaussians vanish at both ends, where equal steps are more accurate than any other rule."""
        return self.cell(tensors) / _EQUAL_STEPS_PER_CELL
