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

from kaem_train.model.abstract_prior import AbstractPrior
from kaem_train.model.quadrature import gauss_legendre, trapezoid
from kaem_train.sections import LEAST_EXPERT_STD, PriorConfig

_NODES_PER_LEAST_STD = 1.25
_STDS_PER_CELL = 3.0
_TRAINING_ORDER = 8
_LOG_STD_RANGE = (math.log(LEAST_EXPERT_STD), 1.5)


class ExpertsPrior(AbstractPrior):
    """K experts over Q latents; `num_components` is K.

    State besides `bank.*` and `frame.*`: `logits` (K,), start 0, pi = softmax; `means` m (Q, K), start
    N(0, 0.5^2), so that no two experts are alike; `log_stds` log s (Q, K), start 0, clamped to [-2, 1.5]
    where they are used.
    """

    variant = "experts"
    _sampling_cells = 4

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        shape = (config.num_latents, config.num_components)
        self.logits = nn.Parameter(torch.zeros(config.num_components))
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

    @torch.no_grad()
    def start(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        """Set the Gaussian parts: pi (K,), m and s (Q, K); the other coefficients stay as they are."""
        self.logits.copy_(weights.log())
        self.means.copy_(means)
        self.log_stds.copy_(stds.log().clamp(*_LOG_STD_RANGE))

    @property
    def cell(self) -> float:
        """See `AbstractPrior`; the narrowest Gaussian part is resolved too."""
        return min(self.bank.cell, _STDS_PER_CELL * LEAST_EXPERT_STD)

    def _training_rule(self) -> tuple[Tensor, Tensor]:
        step = self.bank.equal_step
        if step is None:
            return gauss_legendre(self.cell_edges(1), _TRAINING_ORDER)
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
        precision = self.stds.square().reciprocal()
        linear = (self.means * precision).unsqueeze(-1)
        constant = -(0.5 * self.means.square() * precision + self.log_normalizer()).sum(0)  # (K,)
        weights = self.bank.weights()
        if not self.bank.basis.is_shared:
            constant = constant + torch.einsum("sqkg,qkg->sk", basis, weights)
            basis, weights = basis[:, :, 0, :0], weights[..., :0]
        features = torch.cat([first.unsqueeze(-1), second.unsqueeze(-1), basis], -1).flatten(1)
        matrix = torch.cat([linear, -0.5 * precision.unsqueeze(-1), weights], -1)  # (Q, K, size + 2)
        joint = torch.addmm(self.log_weights() + constant, features, matrix.transpose(1, 2).flatten(0, 1))
        return torch.logsumexp(joint, -1)

    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw one expert per sample, then invert its Q distribution functions: shape (num, Q)."""
        choice = torch.rand(num, generator=rng, dtype=torch.float64)
        uniform = torch.rand((self.num_latents, num), generator=rng, dtype=torch.float64)
        weights = self.log_weights().double().softmax(-1).cumsum(-1)
        expert = torch.searchsorted(weights, choice, right=True).clamp_(max=self.num_components - 1)
        cumulative = self.cumulative()
        u = torch.empty_like(uniform)
        for k in sorted(set(expert.tolist())):
            chosen = expert == k
            u[:, chosen] = cumulative.of_component(k).invert(uniform[:, chosen])
        return u.T
