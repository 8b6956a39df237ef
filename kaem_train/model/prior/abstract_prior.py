"""What every prior is: univariate densities p_{q,p}(u) = exp(f_{q,p}(u)) pi0(u) / Z_{q,p} and a linear frame.

Normalisers and inverse distribution functions come from quadrature, so density and sampling are exact and
no Markov chain is involved. Latents are z = u, or z = b + W u where there is a frame; the methods of children speak
of u, the public ones of z.

There is one density. Either it ends with the domain [a, b], and is 0 outside; or it has the Gaussian tails that an
encoder's latents need, and the formula holds on the whole line. Z then counts the tails, from above:

    Z = int_a^b exp(f) pi0 + int_tails exp(h + t |u - end|) pi0,    f(u) <= h + t |u - end| there

so that p never exceeds a normalised density, and a bound of log p(x) is one. Samples are from [a, b]; `widen` lets it
grow until at most 1e-6 of every density lies outside (docs/adr/0007).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from kaem.errors import KaemError
from kaem_train.config import MOST_OUTSIDE, PriorConfig, Variant
from kaem_train.model.bases import build_basis
from kaem_train.model.prior.energy import UnivariateBank
from kaem_train.model.prior.frame import InvertibleMatrices, LinearFrame
from kaem_train.model.prior.grid import find_used_range, fit_points, fit_weights, place_knots
from kaem_train.model.prior.quadrature import Cumulative, cell_edges, gauss_legendre, integrate
from kaem_train.model.prior.reference import ReferenceDensity

_TRAINING_ORDER = 8
_STEPS_OF_GROWTH = 32
"""Into so many is the configured domain divided; the domain grows by whole ones."""

_MOST_STEPS = 16 * _STEPS_OF_GROWTH

_ROOM = 0.1
"""Where a density does not fit, the domain grows until so much less lies outside, and need not grow again soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A quadrature rule and what it was built for.

    Plain float64 tensors, not buffers: a model moved to float64 then gets its nodes at full precision.
    """

    key: tuple[str | float, ...]
    domain: tuple[float, float]
    nodes: Tensor
    log_weights: Tensor


class AbstractPrior(nn.Module):
    """What all variants share: the bank of energies, their domain, their integrals and the frame.

    State: `bank.*` (see `UnivariateBank`), `reference.*` where pi0 has parameters (see `ReferenceDensity`), `frame.*`
    where there is one, `domain` (2,) where it may have grown, and what a variant adds. The quadrature nodes are
    derived from these and from the configuration, and are not part of the state.

    Args:
        config: The prior's section.
        has_tails: Whether the density shall go on beyond the domain; it does so where the configuration allows it.

    Attributes:
        variant: `mixture`, `independent` or `experts`.
        frame: The map from u to z that all share; None where there is none.
        num_latents: Q.
        num_components: P.
        has_tails: Whether the density goes on beyond the domain.
    """

    variant: Variant
    frame: LinearFrame | None
    domain: Tensor
    _sampling_cells = 16

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__()
        self.has_tails = has_tails and config.has_tails
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
        self.frame = _build_common_frame(config)
        self._rule = _Rule(key=(), domain=self._first_domain, nodes=torch.empty(0), log_weights=torch.empty(0))
        self._holds_rule = False

    @property
    def low(self) -> float:
        """Lower end of the domain on which the densities are sampled."""
        return self._domain[0]

    @property
    def high(self) -> float:
        """Upper end of the domain."""
        return self._domain[1]

    @property
    def _domain(self) -> tuple[float, float]:
        if self._holds_rule:
            return self._rule.domain
        moved: Tensor | None = self._buffers.get("domain")
        return self._first_domain if moved is None else (float(moved[0]), float(moved[1]))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (Q,), or (Q, P) where every function has a latent of its own."""
        return (self.num_latents,)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return what the generator sees, z itself by default: shape (S, *latent_shape) -> (S, Q)."""
        return z

    def _training_rule(self) -> tuple[Tensor, Tensor]:
        """Return nodes and weights of the quadrature of Z, float64, of one shape."""
        return gauss_legendre(self.cell_edges(1), _TRAINING_ORDER)

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
        """Return log p(z) in nats: shape (S, *latent_shape) -> (S,).

        It is at most that of a normalised density on the whole line, and -inf outside the domain where there are
        no tails.
        """
        u = z if self.frame is None else self.frame.inverse(z)
        if self.has_tails:
            value = self._log_density(u)
        else:  # evaluated inside in any case: a logarithm of a negative latent would make every gradient nan
            value = self._log_density(u.clamp(self.low, self.high)).masked_fill(self._is_beyond(u), -math.inf)
        return value if self.frame is None else value + self.frame.log_det_inverse()

    def is_outside(self, z: Tensor) -> Tensor:
        """Return whether a coordinate of a latent lies where no sample does: shape (S, *latent_shape) -> (S,), bool."""
        return self._is_beyond(self.coordinates(z))

    def coordinates(self, z: Tensor) -> Tensor:
        """Return the u that the univariate densities see: the shape of z."""
        return z if self.frame is None else self.frame.inverse(z)

    def _is_beyond(self, u: Tensor) -> Tensor:
        return ((u < self.low) | (u > self.high)).flatten(1).any(-1)

    def expected_log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E_q log p(z), or a lower bound of it, for a diagonal Gaussian q, in closed form.

        The reference must be a Gaussian, learnable or not, and the bank free of a base activation. Without tails it
        is -inf: q is nowhere 0.

        Args:
            mean: Mean of q, shape (S, *latent_shape).
            std: Standard deviation of q, the same shape.

        Returns:
            Shape (S,).
        """
        if not self.has_tails:
            return torch.full_like(mean.flatten(1)[:, 0], -math.inf)
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
        """Return log Z_{q,p} (eq. 20) by quadrature, tails from above, differentiable: shape (Q, P)."""
        rule = self._current_rule()
        nodes = rule.nodes.to(self.bank.coefficients)
        values = self.unnormalised_log_density(nodes[None, None])
        log_inside = torch.logsumexp(values + rule.log_weights.to(nodes), dim=-1)
        return torch.logaddexp(log_inside, self._log_tails().logsumexp(-1)) if self.has_tails else log_inside

    def _log_tails(self, ends: Tensor | None = None) -> Tensor:
        """Return log bounds of the integrals of exp(f) pi0 below and above the domain, or `ends`: shape (Q, P, 2)."""
        ends = self._ends() if ends is None else ends
        heights, slopes = self.bank.bound_beyond(ends)
        return heights + self.reference.log_tails(ends, slopes)

    def _ends(self) -> Tensor:
        """Return the domain, shape (2,)."""
        like = self.bank.coefficients  # filled in place: a copy from the host could not be part of a CUDA graph
        return torch.stack([like.new_full((), end) for end in self._domain])

    @torch.no_grad()
    def widen(self, z: Tensor | None = None) -> bool:
        """Let the domain grow until at most 1e-6 of every density, and none of some latents, lies outside.

        Latents so far out that it would be 33 times as long as configured stay outside: an encoder that has just
        begun puts them anywhere, and the tails give them a density.

        It never shrinks. Log densities change by no more than what Z overestimated; samples come from all of it.

        Args:
            z: Latents that occur, shape (S, *latent_shape).

        Returns:
            Whether it grew; never where there are no tails.

        Raises:
            KaemError: To hold the density it would have to be 33 times as long as it was configured, or an energy is
                too large for its normaliser.
        """
        if not self.has_tails:
            return False
        before = self._domain
        if z is not None:
            u = self.coordinates(z)
            lower, upper = before[0] - float(u.min()), float(u.max()) - before[1]
            self._grow(*(min(length, room) for length, room in zip((lower, upper), self._measure_room(), strict=True)))
        allowed = MOST_OUTSIDE
        while True:
            shares = (self._log_tails() - self.log_normalizer().unsqueeze(-1)).exp().flatten(0, 1).amax(0)
            if bool(shares.isnan().any()):
                raise KaemError(
                    "an energy of the prior is too large for float32",
                    hint="lower training.prior_learning_rate, or look for odd rows in the data",
                )
            if float(shares.sum()) <= allowed:
                return self._domain != before
            if allowed == MOST_OUTSIDE:  # once, before step after step leads nowhere
                self._require_within_reach(allowed)
            allowed = _ROOM * MOST_OUTSIDE
            lower, upper = (float(share) > 0.5 * allowed for share in shares)
            self._grow(0.0 if lower else -1.0, 0.0 if upper else -1.0)

    def _require_within_reach(self, allowed: float) -> None:
        """Refuse densities of which too much lies beyond the longest domain."""
        reach = (self._first_domain[1] - self._first_domain[0]) / _STEPS_OF_GROWTH * _MOST_STEPS
        ends = self._ends()
        ends[0], ends[1] = self._first_domain[0] - reach, self._first_domain[1] + reach
        outside = (self._log_tails(ends) - self.log_normalizer().unsqueeze(-1)).exp().sum(-1).amax()
        if float(outside) > allowed:
            raise self._make_reach_error(*ends.tolist())

    def _make_reach_error(self, low: float, high: float) -> KaemError:
        first = self._first_domain
        return KaemError(
            f"the prior reaches below {low:.3g} or above {high:.3g}, far beyond the domain [{first[0]:g}, "
            f"{first[1]:g}] on which it is configured",
            hint="lower training.learning_rate and training.prior_learning_rate, or widen prior.low and prior.high",
        )

    def _measure_room(self) -> tuple[float, float]:
        """Return how far both ends may still move, just below a whole number of steps; negative for not at all."""
        first = self._first_domain
        step = (first[1] - first[0]) / _STEPS_OF_GROWTH
        reach = (_MOST_STEPS - 0.5) * step
        return self._domain[0] - first[0] + reach - step, first[1] - self._domain[1] + reach - step

    def _grow(self, lower: float, upper: float) -> None:
        """Move either end outwards by the first whole number of steps above a length; by none where that is below 0."""
        first = self._first_domain
        step = (first[1] - first[0]) / _STEPS_OF_GROWTH
        low, high = self._domain
        if lower >= 0.0:
            low -= step * (math.floor(lower / step) + 1)
        if upper >= 0.0:
            high += step * (math.floor(upper / step) + 1)
        if (low, high) == self._domain:
            return
        reach = step * _MOST_STEPS
        if not (low >= first[0] - reach and high <= first[1] + reach):
            raise self._make_reach_error(first[0] - reach, first[1] + reach)
        self.register_buffer("domain", torch.tensor((low, high), device=self.bank.coefficients.device))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take a domain that has grown from a state that holds one."""
        domain = state_dict.get(f"{prefix}domain")
        if domain is not None and "domain" not in self._buffers:
            self.register_buffer("domain", torch.tensor(self._first_domain, device=self.bank.coefficients.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def refit_grid(self, z: Tensor) -> list[nn.Parameter]:
        """Let the knots follow latents and refit the coefficients (section 2.4 of the method).

        The functions stay what they are wherever they can be; all share one grid. A domain that tails allow to grow
        grows to hold the latents. One that ends the density stays: latents inside it cannot tell that it is too
        narrow, and a margin added to them at every refit would widen it without end.

        Args:
            z: Latents that occur, shape (S, *latent_shape); the configuration must allow refits.

        Returns:
            The parameters that changed; an optimiser must forget their moments.
        """
        u = self.coordinates(z)
        before = self._domain
        self.widen(z)
        if self.bank.grid is None:
            return []
        # Where no Gaussian ends the density, the grid must cover all of the domain.
        ends = find_used_range(u, self._domain) if self.reference.is_gaussian else self._domain
        knots = place_knots(u, len(self.bank.grid) - 1, self._grid_update_ratio, ends)
        points, num_quantiles = fit_points(u, len(knots), self._domain)
        inside = points.clamp(*before)
        density = torch.softmax(self.unnormalised_log_density(inside[None, None]), -1).mean((0, 1))
        self.bank.move_knots(knots, points, fit_weights(density, num_quantiles), used=before)
        return [self.bank.coefficients]

    @contextmanager
    def hold_rule(self, *, is_checked: bool = True) -> Iterator[None]:
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
    def hold_constants(self) -> Iterator[None]:
        """Keep inside what follows from the parameters alone and must not change there: the rule, inverse frames."""
        frame = self._invertible
        with self.hold_rule(), nullcontext() if frame is None else frame.hold_inverse():
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
            self._rule = _Rule(key=key, domain=self._domain, nodes=nodes, log_weights=weights.log())
        return self._rule

    @torch.no_grad()
    def cumulative(self) -> Cumulative:
        """Return the Q x P distribution functions of the current parameters, built anew at every call."""
        dtype = self.bank.coefficients.dtype
        return integrate(
            lambda nodes: self.unnormalised_log_density(nodes.to(dtype)[None, None]),
            self.cell_edges(self._sampling_cells).to(self.bank.coefficients.device),
        )


def _build_common_frame(config: PriorConfig) -> LinearFrame | None:
    match config.frame:
        case "global":
            return LinearFrame(config.num_latents)
        case "none" | "own":
            return None
        case _:
            assert_never(config.frame)
