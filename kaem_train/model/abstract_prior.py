"""What every prior is: univariate densities p_{q,p}(u) = exp(f_{q,p}(u)) pi0(u) / Z_{q,p} and a linear frame.

Normalisers and inverse distribution functions come from quadrature, so density and sampling are exact and
no Markov chain is involved. Outside the domain every density is 0. Latents are z = u, or z = b + W u where
there is a frame; the methods of children speak of u, the public ones of z.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from kaem_train.model.bases import build_basis
from kaem_train.model.energy import UnivariateBank
from kaem_train.model.frame import InvertibleMatrices, LinearFrame
from kaem_train.model.prior_grid import (
    fit_points,
    fit_weights,
    grid_knots,
    grown_domain,
    used_range,
)
from kaem_train.model.quadrature import Cumulative, cell_edges, integrate
from kaem_train.model.reference import ReferenceDensity
from kaem_train.sections import PriorConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A quadrature rule and what it was built for.

    Plain float64 tensors, not buffers: a model moved to float64 then gets its nodes at full precision.
    """

    key: tuple[str | float, ...]
    nodes: Tensor
    log_weights: Tensor


class AbstractPrior(nn.Module):
    """What all variants share: the bank of energies, their domain, their integrals and the frame.

    State: `bank.*` (see `UnivariateBank`), `reference.*` where pi0 has parameters (see `ReferenceDensity`), `frame.*`
    where there is one, `domain` (2,) where refits may move it, and what a variant adds. The quadrature nodes are
    derived from these and from the configuration, and are not part of the state.

    Attributes:
        variant: `mixture`, `independent` or `experts`.
        frame: The map from u to z that all share; None where there is none.
        num_latents: Q.
        num_components: P.
    """

    variant: Variant
    frame: LinearFrame | None
    domain: Tensor
    _sampling_cells = 16

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.num_latents = config.num_latents
        self.num_components = config.num_components
        self.reference = ReferenceDensity(config)
        self._first_domain = (config.low, config.high)
        self._grid_update_ratio = config.grid_update_ratio
        if config.refit_interval:
            self.register_buffer("domain", torch.tensor(self._first_domain))
        basis = build_basis(
            config.basis,
            config.grid_size,
            grid=(config.grid_low, config.grid_high),
            domain=(config.low, config.high),
        )
        self.bank = UnivariateBank(config.num_latents, config.num_components, basis, base=config.base)
        self.frame = _common_frame(config)
        self._rule = _Rule(key=(), nodes=torch.empty(0), log_weights=torch.empty(0))
        self._holds_rule = False

    @property
    def low(self) -> float:
        """Lower end of the domain on which the densities are defined."""
        return self._domain[0]

    @property
    def high(self) -> float:
        """Upper end of the domain."""
        return self._domain[1]

    @property
    def _domain(self) -> tuple[float, float]:
        moved: Tensor | None = self._buffers.get("domain")
        return self._first_domain if moved is None else (float(moved[0]), float(moved[1]))

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (Q,) or (Q, P)."""

    @abstractmethod
    def generator_input(self, z: Tensor) -> Tensor:
        """Return what the generator sees: shape (S, *latent_shape) -> (S, Q)."""

    @abstractmethod
    def _training_rule(self) -> tuple[Tensor, Tensor]:
        """Return nodes and weights of the quadrature of Z, float64, of one shape."""

    @abstractmethod
    def _log_density(self, u: Tensor) -> Tensor:
        """Return log p_U(u), normalised: shape (S, *latent_shape) -> (S,)."""

    @abstractmethod
    def _expected_log_density(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E log p_U(u), or a lower bound of it, from the marginal moments of a Gaussian u: -> (S,)."""

    @abstractmethod
    def _sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw u: shape (num, *latent_shape)."""

    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, normalised: shape (S, *latent_shape) -> (S,), for u inside the domain.

        Outside it this is the smooth continuation of the formula, which training with a Gaussian reference
        may use: the reference leaves less than 2e-9 of its mass beyond +-6.
        """
        if self.frame is None:
            return self._log_density(z)
        return self._log_density(self.frame.inverse(z)) + self.frame.log_det_inverse()

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats: shape (S, *latent_shape) -> (S,); -inf where u is outside the domain."""
        u = z if self.frame is None else self.frame.inverse(z)
        is_inside = ((u >= self.low) & (u <= self.high)).flatten(1).all(-1)
        return self.log_density(z).masked_fill(~is_inside, -math.inf)

    def score_density(self, z: Tensor) -> Tensor:
        """Return the log p(z) by which latents are scored, in nats: shape (S, *latent_shape) -> (S,).

        With a Gaussian reference the formula goes on beyond the domain, where it holds less than 2e-9 of the mass
        (see `log_density`): one outlier in a thousand must not make a mean -inf. With others it is `log_prob`.
        """
        return self.log_density(z) if self.reference.has_unbounded_support else self.log_prob(z)

    def expected_log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E_q log p(z), or a lower bound of it, for a diagonal Gaussian q, in closed form.

        The reference must be a Gaussian, learnable or not, and the bank free of a base activation. The energies
        are taken beyond the domain too, as in `log_density`.

        Args:
            mean: Of q, shape (S, *latent_shape).
            std: Of q, the same shape.

        Returns:
            Shape (S,).
        """
        if self.frame is None:
            return self._expected_log_density(mean, std)
        return self._expected_log_density(*self.frame.inverse_moments(mean, std)) + self.frame.log_det_inverse()

    @torch.no_grad()
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw exactly from the prior by inverting distribution functions (Algorithm 1), without gradient.

        Every univariate density has its own uniform: the prior factorises over them only then.

        Returns:
            Shape (num, *latent_shape), the module's dtype.
        """
        u = self._sample(num, rng).to(self.bank.coefficients.dtype)
        return u if self.frame is None else self.frame(u)

    def unnormalised_log_density(self, z: Tensor) -> Tensor:
        """Return f_{q,p}(z) + log pi0(z) on nodes inside the domain.

        Args:
            z: Shape (Q, P, M), (Q, 1, M) or (1, 1, M).

        Returns:
            Shape (Q, P, M).
        """
        return self.bank.nodes(z) + self.reference.nodes(z)

    def cell_edges(self, cells_per_cell: int) -> Tensor:
        """Return cell boundaries shared by all Q x P functions, ascending from `low` to `high`.

        Every density is smooth inside a cell: edges lie on all knots, on the kink of the base activation,
        on the breaks of the reference and on the ends of the support.

        Args:
            cells_per_cell: How many cells at least take the place of one of width `cell`.

        Returns:
            Shape (E,), float64.
        """
        widest = self.cell / cells_per_cell
        breaks = (*self.bank.kinks, *self.reference.breaks(self.low, self.high))
        return cell_edges(self.low, self.high, self.bank.breaks, breaks, widest=widest)

    @property
    def cell(self) -> float:
        """Width of the cells in which a few Gauss-Legendre nodes integrate every density about exactly."""
        return self.bank.cell

    def log_normalizer(self) -> Tensor:
        """Return log Z_{q,p} (eq. 20) by quadrature, differentiable: shape (Q, P)."""
        rule = self._current_rule()
        nodes = rule.nodes.to(self.bank.coefficients)
        values = self.unnormalised_log_density(nodes[None, None])
        return torch.logsumexp(values + rule.log_weights.to(nodes), dim=-1)

    @torch.no_grad()
    def refit_grid(self, z: Tensor) -> list[nn.Parameter]:
        """Let domain and knots follow latents and refit the coefficients (section 2.4 of the method).

        The domain grows, but only with a reference that leaves room for it; all functions share one grid. The
        functions stay what they are wherever they can be; beyond the old domain they go on as they end there.

        Args:
            z: Latents that occur, shape (S, *latent_shape); the configuration must allow refits.

        Returns:
            The parameters that changed; an optimiser must forget their moments.
        """
        u = z if self.frame is None else self.frame.inverse(z)
        before = self._domain
        if self.reference.has_unbounded_support or self.reference.name == "none":
            self.domain.copy_(torch.tensor(grown_domain(u, before, self._first_domain)))
        if self.bank.grid is None:
            return []
        # Where no Gaussian ends the density, the grid must cover all of the domain.
        ends = used_range(u, self._domain) if self.reference.has_unbounded_support else self._domain
        knots = grid_knots(u, len(self.bank.grid) - 1, self._grid_update_ratio, ends)
        points, num_quantiles = fit_points(u, len(knots), self._domain)
        inside = points.clamp(*before)
        density = torch.softmax(self.unnormalised_log_density(inside[None, None]), -1).mean((0, 1))
        self.bank.move_knots(knots, points, fit_weights(density, num_quantiles), used=before)
        return [self.bank.coefficients]

    @contextmanager
    def rule_held(self, *, is_checked: bool = True) -> Iterator[None]:
        """Keep the quadrature rule of Z inside.

        Whether it is still the right one is a question about values, for whose answer a GPU would be waited for.

        Args:
            is_checked: Whether that is asked at the beginning; if not, a rule that is there already is kept.
        """
        if is_checked or not self._rule.key:
            self._current_rule()
        before, self._holds_rule = self._holds_rule, True
        try:
            yield
        finally:
            self._holds_rule = before

    @contextmanager
    def constants_held(self) -> Iterator[None]:
        """Keep inside what follows from the parameters alone and must not change there: the rule, inverse frames."""
        frame = self._invertible
        with self.rule_held(), nullcontext() if frame is None else frame.inverse_held():
            yield

    @property
    def _invertible(self) -> InvertibleMatrices | None:
        """The frame, or frames, whose inverse the density needs."""
        return self.frame

    def _current_rule(self) -> _Rule:
        """Return the rule for Z, built anew where the domain, the knots or the fineness of the functions changed."""
        if self._holds_rule:
            return self._rule
        device = self.bank.coefficients.device
        key: tuple[str | float, ...] = (str(device), self.low, self.high, self.cell, *self.bank.breaks)
        if key != self._rule.key:
            nodes, weights = (part.flatten().to(device) for part in self._training_rule())
            self._rule = _Rule(key=key, nodes=nodes, log_weights=weights.log())
        return self._rule

    @torch.no_grad()
    def cumulative(self) -> Cumulative:
        """Return the Q x P distribution functions of the current parameters, built anew at every call."""
        dtype = self.bank.coefficients.dtype
        return integrate(
            lambda nodes: self.unnormalised_log_density(nodes.to(dtype)[None, None]),
            self.cell_edges(self._sampling_cells).to(self.bank.coefficients.device),
        )


def _common_frame(config: PriorConfig) -> LinearFrame | None:
    match config.frame:
        case "global":
            return LinearFrame(config.num_latents)
        case "none" | "own":
            return None
        case _:
            assert_never(config.frame)
