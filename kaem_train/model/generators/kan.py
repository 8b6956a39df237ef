"""One Kolmogorov-Arnold layer: y_o = sum_i phi_{o,i}(x_i), with knots that follow its inputs where there are any."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config import BaseActivation, BasisName
from kaem_train.model.activations import ACTIVATIONS
from kaem_train.model.bases import build_basis, hold_tensors, knots_of, mixed_knots, tensors_of

_START = 1.2
_UNIFORM_SHARE = 0.05
_RIDGE = 1e-4


class KanLayer(nn.Module):
    """phi_{o,i}(x) = w_b[o,i] b(x) + w_s[o,i] sum_g c[o,i,g] B_g(x; knots of input i).

    Start (Liu et al.): w_b = U(-1, 1) / sqrt(I), w_s = 1 / sqrt(I), c a least-squares fit of noise
    0.1 (U(0, 1) - 1/2) / G at the knots, or what a basis without knots draws.

    State: coefficients (O, I, size), spline_weight (O, I), base_weight (O, I), the latter two only where the basis
    and the base activation have them, and the tensors of the basis, knots with one row per input.

    Args:
        num_inputs: I.
        num_outputs: O.
        grid_size: G.
        basis: Name of the family B_g.
        base: Base activation b.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        grid_size: int,
        basis: BasisName = "rbf",
        base: BaseActivation = "silu",
    ) -> None:
        super().__init__()
        shape = (num_outputs, num_inputs)
        scale = num_inputs**-0.5
        self.basis = build_basis(basis, grid_size, grid=(-_START, _START), domain=(-_START, _START))
        self.base: BaseActivation = base
        hold_tensors(self, self.basis, functions=shape, rows=(num_inputs,))
        if base != "none":
            self.base_weight = nn.Parameter(scale * (2.0 * torch.rand(shape) - 1.0))
        if self.basis.is_scaled:
            self.spline_weight = nn.Parameter(torch.full(shape, scale))
        self.coefficients = nn.Parameter(self.basis.first_coefficients(shape))
        knots = knots_of(self, self.basis)
        if knots is not None:
            noise = 0.1 * (torch.rand(*shape, grid_size + 1) - 0.5) / grid_size
            self._fit(knots.T, noise.permute(2, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs: shape (S, I) -> (S, O)."""
        weights = self.spline_weight.unsqueeze(-1) * self.coefficients if self.basis.is_scaled else self.coefficients
        if self.basis.is_shared:
            spline = self._features(x).flatten(1) @ weights.flatten(1).T  # (S, I size) (I size, O)
        else:
            spline = (self._features(x.unsqueeze(1)) * weights).flatten(2).sum(-1)
        if self.base == "none":
            return spline
        return spline + ACTIVATIONS[self.base](x) @ self.base_weight.T

    @torch.no_grad()
    def refit(self, x: Tensor) -> bool:
        """Move the knots to the inputs `x`, shape (S, I), and refit the coefficients there.

        New knots mix quantiles and equal spacing of the inputs, 95 : 5 (section 2.4 of the method).

        Returns:
            Whether there are knots; without, nothing changes.
        """
        knots = knots_of(self, self.basis)
        if knots is None:
            return False
        spline = torch.einsum("sig,oig->sio", self._features(x), self.coefficients)
        knots.copy_(mixed_knots(x, knots.shape[1] - 1, _UNIFORM_SHARE))
        self._fit(x, spline)
        return True

    def _features(self, x: Tensor) -> Tensor:
        """Return the basis on every input: shape (S, I) -> (S, I, size), or (S, 1, I) -> (S, O, I, size)."""
        return self.basis.features(x, tensors_of(self, self.basis))

    @torch.no_grad()
    def _fit(self, x: Tensor, values: Tensor) -> None:
        """Set c so that sum_g c[o,i,g] B_g(x[s,i]) follows values (S, I, O), by ridge least squares in float64."""
        design = self._features(x).double().transpose(0, 1)  # (I, S, size)
        gram = design.mT @ design + _RIDGE * torch.eye(design.shape[-1], dtype=torch.float64)
        moments = design.mT @ values.double().transpose(0, 1)  # (I, size, O)
        self.coefficients.copy_(torch.linalg.solve(gram, moments).permute(2, 0, 1))
