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
from typing_extensions import override

from kaem_train.config import LEAST_EXPERT_STD, PriorConfig
from kaem_train.model.prior.reference import log_gaussian_tails
from kaem_train.model.prior.weighted import ExpertMixturePrior

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_STD_RANGE = (math.log(LEAST_EXPERT_STD), 1.5)


class ExpertsPrior(ExpertMixturePrior):
    """K experts over Q latents, their Gaussian parts along the axes of the common frame.

    State besides that of `WeightedPrior`: `means` m (Q, K), start N(0, 0.5^2), so that no two experts are alike;
    `log_stds` log s (Q, K), start 0, clamped to [-2, 1.5] where they are used.
    """

    # Of the narrowest part: three deviations a cell, and five nodes to four deviations.
    largest_cell = 3.0 * LEAST_EXPERT_STD
    largest_step = LEAST_EXPERT_STD / 1.25

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__(config, has_tails=has_tails)
        shape = (config.num_latents, config.num_components)
        self.means = nn.Parameter(0.5 * torch.randn(shape))
        self.log_stds = nn.Parameter(torch.zeros(shape))

    @property
    def stds(self) -> Tensor:
        """Deviations s of the Gaussian parts: shape (Q, K)."""
        return self.log_stds.clamp(*_LOG_STD_RANGE).exp()

    def unnormalised_log_density(self, z: Tensor) -> Tensor:
        """Return f_{q,k} on nodes: shape (Q, K, M), (Q, 1, M) or (1, 1, M) -> (Q, K, M)."""
        scaled = (z - self.means.unsqueeze(-1)) / self.stds.unsqueeze(-1)
        return self.bank.nodes(z) - 0.5 * scaled * scaled

    @override
    def log_normalizer(self) -> Tensor:
        if not self.bank.basis.is_shared:
            return super().log_normalizer()
        return self._log_integrals(self._energy_weights()) - self._peak()

    @torch.no_grad()
    def start(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        """Set the Gaussian parts: pi (K,), if it is trained, m and s (Q, K); the other coefficients stay."""
        self.start_weights(weights)
        self.means.copy_(means)
        self.log_stds.copy_(stds.log().clamp(*_LOG_STD_RANGE))

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
        return self._draw(num, rng)[1]
