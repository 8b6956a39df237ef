"""The factorised priors of the paper: independent latents (eq. 15) and a mixture per latent (eq. 17)."""

from __future__ import annotations

import torch
from torch import Tensor

from kaem_train.config import PriorConfig
from kaem_train.devices import uniform
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.own_frames import OwnFramesPrior
from kaem_train.model.prior.weighted import WeightedPrior


class IndependentPrior(AbstractPrior):
    """Q x P independent latents (eqs. 14-15); the generator sees their sums over p (eq. 30).

    With `u_sharing = per_p` samples are comonotone over q: z_{q,p} = F_{q,p}^-1(u_p). Every latent alone still
    follows its density, but their joint law lives on a P-dimensional set, and the density is that of independent
    latents all the same, as in the reference implementation.
    """

    variant = "independent"

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__(config, has_tails=has_tails)
        self.shares_uniforms = config.u_sharing == "per_p"

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(Q, P)."""
        return (self.num_latents, self.num_components)

    def _log_density(self, u: Tensor) -> Tensor:
        """Return sum_{q,p} f(z) + log pi0(z) - log Z (eq. 15): shape (S, Q, P) -> (S,)."""
        return (self.bank.paired(u) + self.reference.paired(u) - self.log_normalizer()).sum((1, 2))

    def _expected_log_density(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E_q log p(z), exact because the sum of eq. 15 and the expectation commute."""
        energy = self.bank.expected_paired(mean, std) + self.reference.expected_paired(mean, std)
        return (energy - self.log_normalizer()).sum((1, 2))

    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw z_{q,p} = F_{q,p}^-1(u), u by itself for every (q, p) or shared over q (eq. 13): shape (num, Q, P)."""
        rows = 1 if self.shares_uniforms else self.num_latents
        cumulative = self.cumulative()
        draws = uniform((rows, self.num_components, num), rng, cumulative.edges)
        return cumulative.invert(draws.expand(*self.latent_shape, -1)).permute(2, 0, 1)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return s_q = sum_p z_{q,p}: shape (S, Q, P) -> (S, Q)."""
        return z.sum(-1)


class MixturePrior(WeightedPrior):
    """Q independent latents, each a mixture of P univariate densities (eqs. 17-18).

    The weights alpha_{q,p} are of shape (Q, P).
    """

    variant = "mixture"

    @property
    def _weights_shape(self) -> tuple[int, ...]:
        return (self.num_latents, self.num_components)

    def _log_density(self, u: Tensor) -> Tensor:
        """Return sum_q logsumexp_p [log alpha + f(z) + log pi0(z) - log Z] (eq. 18): (S, Q) -> (S,).

        Z stays: it sets the relative weight of the components. The product over q stays a sum of
        logarithms: as a product of densities it underflows for a few dozen latents.
        """
        energies = self.bank.broadcast(u) + self.reference.broadcast(u)
        return torch.logsumexp(self.log_weights() + energies - self.log_normalizer(), -1).sum(-1)

    def _expected_log_density(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return sum_q logsumexp_p E_q[...] <= E_q log p(z): logsumexp is convex (Jensen)."""
        energies = self.bank.expected_broadcast(mean, std) + self.reference.expected_broadcast(mean, std)
        return torch.logsumexp(self.log_weights() + energies - self.log_normalizer(), -1).sum(-1)

    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw a component of every latent, then invert its distribution function: shape (num, Q)."""
        shape = (self.num_latents, num)
        weights = self.log_weights().double().softmax(-1).cumsum(-1)
        choice, draws = (uniform(shape, rng, weights) for _ in range(2))
        component = torch.searchsorted(weights, choice, right=True).clamp_(max=self.num_components - 1)
        # Inverting for all P and keeping one needs no table per sample.
        everywhere = draws.unsqueeze(1).expand(-1, self.num_components, -1)
        candidates = self.cumulative().invert(everywhere)
        z = candidates.gather(1, component.unsqueeze(1)).squeeze(1)
        return z.T


Prior = IndependentPrior | MixturePrior | ExpertsPrior | OwnFramesPrior


def build_prior(config: PriorConfig, *, has_tails: bool = True) -> Prior:
    """Return the configured prior with freshly drawn parameters.

    Args:
        config: The prior's section.
        has_tails: Whether its density shall go on beyond the domain, as the latents of an encoder do; it does so where
            `config.has_tails`.
    """
    match config.variant, config.frame:
        case "independent", "none":
            return IndependentPrior(config, has_tails=has_tails)
        case "mixture", "none" | "global":
            return MixturePrior(config, has_tails=has_tails)
        case "experts", "none" | "global":
            return ExpertsPrior(config, has_tails=has_tails)
        case "experts", "own":
            return OwnFramesPrior(config, has_tails=has_tails)
        case variant, frame:
            raise AssertionError(f"no prior is {variant!r} with the frame {frame!r}")


def weight_penalty(prior: Prior, strength: float) -> Tensor:
    """Return lambda sum |a| over the logits a of the mixture weights, scalar; 0 for independent latents.

    On the logits, for on the weights themselves it would be the constant lambda Q, whose gradient is 0.
    """
    if isinstance(prior, IndependentPrior):
        return torch.zeros(())
    return strength * prior.logits.abs().sum()
