"""Experts that each have a linear frame of their own.

    p(z) = sum_k pi_k |det W_k^-1| prod_q p_{q,k}([W_k^-1 (z - b_k)]_q)
    p_{q,k}(u) = exp(f_{q,k}(u)) pi0(u) / Z_{q,k},   pi0 = N(0, 1)

The frames hold all that is Gaussian: where f = 0, this is a Gaussian mixture with means b_k and covariances
W_k W_k^T. The functions f shape every expert along its own axes. Sampling inverts univariate distribution
functions and adds one matrix product, as with a common frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kaem_train.config import PriorConfig
from kaem_train.model.prior.frame import InvertibleMatrices
from kaem_train.model.prior.reference import log_reference
from kaem_train.model.prior.weighted import ExpertMixturePrior


class LinearFrames(InvertibleMatrices):
    """K invertible affine maps of Q latents, the identity until they are started or trained.

    State: offset b (K, Q), start N(0, 0.5^2), so that no two experts are alike; matrix W (K, Q, Q), start I.

    Args:
        num_frames: K.
        num_latents: Q.
    """

    def __init__(self, num_frames: int, num_latents: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(0.5 * torch.randn(num_frames, num_latents))
        self.matrix = nn.Parameter(torch.eye(num_latents).repeat(num_frames, 1, 1))

    def inverse(self, z: Tensor) -> Tensor:
        """Return u = W_k^-1 (z - b_k) in every frame: shape (S, Q) -> (S, Q, K), by one matrix product."""
        return self._centred(self.inverse_matrix(), z)

    def inverse_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of every u_q in every frame where z ~ N(mean, diag std^2).

        As in `LinearFrame`: mean W_k^-1 (m - b_k), variance (W_k^-1 o W_k^-1) s^2.

        Args:
            mean: Shape (S, Q).
            std: Shape (S, Q).

        Returns:
            Two of shape (S, Q, K).
        """
        inverse = self.inverse_matrix()
        variance = std.square() @ inverse.square().permute(2, 1, 0).flatten(1)
        return self._centred(inverse, mean), variance.reshape(len(std), -1, len(inverse)).sqrt()

    def _centred(self, inverse: Tensor, z: Tensor) -> Tensor:
        turned = z @ inverse.permute(2, 1, 0).flatten(1)  # (S, Q K)
        offset = (inverse @ self.offset.unsqueeze(-1)).squeeze(-1).T  # (Q, K)
        centred: Tensor = turned.reshape(len(z), -1, len(inverse)) - offset
        return centred


class OwnFramesPrior(ExpertMixturePrior):
    """K experts over Q latents, each in its own frame.

    The domain bounds every u. A latent is outside it for an expert where one coordinate of its u is; without tails it
    has density 0 where it is outside for all.

    State besides that of `WeightedPrior`: `frames.*` (see `LinearFrames`).
    """

    largest_cell = 3.0  # of the Gaussian reference, whose deviation is 1
    largest_step = 0.5

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__(config, has_tails=has_tails)
        self.frames = LinearFrames(config.num_components, config.num_latents)

    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, without tails of the experts whose domain holds z: shape (S, Q) -> (S,)."""
        if self.has_tails:
            return self._log_density(z)
        u = self.frames.inverse(z)
        is_beyond = ((u < self.low) | (u > self.high)).any(1)
        joint = self._log_joint(u.clamp(self.low, self.high)).masked_fill(is_beyond, -math.inf)
        return torch.logsumexp(joint, -1)

    def coordinates(self, z: Tensor) -> Tensor:
        """Return u in the frame of the expert that explains z best: shape (S, Q)."""
        u = self.frames.inverse(z)
        best = self._log_joint(u).argmax(-1)
        return u[torch.arange(len(u), device=u.device), :, best]

    @torch.no_grad()
    def start(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set the Gaussian mixture that the experts are where f = 0; f stays as it is.

        With covariance E diag(v) E^T, W = E diag(sqrt v): the axes of an expert are its principal ones.

        Args:
            weights: pi, shape (K,).
            means: Shape (K, Q).
            covariances: Shape (K, Q, Q), positive definite.
        """
        variances, axes = torch.linalg.eigh(covariances.double())
        self.start_weights(weights)
        self.frames.offset.copy_(means)
        self.frames.matrix.copy_(axes * variances.sqrt().unsqueeze(-2))

    @property
    def _invertible(self) -> InvertibleMatrices:
        return self.frames

    def _log_density(self, z: Tensor) -> Tensor:
        """Return log p(z), not of u: which frame applies is part of the density. Shape (S, Q) -> (S,)."""
        return torch.logsumexp(self._log_joint(self.frames.inverse(z)), -1)

    def _log_joint(self, u: Tensor) -> Tensor:
        """Return log pi_k + log p(z|k) for u of every expert: shape (S, Q, K) -> (S, K)."""
        functions = (self.bank.features(u) * self.bank.weights()).sum(-1)
        return (functions + log_reference("gaussian", u)).sum(1) + self._log_scale()

    def _expected_log_density(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log-sum-exp of expected energies, <= E log p(z) (Jensen), equal to it for K = 1."""
        mean, std = self.frames.inverse_moments(mean, std)
        functions = (self.bank.expected_features(mean, std) * self.bank.weights()).sum(-1)
        reference = log_reference("gaussian", mean) - 0.5 * std.square()
        return torch.logsumexp((functions + reference).sum(1) + self._log_scale(), -1)

    def _log_scale(self) -> Tensor:
        """Return log pi_k + log |det W_k^-1| - sum_q log Z_{q,k}: shape (K,)."""
        return self.log_weights() + self.frames.log_det_inverse() - self.log_normalizer().sum(0)

    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw z, not u: the u of one expert per sample, in its frame. Shape (num, Q)."""
        expert, u = self._draw(num, rng)
        z = torch.empty_like(u)
        for k in sorted(set(expert.tolist())):
            chosen = expert == k
            z[chosen] = self.frames.offset[k].double() + u[chosen] @ self.frames.matrix[k].double().T
        return z
