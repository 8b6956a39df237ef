"""Morlet wavelets, each function with its own.

B_g(z) = psi((z - b_g) / s_g), psi(t) = cos(5 t) exp(-t^2 / 2). With G = 1 that is one wavelet per function, the
layer of Wav-KAN; with more it is a bank. Translations b and scales s are trained like the weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from kaem_train.model.bases.basis import Basis, Tensors
from kaem_train.model.bases.grid import gaps_beyond, lower_step
from kaem_train.model.bases.waves import cosine

_FREQUENCY = 5.0
_LOG_SCALE_BOUND = math.log(8.0)
_CELLS_PER_WAVE = 5.0
_WIDEST_CELL = 0.5


class MorletBasis(Basis):
    """G wavelets per function.

    Trains `translations` b (*F, G), start U(low, high), so that no two functions are alike, and `log_scales` log s
    (*F, G), start 0, clamped to [-log 8, log 8] where it is used, so that the quadrature always resolves a function.
    """

    tensor_names = ("translations", "log_scales")
    is_shared = False

    @property
    @override
    def size(self) -> int:
        """G."""
        return self.grid_size

    @override
    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        shape = (*functions, self.grid_size)
        start = self.low + (self.high - self.low) * torch.rand(shape)
        return {"translations": start, "log_scales": torch.zeros(shape)}

    @override
    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw c ~ N(0, 1 / G): a sum of wavelets starts as large as one."""
        return torch.randn(*functions, self.size) / math.sqrt(self.size)

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        t = (z.unsqueeze(-1) - tensors["translations"]) / _scales(tensors)
        return cosine(_FREQUENCY * t) * torch.exp(-0.5 * t * t)

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """E psi(t) for t ~ N(mu, v), the real part of the Gaussian integral of exp(5 i t - t^2 / 2).

        = (1 + v)^(-1/2) exp(-(mu^2 + 25 v) / (2 (1 + v))) cos(5 mu / (1 + v)).
        """
        scales = _scales(tensors)
        mu = (mean.unsqueeze(-1) - tensors["translations"]) / scales
        variance = (std.unsqueeze(-1) / scales).square()
        total = 1.0 + variance
        envelope = torch.exp(-0.5 * (mu * mu + _FREQUENCY**2 * variance) / total) / total.sqrt()
        return envelope * torch.cos(_FREQUENCY * mu / total)

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """A wavelet stays below its envelope."""
        gaps = gaps_beyond(tensors["translations"], ends) / _scales(tensors).unsqueeze(-1)
        greatest = torch.exp(-0.5 * gaps * gaps)
        return -greatest, greatest

    @override
    def cell(self, tensors: Tensors) -> float:
        finest = lower_step(_scales(tensors).min())
        return min(_WIDEST_CELL, 2.0 * math.pi / (_CELLS_PER_WAVE * _FREQUENCY) * finest)


def _scales(tensors: Tensors) -> Tensor:
    return tensors["log_scales"].clamp(-_LOG_SCALE_BOUND, _LOG_SCALE_BOUND).exp()
