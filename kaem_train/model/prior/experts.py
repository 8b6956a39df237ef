"""The experts prior: a mixture of K factorised densities whose index is tied across the latents.

    p(u) = sum_k pi_k prod_q p_{q,k}(u_q)
    p_{q,k}(u) = exp(f_{q,k}(u)) / Z_{q,k},   f_{q,k}(u) = -(u - m_{q,k})^2 / (2 s_{q,k}^2) + sum_g c_{q,k,g} B_g(u)

The mixture of eq. 17 draws a component for every latent by itself, so its latents stay independent. One
index for all of them makes the prior a set of clusters, with the same functions and the same quadrature.
The Gaussian reference is part of f here, one per function: pi0 of the other variants would be a second one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kaem_train.config import LEAST_EXPERT_STD, PriorConfig
from kaem_train.devices import uniform
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.quadrature import Cumulative, gauss_legendre, trapezoid
from kaem_train.model.prior.reference import log_gaussian_tails

_NODES_PER_LEAST_STD = 1.25
_STDS_PER_CELL = 3.0
_TRAINING_ORDER = 8
_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_STD_RANGE = (math.log(LEAST_EXPERT_STD), 1.5)


class ExpertsPrior(AbstractPrior):
    """K experts over Q latents; `num_components` is K.

    State besides `bank.*` and `frame.*`: `logits` (K,), start 0, pi = softmax; `means` m (Q, K), start
    N(0, 0.5^2), so that no two experts are alike; `log_stds` log s (Q, K), start 0, clamped to [-2, 1.5]
    where they are used.
    """

    variant = "experts"
    _sampling_cells = 4

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__(config, has_tails=has_tails)
        shape = (config.num_latents, config.num_components)
        self.trains_proportions = config.train_proportions
        self.logits = nn.Parameter(torch.zeros(config.num_components), requires_grad=config.train_proportions)
        self.means = nn.Parameter(0.5 * torch.randn(shape))
        self.log_stds = nn.Parameter(torch.zeros(shape))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(Q,)."""
        return (self.num_latents,)

    @property
    def stds(self) -> Tensor:
        """Deviations s of the Gaussian parts: shape (Q, K)."""
        return self.log_stds.clamp(*_LOG_STD_RANGE).exp()

    def log_weights(self) -> Tensor:
        """Return log pi_k: shape (K,)."""
        return torch.log_softmax(self.logits, -1)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return z itself: shape (S, Q)."""
        return z

    def unnormalised_log_density(self, z: Tensor) -> Tensor:
        """Return f_{q,k} on nodes: shape (Q, K, M), (Q, 1, M) or (1, 1, M) -> (Q, K, M)."""
        scaled = (z - self.means.unsqueeze(-1)) / self.stds.unsqueeze(-1)
        return self.bank.nodes(z) - 0.5 * scaled * scaled

    def log_normalizer(self) -> Tensor:
        """See `AbstractPrior`: shape (Q, K)."""
        if not self.bank.basis.is_shared:
            return super().log_normalizer()
        return self._log_integrals(self._energy_weights()) - self._peak()

    @torch.no_grad()
    def start(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        """Set the Gaussian parts: pi (K,), if it is trained, m and s (Q, K); the other coefficients stay."""
        if self.trains_proportions:
            self.logits.copy_(weights.log())
        self.means.copy_(means)
        self.log_stds.copy_(stds.log().clamp(*_LOG_STD_RANGE))

    @property
    def cell(self) -> float:
        """See `AbstractPrior`; the narrowest Gaussian part is resolved too."""
        return min(self.bank.cell, _STDS_PER_CELL * LEAST_EXPERT_STD)

    def _training_rule(self) -> tuple[Tensor, Tensor]:
        step = self.bank.equal_step
        if step is None or not self.has_tails:
            return gauss_legendre(self.cell_edges(1), _TRAINING_ORDER)
        # With tails the domain is so wide that functions vanish at both ends, where equal steps are the best rule.
        return trapezoid(self.low, self.high, spacing=min(step, LEAST_EXPERT_STD / _NODES_PER_LEAST_STD))

    def _log_density(self, u: Tensor) -> Tensor:
        """Return logsumexp_k [log pi_k + sum_q f_{q,k}(u_q) - log Z_{q,k}]: (S, Q) -> (S,)."""
        return self._log_mixture(u, u.square(), self.bank.common_features(u))

    def _expected_log_density(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log-sum-exp of expected energies, <= E log p(u) (Jensen), equal to it for K = 1."""
        return self._log_mixture(mean, mean.square() + std.square(), self.bank.expected_common_features(mean, std))

    def _log_mixture(self, first: Tensor, second: Tensor, basis: Tensor) -> Tensor:
        """Combine (expected) features u, u^2 and B_g(u), shapes (S, Q), (S, Q), (S, Q, size), to (S,).

        f is linear in them, so the joint energies of all K experts are one matrix product. Where every expert has
        functions B_g of its own, they come as (S, Q, K, size) and are summed apart.
        """
        gaussian = torch.stack([first, second], -1)
        if self.bank.basis.is_shared:
            features, matrix = torch.cat([gaussian, basis], -1), self._energy_weights()
            constant = self.log_weights() - self._log_integrals(matrix).sum(0)  # (K,)
        else:
            features, matrix = gaussian, self._gaussian_weights()
            own = torch.einsum("sqkg,qkg->sk", basis, self.bank.weights())
            constant = own + self.log_weights() - (self.log_normalizer() + self._peak()).sum(0)  # (S, K)
        # -m^2 / (2 s^2) is in the energy and in log Z alike: neither needs it.
        joint = torch.addmm(constant, features.flatten(1), matrix.transpose(1, 2).flatten(0, 1))
        return torch.logsumexp(joint, -1)

    def _peak(self) -> Tensor:
        """Return m^2 / (2 s^2), shape (Q, K)."""
        return 0.5 * (self.means / self.stds).square()

    def _gaussian_weights(self) -> Tensor:
        """Return the weights of u and u^2 in every f_{q,k}: shape (Q, K, 2)."""
        precision = self.stds.square().reciprocal()
        return torch.stack([self.means * precision, -0.5 * precision], -1)

    def _energy_weights(self) -> Tensor:
        """Return the weights of u, u^2 and B_g(u) in every f_{q,k} + m^2 / (2 s^2): shape (Q, K, size + 2)."""
        return torch.cat([self._gaussian_weights(), self.bank.weights()], -1)

    def _log_integrals(self, matrix: Tensor) -> Tensor:
        """Return log Z_{q,k} + m^2 / (2 s^2) from `_energy_weights`: shape (Q, K, size + 2) -> (Q, K).

        All Q x K functions on all nodes are one matrix product, the quadrature's weights its bias.
        """
        rule = self._current_rule()
        nodes = rule.nodes.to(matrix)
        features = torch.cat([nodes[:, None], nodes.square()[:, None], self.bank.features(nodes)], -1)
        values = torch.addmm(rule.log_weights.to(matrix), matrix.flatten(0, 1), features.T)
        log_inside = torch.logsumexp(values, -1).reshape(matrix.shape[:2])
        if not self.has_tails:
            return log_inside
        return torch.logaddexp(log_inside, self._log_tails().logsumexp(-1) + self._peak())

    def _log_tails(self, ends: Tensor | None = None) -> Tensor:
        ends = self._ends() if ends is None else ends
        heights, _ = self.bank.bound_beyond(ends)
        stds = self.stds
        tails = log_gaussian_tails(ends, self.means, stds, None)
        return heights + tails + (stds.log() + _LOG_ROOT_TWO_PI).unsqueeze(-1)

    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw one expert per sample, then invert its Q distribution functions: shape (num, Q)."""
        return draw_experts(self.log_weights(), self.cumulative(), num, rng)[1]


def draw_experts(log_weights: Tensor, cumulative: Cumulative, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one expert per sample and its univariate latents by inversion.

    Args:
        log_weights: log pi, shape (K,).
        cumulative: Cumulative integrals of Q x K functions.
        num: Samples.
        rng: Source of the uniforms.

    Returns:
        Experts, shape (num,), and u, shape (num, Q), float64.
    """
    num_latents, num_experts = cumulative.log_total.shape
    weights = log_weights.double().softmax(-1).cumsum(-1)
    choice = uniform((num,), rng, weights)
    draws = uniform((num_latents, num), rng, weights)
    expert = torch.searchsorted(weights, choice, right=True).clamp_(max=num_experts - 1)
    u = torch.empty_like(draws)
    for k in sorted(set(expert.tolist())):
        chosen = expert == k
        u[:, chosen] = cumulative.of_component(k).invert(draws[:, chosen])
    return expert, u.T
