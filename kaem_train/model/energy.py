"""A bank of Q x P independent univariate functions: the energies f_{q,p} of the prior.

f_{q,p}(z) = w_b[q,p] b(z) + w_s[q,p] sum_g c[q,p,g] B_g(z), one shared grid and one shared width.

The functions own parameters of shape (Q, P, .) directly. They are not a dense KAN layer reshaped: there a
function is easily evaluated on a latent that belongs to another one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kaem_train.model.bases import expected_radial_features, radial_features, radial_width, uniform_knots

BaseActivation = Literal["none", "silu", "relu"]


class UnivariateBank(nn.Module):
    """Q x P univariate functions.

    State (names in a checkpoint, below the bank's own prefix):
        coefficients (Q, P, G + 1): c, start N(0, 0.01^2), so that f is near 0 and p near pi0.
        spline_weight (Q, P): w_s, start 1.
        base_weight (Q, P): w_b, start U(-0.05, 0.05); absent where the base activation is `none`.
        log_tau (): logarithm of tau, clamped to [-log 4, log 4] where it is used, start 0.
        centers (G + 1,): the knots g, equally spaced; not trained. h = (last - first) / G.

    Args:
        num_latents: Q.
        num_components: P.
        low: First knot.
        high: Last knot.
        grid_size: G.
        base: Base activation b.
    """

    centers: Tensor

    def __init__(
        self,
        num_latents: int,
        num_components: int,
        *,
        low: float,
        high: float,
        grid_size: int,
        base: BaseActivation = "none",
    ) -> None:
        super().__init__()
        shape = (num_latents, num_components)
        self.base = base
        self.coefficients = nn.Parameter(0.01 * torch.randn(*shape, grid_size + 1))
        self.spline_weight = nn.Parameter(torch.ones(shape))
        if base != "none":
            self.base_weight = nn.Parameter(0.1 * torch.rand(shape) - 0.05)
        self.log_tau = nn.Parameter(torch.zeros(()))
        self.register_buffer("centers", uniform_knots(low, high, grid_size))

    @property
    def width(self) -> Tensor:
        """Standard deviation w = h tau of the radial functions, scalar."""
        spacing = (self.centers[-1] - self.centers[0]) / (len(self.centers) - 1)
        return radial_width(spacing, self.log_tau)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Points where a function has no derivative; quadrature cells must end there."""
        return (0.0,) if self.base == "relu" else ()

    def features(self, z: Tensor) -> Tensor:
        """Return the basis B_g(z): any shape S -> (S, G + 1)."""
        return radial_features(z, self.centers, self.width)

    def expected_features(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E B_g(z) for z ~ N(mean, std^2): shapes S -> (S, G + 1)."""
        return expected_radial_features(mean, std, self.centers, self.width)

    def weights(self) -> Tensor:
        """Return w_s c, the weights of the basis in every function: shape (Q, P, G + 1)."""
        return self.spline_weight.unsqueeze(-1) * self.coefficients

    def paired(self, z: Tensor) -> Tensor:
        """Evaluate f_{q,p}(z[s,q,p]): shape (S, Q, P) -> (S, Q, P), each function on its own latent."""
        spline = torch.einsum("sqpg,qpg->sqp", self.features(z), self.coefficients)
        return self._with_base(spline * self.spline_weight, z)

    def broadcast(self, z: Tensor) -> Tensor:
        """Evaluate f_{q,p}(z[s,q]): shape (S, Q) -> (S, Q, P), all components on their common latent."""
        spline = torch.einsum("sqg,qpg->sqp", self.features(z), self.coefficients)
        return self._with_base(spline * self.spline_weight, z.unsqueeze(-1))

    def nodes(self, z: Tensor) -> Tensor:
        """Evaluate on quadrature nodes: shape (Q, P, M), (Q, 1, M) or (1, 1, M) -> (Q, P, M)."""
        features = self.features(z)
        if z.shape[0] == z.shape[1] == 1:
            # One matrix product; expanding shared nodes to every function would need Q P times the memory.
            spline = self.coefficients @ features[0, 0].T
        elif z.shape[1] == 1:
            spline = torch.einsum("qmg,qpg->qpm", features[:, 0], self.coefficients)
        else:
            spline = torch.einsum("qpmg,qpg->qpm", features, self.coefficients)
        values = spline * self.spline_weight.unsqueeze(-1)
        if self.base == "none":
            return values
        return values + self.base_weight.unsqueeze(-1) * self._activation(z)

    def expected_paired(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E f_{q,p}(z) for z[s,q,p] ~ N(mean, std^2): shapes (S, Q, P); needs base `none`."""
        features = self.expected_features(mean, std)
        return torch.einsum("sqpg,qpg->sqp", features, self.coefficients) * self.spline_weight

    def expected_broadcast(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E f_{q,p}(z) for z[s,q] ~ N(mean, std^2): shapes (S, Q) -> (S, Q, P); needs base `none`."""
        features = self.expected_features(mean, std)
        return torch.einsum("sqg,qpg->sqp", features, self.coefficients) * self.spline_weight

    @property
    def has_closed_expectation(self) -> bool:
        """Whether the `expected_...` evaluators are exact: only radial functions have a closed form here."""
        return self.base == "none"

    @torch.no_grad()
    def fit(self, targets: Tensor, weights: Tensor, nodes: Tensor, *, ridge: float = 1e-5) -> None:
        """Set the coefficients so that f_{q,p} follows `targets` by weighted ridge least squares.

        Args:
            targets: Wanted values up to a constant per function, shape (Q, P, M).
            weights: Non-negative importance of each value, shape (Q, P, M), summing to 1 over M.
            nodes: Where they are wanted, shape (M,).
            ridge: Penalty on the squared coefficients.
        """
        features = radial_features(nodes, self.centers, self.width).double()
        root = weights.double().sqrt().unsqueeze(-1)
        design, wanted = root * features, root * targets.double().unsqueeze(-1)
        gram = design.mT @ design + ridge * torch.eye(features.shape[-1], dtype=torch.float64)
        solution = torch.linalg.solve(gram, design.mT @ wanted).squeeze(-1)
        self.coefficients.copy_(solution / self.spline_weight.unsqueeze(-1))

    def _activation(self, z: Tensor) -> Tensor:
        return torch.relu(z) if self.base == "relu" else nn.functional.silu(z)

    def _with_base(self, values: Tensor, z: Tensor) -> Tensor:
        return values if self.base == "none" else values + self.base_weight * self._activation(z)
