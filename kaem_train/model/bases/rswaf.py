"""Reflectional switch activation functions on knots.

B_g(z) = 1 - tanh^2((z - g) / w) with w = h tau, h the mean knot spacing. The method's table gives the width as
tau itself, start 1; in units of h the same functions suit a grid of any range from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import BumpBasis, Tensors
from kaem_train.model.bases.grid import lower_step, scale, widest_interval


class RswafBasis(BumpBasis):
    """G + 1 bumps of hyperbolic tangents."""

    @override
    def bump(self, scaled: Tensor) -> Tensor:
        return 1.0 - torch.tanh(scaled).square()

    @override
    def cell(self, tensors: Tensors) -> float:
        return widest_interval(tensors["centers"]) * min(1.0, lower_step(scale(tensors["log_tau"])))
