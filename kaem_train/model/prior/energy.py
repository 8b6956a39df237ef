"""A bank of Q x P independent univariate functions: the energies f_{q,p} of the prior.

f_{q,p}(z) = w_b[q,p] b(z) + w_s[q,p] sum_g c[q,p,g] B_g(z)

The functions own parameters of shape (Q, P, .) directly. They are not a dense KAN layer reshaped: there a
function is easily evaluated on a latent that belongs to another one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config import BaseActivation
from kaem_train.model.activations import ACTIVATIONS, STEEPEST, activation_kinks
from kaem_train.model.bases import Basis, ClosedExpectation, hold_tensors, knots_of, tensors_of

_RIDGE = 1e-5
_REFIT_RIDGE = 1e-9
_STEPS_PER_SPACING = 16.0


class UnivariateBank(nn.Module):
    """Q x P univariate functions.

    State (names in a checkpoint, below the bank's own prefix):
        coefficients (Q, P, size): c, start N(0, 0.01^2), so that f is near 0 and p near pi0.
        spline_weight (Q, P): w_s, start 1; absent where the basis has no such factor.
        base_weight (Q, P): w_b, start U(-0.05, 0.05); absent where the base activation is `none`.
        The tensors of the basis: see its class.

    Args:
        num_latents: Q.
        num_components: P.
        basis: The family B_g.
        base: Base activation b.
    """

    def __init__(self, num_latents: int, num_components: int, basis: Basis, *, base: BaseActivation = "none") -> None:
        super().__init__()
        shape = (num_latents, num_components)
        self.basis = basis
        self.base: BaseActivation = base
        self.coefficients = nn.Parameter(0.01 * torch.randn(*shape, basis.size))
        if basis.is_scaled:
            self.spline_weight = nn.Parameter(torch.ones(shape))
        if base != "none":
            self.base_weight = nn.Parameter(0.1 * torch.rand(shape) - 0.05)
        hold_tensors(self, basis, functions=shape, rows=())

    @property
    def grid(self) -> Tensor | None:
        """The knots, shape (G + 1,); None where the basis has none."""
        return knots_of(self, self.basis)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Knots, which quadrature cells must not straddle."""
        return self.basis.breaks(tensors_of(self, self.basis))

    @property
    def kinks(self) -> tuple[float, ...]:
        """Points where a function has no derivative; quadrature cells must end there."""
        return (*activation_kinks(self.base), *self.basis.kinks)

    @property
    def cell(self) -> float:
        """Width of the cells in which 8 Gauss-Legendre nodes integrate exp(f) about exactly."""
        return self.basis.cell(tensors_of(self, self.basis))

    @property
    def equal_step(self) -> float | None:
        """Step at which a rule of equal steps integrates exp(f); None where no such rule will do."""
        return self.basis.equal_step(tensors_of(self, self.basis))

    @property
    def range(self) -> tuple[float, float]:
        """Where the functions can be shaped: from the first to the last knot, or as the basis was made."""
        knots = self.grid
        return (self.basis.low, self.basis.high) if knots is None else (float(knots[0]), float(knots[-1]))

    def features(self, z: Tensor) -> Tensor:
        """Return the basis B_g(z): any shape S -> (S, size); S ends in (Q, P) or (1, 1) where it is not shared."""
        return self.basis.features(z, tensors_of(self, self.basis))

    def expected_features(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E B_g(z) for z ~ N(mean, std^2): shapes as of `features`; needs `has_closed_expectation`."""
        if not isinstance(self.basis, ClosedExpectation):
            raise TypeError(f"{type(self.basis).__name__} has no expectations in closed form")
        return self.basis.expected_features(mean, std, tensors_of(self, self.basis))

    def common_features(self, z: Tensor) -> Tensor:
        """Return B_g of all components at their common latent: (S, Q) -> (S, Q, size), or (S, Q, P, size)."""
        return self.features(z if self.basis.is_shared else z.unsqueeze(-1))

    def expected_common_features(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the expectations of `common_features`: shapes (S, Q), and as there."""
        if self.basis.is_shared:
            return self.expected_features(mean, std)
        return self.expected_features(mean.unsqueeze(-1), std.unsqueeze(-1))

    def weights(self) -> Tensor:
        """Return w_s c, the weights of the basis in every function: shape (Q, P, size)."""
        return self.spline_weight.unsqueeze(-1) * self.coefficients if self.basis.is_scaled else self.coefficients

    def paired(self, z: Tensor) -> Tensor:
        """Evaluate f_{q,p}(z[s,q,p]): shape (S, Q, P) -> (S, Q, P), each function on its own latent."""
        return self._add_base(self._sum_paired(self.features(z)), z)

    def broadcast(self, z: Tensor) -> Tensor:
        """Evaluate f_{q,p}(z[s,q]): shape (S, Q) -> (S, Q, P), all components on their common latent."""
        if not self.basis.is_shared:
            return self.paired(z.unsqueeze(-1))
        return self._add_base(self._sum_broadcast(self.features(z)), z.unsqueeze(-1))

    def nodes(self, z: Tensor) -> Tensor:
        """Evaluate on quadrature nodes: shape (Q, P, M), (Q, 1, M) or (1, 1, M) -> (Q, P, M)."""
        values = self._spline_on_nodes(z)
        if self.basis.is_scaled:
            values = values * self.spline_weight.unsqueeze(-1)
        if self.base == "none":
            return values
        return values + self.base_weight.unsqueeze(-1) * ACTIVATIONS[self.base](z)

    def bound_beyond(self, ends: Tensor) -> tuple[Tensor, Tensor | None]:
        """Bound every f from above outside (low, high), `ends` of shape (2,): f(z) <= height + slope |z - end|.

        Returns:
            Heights, shape (Q, P, 2), lower end first, and slopes, shape (Q, P); None where all are 0.
        """
        least, greatest = self.basis.extremes_beyond(ends, tensors_of(self, self.basis))
        weights = self.weights()
        equation = "qpg,ge->qpe" if self.basis.is_shared else "qpg,qpge->qpe"
        heights = torch.einsum(equation, weights.clamp_min(0.0), greatest)
        if least is not None:
            heights = heights + torch.einsum(equation, weights.clamp_max(0.0), least)
        if self.base == "none":
            return heights, None
        slopes = STEEPEST[self.base] * self.base_weight.abs()
        return heights + self.base_weight.unsqueeze(-1) * ACTIVATIONS[self.base](ends), slopes

    def expected_paired(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E f_{q,p}(z) for z[s,q,p] ~ N(mean, std^2): shapes (S, Q, P); needs `has_closed_expectation`."""
        return self._sum_paired(self.expected_features(mean, std))

    def expected_broadcast(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E f_{q,p}(z) for z[s,q] ~ N(mean, std^2): (S, Q) -> (S, Q, P); needs `has_closed_expectation`."""
        if not self.basis.is_shared:
            return self.expected_paired(mean.unsqueeze(-1), std.unsqueeze(-1))
        return self._sum_broadcast(self.expected_features(mean, std))

    @property
    def has_closed_expectation(self) -> bool:
        """Whether the `expected_...` evaluators exist; no base activation has a closed form here."""
        return self.base == "none" and isinstance(self.basis, ClosedExpectation)

    @torch.no_grad()
    def fit(self, targets: Tensor, weights: Tensor, nodes: Tensor, *, ridge: float = _RIDGE) -> None:
        """Set the coefficients so that f_{q,p} follows `targets` by weighted ridge least squares in float64.

        Args:
            targets: Wanted values up to a constant per function, shape (Q, P, M).
            weights: Non-negative importance of each value, shape (Q, P, M), summing to 1 over M.
            nodes: Points at which the values are wanted, shape (M,).
            ridge: Penalty on the squared coefficients.
        """
        if self.base != "none":
            targets = targets - self.base_weight.unsqueeze(-1) * ACTIVATIONS[self.base](nodes)
        features = self._features_on_nodes(nodes).double()  # (M, size) or (Q, P, M, size)
        root = weights.double().sqrt().unsqueeze(-1)
        design, wanted = root * features, root * targets.double().unsqueeze(-1)
        gram = design.mT @ design + ridge * torch.eye(features.shape[-1], dtype=torch.float64)
        solution = torch.linalg.solve(gram, design.mT @ wanted).squeeze(-1)
        self.coefficients.copy_(solution / self.spline_weight.unsqueeze(-1) if self.basis.is_scaled else solution)

    @torch.no_grad()
    def move_knots(self, knots: Tensor, nodes: Tensor, weights: Tensor, *, used: tuple[float, float]) -> None:
        """Replace the knots, where there are any; fit c so that sum_g c_g B_g at `nodes` stays what it is.

        Ridge least squares in float64, one system for all functions. Beyond the range that was used so far the
        wanted functions run out from its ends: f(a) + f'(a) h (1 - exp(-|z - a| / h)), h the knot spacing.

        Args:
            knots: Shape (G + 1,), ascending.
            nodes: Shape (M,).
            weights: Importance of each node, shape (M,).
            used: Ends of the range where the functions have a meaning.
        """
        before = self.grid
        if before is None:
            return
        inside = nodes.clamp(*used)
        spacing = float(before[-1] - before[0]) / (len(before) - 1)
        step = (inside - nodes).sign() * spacing / _STEPS_PER_SPACING
        wanted = self._spline_on_nodes(inside[None, None]).double()  # (Q, P, M)
        inward = self._spline_on_nodes((inside + step)[None, None]).double()
        slope = (inward - wanted) * _STEPS_PER_SPACING
        wanted = wanted - slope * (1.0 - torch.exp(-(inside - nodes).abs() / spacing))
        before.copy_(knots)
        features = self.features(nodes).double()  # (M, size)
        weighted = weights.double().unsqueeze(-1) * features
        gram = weighted.T @ features + _REFIT_RIDGE * torch.eye(features.shape[1], dtype=torch.float64)
        self.coefficients.copy_(torch.linalg.solve(gram, (wanted @ weighted).mT).mT)

    def _features_on_nodes(self, z: Tensor) -> Tensor:
        """Return B_g at nodes (M,): shape (M, size), or (Q, P, M, size) where every function has its own."""
        if self.basis.is_shared:
            return self.features(z)
        return self.features(z[:, None, None]).movedim(0, 2)

    def _spline_on_nodes(self, z: Tensor) -> Tensor:
        """Return sum_g c_g B_g on nodes (Q, P, M), (Q, 1, M) or (1, 1, M): shape (Q, P, M)."""
        if not self.basis.is_shared:
            return torch.einsum("mqpg,qpg->qpm", self.features(z.movedim(-1, 0)), self.coefficients)
        features = self.features(z)
        if z.shape[0] == z.shape[1] == 1:
            # One matrix product; expanding shared nodes to every function would need Q P times the memory.
            return self.coefficients @ features[0, 0].T
        if z.shape[1] == 1:
            return torch.einsum("qmg,qpg->qpm", features[:, 0], self.coefficients)
        return torch.einsum("qpmg,qpg->qpm", features, self.coefficients)

    def _sum_paired(self, features: Tensor) -> Tensor:
        return self._scale(torch.einsum("sqpg,qpg->sqp", features, self.coefficients))

    def _sum_broadcast(self, features: Tensor) -> Tensor:
        return self._scale(torch.einsum("sqg,qpg->sqp", features, self.coefficients))

    def _scale(self, spline: Tensor) -> Tensor:
        return spline * self.spline_weight if self.basis.is_scaled else spline

    def _add_base(self, values: Tensor, z: Tensor) -> Tensor:
        return values if self.base == "none" else values + self.base_weight * ACTIVATIONS[self.base](z)
