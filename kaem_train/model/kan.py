"""One Kolmogorov-Arnold layer: y_o = sum_i phi_{o,i}(x_i) with radial basis functions and movable knots."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.model.bases import radial_features, radial_width, uniform_knots

_START = 1.2
_UNIFORM_SHARE = 0.05
_RIDGE = 1e-4


class KanLayer(nn.Module):
    """phi_{o,i}(x) = w_b[o,i] silu(x) + w_s[o,i] sum_g c[o,i,g] B_g(x; knots of input i).

    Start (Liu et al.): w_b = U(-1, 1) / sqrt(I), w_s = 1 / sqrt(I), c a least-squares fit of noise
    0.1 (U(0, 1) - 1/2) / G at the knots.

    State: coefficients (O, I, G + 1), spline_weight (O, I), base_weight (O, I), log_tau (), centers (I, G + 1).

    Args:
        num_inputs: I.
        num_outputs: O.
        grid_size: G.
    """

    centers: Tensor

    def __init__(self, num_inputs: int, num_outputs: int, *, grid_size: int) -> None:
        super().__init__()
        self.register_buffer("centers", uniform_knots(-_START, _START, grid_size).repeat(num_inputs, 1))
        self.log_tau = nn.Parameter(torch.zeros(()))
        scale = num_inputs**-0.5
        self.base_weight = nn.Parameter(scale * (2.0 * torch.rand(num_outputs, num_inputs) - 1.0))
        self.spline_weight = nn.Parameter(torch.full((num_outputs, num_inputs), scale))
        noise = 0.1 * (torch.rand(num_outputs, num_inputs, grid_size + 1) - 0.5) / grid_size
        self.coefficients = nn.Parameter(torch.empty_like(noise))
        self._fit(self.centers.T, noise.permute(2, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs: shape (S, I) -> (S, O)."""
        features = self._features(x).flatten(1)  # (S, I (G + 1))
        matrix = (self.spline_weight.unsqueeze(-1) * self.coefficients).flatten(1)  # (O, I (G + 1))
        return features @ matrix.T + nn.functional.silu(x) @ self.base_weight.T

    @torch.no_grad()
    def refit(self, x: Tensor) -> None:
        """Move the knots to the inputs `x`, shape (S, I), and refit the coefficients there.

        New knots mix quantiles and equal spacing of the inputs, 95 : 5 (section 2.4 of the method).
        """
        spline = torch.einsum("sig,oig->sio", self._features(x), self.coefficients)
        ordered = x.sort(0).values
        intervals = self.centers.shape[1] - 1
        ranks = [min(len(x) * j // intervals, len(x) - 1) for j in range(intervals + 1)]
        adaptive = ordered[ranks].T  # (I, G + 1)
        steps = torch.linspace(0.0, 1.0, intervals + 1, dtype=x.dtype, device=x.device)
        span = (adaptive[:, -1:] - adaptive[:, :1]).clamp_min(1e-3)
        uniform = adaptive[:, :1] + steps * span
        self.centers.copy_(_UNIFORM_SHARE * uniform + (1.0 - _UNIFORM_SHARE) * adaptive)
        self._fit(x, spline)

    def _features(self, x: Tensor) -> Tensor:
        """Return the basis on every input: shape (S, I) -> (S, I, G + 1)."""
        spacing = (self.centers[:, -1:] - self.centers[:, :1]) / (self.centers.shape[1] - 1)
        return radial_features(x, self.centers, radial_width(spacing, self.log_tau))

    @torch.no_grad()
    def _fit(self, x: Tensor, values: Tensor) -> None:
        """Set c so that sum_g c[o,i,g] B_g(x[s,i]) follows values (S, I, O), by ridge least squares in float64."""
        design = self._features(x).double().transpose(0, 1)  # (I, S, G + 1)
        gram = design.mT @ design + _RIDGE * torch.eye(design.shape[-1], dtype=torch.float64)
        moments = design.mT @ values.double().transpose(0, 1)  # (I, G + 1, O)
        self.coefficients.copy_(torch.linalg.solve(gram, moments).permute(2, 0, 1))
