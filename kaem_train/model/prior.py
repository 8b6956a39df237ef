"""The latent prior: univariate densities p_{q,p}(z) = exp(f_{q,p}(z)) pi0(z) / Z_{q,p} on a bounded domain.

Normalisers and inverse distribution functions come from quadrature, so density and sampling are exact and
no Markov chain is involved. Outside the domain every density is 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from kaem_train.model.energy import UnivariateBank
from kaem_train.model.quadrature import Cumulative, cell_edges, gauss_legendre, integrate
from kaem_train.model.reference import log_reference
from kaem_train.settings import PriorConfig

_TRAINING_ORDER = 8
_SAMPLING_CELLS_PER_KNOT = 16


class AbstractPrior(nn.Module):
    """What both variants share: the bank of energies, their domain and their integrals.

    State: `bank.*` (see `UnivariateBank`); the mixture adds `logits`. The quadrature nodes are derived from
    the configuration and are not part of the state.

    Attributes:
        variant: `mixture` or `independent`.
        num_latents: Q.
        num_components: P.
        low: Lower end of the domain.
        high: Upper end of the domain.
    """

    variant: Literal["mixture", "independent"]

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.num_latents = config.num_latents
        self.num_components = config.num_components
        self.reference = config.reference
        self.low = config.low
        self.high = config.high
        self.bank = UnivariateBank(
            config.num_latents,
            config.num_components,
            low=config.grid_low,
            high=config.grid_high,
            grid_size=config.grid_size,
            base=config.base,
        )
        # Plain float64 tensors, not buffers: a model moved to float64 then gets its nodes at full precision.
        nodes, weights = gauss_legendre(self.cell_edges(1), _TRAINING_ORDER)
        self._nodes, self._log_node_weights = nodes.flatten(), weights.flatten().log()

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (Q,) or (Q, P)."""

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, normalised: shape (S, *latent_shape) -> (S,), for z inside the domain.

        Outside it this is the smooth continuation of the formula, which training with a Gaussian reference
        may use: the reference leaves less than 2e-9 of its mass beyond +-6.
        """

    @abstractmethod
    def expected_log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E_q log p(z), or a lower bound of it, for a diagonal Gaussian q, in closed form.

        The reference must be gaussian and the bank free of a base activation. The energies are
        taken beyond the domain too, as in `log_density`.

        Args:
            mean: Of q, shape (S, *latent_shape).
            std: Of q, the same shape.

        Returns:
            Shape (S,).
        """

    @abstractmethod
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw exactly from the prior by inverting distribution functions (Algorithm 1), without gradient.

        Every (q, p) has its own uniform: the density factorises over them only then.

        Returns:
            Shape (num, *latent_shape), the module's dtype.
        """

    @abstractmethod
    def generator_input(self, z: Tensor) -> Tensor:
        """Return what the generator sees: shape (S, *latent_shape) -> (S, Q)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats: shape (S, *latent_shape) -> (S,); -inf outside the domain."""
        is_inside = ((z >= self.low) & (z <= self.high)).flatten(1).all(-1)
        return self.log_density(z).masked_fill(~is_inside, -math.inf)

    def unnormalised_log_density(self, z: Tensor) -> Tensor:
        """Return f_{q,p}(z) + log pi0(z) on nodes inside the domain.

        Args:
            z: Shape (Q, P, M), (Q, 1, M) or (1, 1, M).

        Returns:
            Shape (Q, P, M).
        """
        return self.bank.nodes(z) + log_reference(self.reference, z)

    def cell_edges(self, cells_per_knot: int) -> Tensor:
        """Return cell boundaries shared by all Q x P functions, ascending from `low` to `high`.

        Every density is smooth inside a cell: edges lie on all knots, on the kink of the base activation
        and on the ends of the support.

        Returns:
            Shape (E,), float64.
        """
        return cell_edges(self.low, self.high, self.bank.centers, self.bank.kinks, cells_per_knot=cells_per_knot)

    def log_normalizer(self) -> Tensor:
        """Return log Z_{q,p} (eq. 20) by quadrature, differentiable: shape (Q, P)."""
        nodes = self._nodes.to(self.bank.coefficients)
        values = self.unnormalised_log_density(nodes[None, None])
        return torch.logsumexp(values + self._log_node_weights.to(nodes), dim=-1)

    @torch.no_grad()
    def cumulative(self) -> Cumulative:
        """Return the Q x P distribution functions of the current parameters, built anew at every call."""
        dtype = self.bank.coefficients.dtype
        return integrate(
            lambda nodes: self.unnormalised_log_density(nodes.to(dtype)[None, None]),
            self.cell_edges(_SAMPLING_CELLS_PER_KNOT),
        )

    def _expected_log_reference(self, mean: Tensor, std: Tensor) -> Tensor:
        return -0.5 * (mean * mean + std * std) - 0.5 * math.log(2.0 * math.pi)


class IndependentPrior(AbstractPrior):
    """Q x P independent latents (eqs. 14-15); the generator sees their sums over p (eq. 30)."""

    variant = "independent"

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(Q, P)."""
        return (self.num_latents, self.num_components)

    def log_density(self, z: Tensor) -> Tensor:
        """Return sum_{q,p} f(z) + log pi0(z) - log Z (eq. 15): shape (S, Q, P) -> (S,)."""
        return (self.bank.paired(z) + log_reference(self.reference, z) - self.log_normalizer()).sum((1, 2))

    def expected_log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E_q log p(z), exact because the sum of eq. 15 and the expectation commute."""
        energy = self.bank.expected_paired(mean, std) + self._expected_log_reference(mean, std)
        return (energy - self.log_normalizer()).sum((1, 2))

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw z_{q,p} = F_{q,p}^-1(u_{q,p}) with independent uniforms: shape (num, Q, P)."""
        uniform = torch.rand((*self.latent_shape, num), generator=rng, dtype=torch.float64)
        return self.cumulative().invert(uniform).permute(2, 0, 1).to(self.bank.coefficients.dtype)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return s_q = sum_p z_{q,p}: shape (S, Q, P) -> (S, Q)."""
        return z.sum(-1)


class MixturePrior(AbstractPrior):
    """Q independent latents, each a mixture of P univariate densities (eqs. 17-18).

    State besides `bank.*`: `logits` (Q, P), start 0; alpha = softmax over p.
    """

    variant = "mixture"

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.logits = nn.Parameter(torch.zeros(config.num_latents, config.num_components))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(Q,)."""
        return (self.num_latents,)

    def log_weights(self) -> Tensor:
        """Return log alpha_{q,p} = log softmax_p of the logits: shape (Q, P)."""
        return torch.log_softmax(self.logits, -1)

    def log_density(self, z: Tensor) -> Tensor:
        """Return sum_q logsumexp_p [log alpha + f(z) + log pi0(z) - log Z] (eq. 18): (S, Q) -> (S,).

        Z stays: it sets the relative weight of the components. The product over q stays a sum of
        logarithms: as a product of densities it underflows for a few dozen latents.
        """
        components = self.log_weights() + self.bank.broadcast(z) - self.log_normalizer()
        return (torch.logsumexp(components, -1) + log_reference(self.reference, z)).sum(-1)

    def expected_log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return sum_q logsumexp_p E_q[...] <= E_q log p(z): logsumexp is convex (Jensen)."""
        components = self.log_weights() + self.bank.expected_broadcast(mean, std) - self.log_normalizer()
        return (torch.logsumexp(components, -1) + self._expected_log_reference(mean, std)).sum(-1)

    @torch.no_grad()
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw a component of every latent, then invert its distribution function: shape (num, Q)."""
        shape = (self.num_latents, num)
        choice = torch.rand(shape, generator=rng, dtype=torch.float64)
        uniform = torch.rand(shape, generator=rng, dtype=torch.float64)
        weights = self.log_weights().double().softmax(-1).cumsum(-1)
        component = torch.searchsorted(weights, choice, right=True).clamp_(max=self.num_components - 1)
        # Inverting for all P and keeping one needs no table per sample.
        everywhere = uniform.unsqueeze(1).expand(-1, self.num_components, -1)
        candidates = self.cumulative().invert(everywhere)
        z = candidates.gather(1, component.unsqueeze(1)).squeeze(1)
        return z.T.to(self.logits.dtype)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return z itself: shape (S, Q)."""
        return z


Prior = IndependentPrior | MixturePrior


def build_prior(config: PriorConfig) -> Prior:
    """Return the configured prior with freshly drawn parameters."""
    return MixturePrior(config) if config.variant == "mixture" else IndependentPrior(config)
