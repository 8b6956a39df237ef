"""The latent prior: its variant, functions, domain and frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

from kaem.errors import ConfigError
from kaem_train.config.checks import (
    WITHOUT_KNOTS,
    BaseActivation,
    BasisName,
    least_grid_size,
    require_at_least,
    require_at_most,
    require_decay,
    require_range,
)

LEAST_EXPERT_STD = math.exp(-2.0)
"""Smallest deviation of an expert's Gaussian part; every quadrature of experts resolves it."""

MOST_WEIGHTS = 2**28
"""Numbers of one tensor of a prior: coefficients, or matrices of frames."""

MOST_OUTSIDE = 1e-6
"""Share of a density that may lie outside the domain on which it is sampled."""

_MOST_CELLS = 10_000


Variant = Literal["mixture", "independent", "experts"]
FrameKind = Literal["none", "global", "own"]
Reference = Literal["gaussian", "learnable_gaussian", "lognormal", "uniform", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """The latent prior p(z) proportional to exp(f(z)) pi0(z), built from Q x P univariate functions.

    Attributes:
        variant: `mixture` (eq. 17: Q latents of P components), `independent` (eq. 15: Q x P latents) or
            `experts` (a mixture of P factorised densities, its index tied across the Q latents).
        num_latents: Q, length of the vector the generator sees.
        num_components: P, components (mixture), summands (independent) of each latent, or experts.
        frame: `global` learns z = b + W u, u from the univariate densities; `own` learns b and W for each expert
            (experts only); `none` is z = u.
        reference: pi0: `gaussian`, `learnable_gaussian` (its mean and deviation trained per function), `lognormal`
            (domain in (0, inf), say [0.001, 8]), `uniform` (exactly on [0, 1]) or `none` (constant on the grid range).
        low: Lower end of the domain on which latents are sampled. With a Gaussian reference of which the domain holds
            all but 1e-6, as encoders need it, density and domain go on beyond it where latents do; else both end there.
        high: Upper end of that domain.
        basis: Family of the functions B_g: `rbf` (Gaussians), `rswaf` (1 - tanh^2), `bspline` (cubic), `fourier`,
            `chebyshev`, `legendre` (polynomials on the domain) or `morlet` (wavelets).
        grid_low: First knot (rbf, rswaf, bspline); lower end of where wavelets start (morlet); else unused.
        grid_high: Last knot; upper end of where wavelets start.
        grid_size: G: intervals between the knots (rbf, rswaf: G + 1 functions; bspline: G + 3), frequencies
            (fourier: 2 G + 1 functions), highest degree (chebyshev, legendre: G + 1), or wavelets of each energy
            (morlet: 1 is the paper's reading, 8 a useful bank).
        base: Activation b of the term w_b b(z); `none` leaves the term at zero.
        train_proportions: Whether the weights of components or experts are trained; false keeps them equal.
        u_sharing: Independent variant: `per_qp` samples every latent from its own uniform, `per_p` shares u_p over q
            (eq. 13), which the density (eq. 15) knows nothing of.
        refit_interval: Updates between the first two refits of the grid; 0 never refits.
        refit_decay: The interval f grows to floor(f (2 - decay)^i) after the refit at update i.
        grid_update_ratio: Spacing of new knots: 1 is equal, 0 puts them on quantiles of the latents (0.05 in the
            paper). Functions of one width lose their shape on uneven knots.
    """

    variant: Variant = "mixture"
    num_latents: int
    num_components: int
    frame: FrameKind = "none"
    reference: Reference = "gaussian"
    low: float = -6.0
    high: float = 6.0
    grid_low: float = -4.0
    grid_high: float = 4.0
    grid_size: int = 20
    basis: BasisName = "rbf"
    base: BaseActivation = "none"
    refit_interval: int = 0
    refit_decay: float = 0.999
    grid_update_ratio: float = 1.0
    train_proportions: bool = True
    u_sharing: Literal["per_qp", "per_p"] = "per_qp"

    def __post_init__(self) -> None:
        require_at_least("num_latents", self.num_latents, 1)
        require_at_least("num_components", self.num_components, 1)
        require_at_least("grid_size", self.grid_size, least_grid_size(self.basis))
        require_at_least("refit_interval", self.refit_interval, 0)
        require_decay("refit_decay", self.refit_decay)
        if not 0.0 <= self.grid_update_ratio <= 1.0:
            raise ConfigError(f"grid_update_ratio = {self.grid_update_ratio} is outside [0, 1]")
        # Far beyond use. Experts start at as many clusters of 8192 encoded images; the product bounds the memory.
        for name, most in (("num_latents", 8192), ("num_components", 8192), ("grid_size", 4096)):
            require_at_most(name, getattr(self, name), most)
        num_weights = self.num_latents * self.num_components * self.grid_size
        require_at_most("num_latents x num_components x grid_size", num_weights, MOST_WEIGHTS)
        if self.frame == "own":
            num_weights = self.num_components * self.num_latents**2
            require_at_most("num_components x num_latents^2 (frame = 'own')", num_weights, MOST_WEIGHTS)
        require_range("low", self.low, "high", self.high)
        require_range("grid_low", self.grid_low, "grid_high", self.grid_high)
        self._check_domain()
        self._check_domain_of_reference()
        if self.grid_low < self.low or self.grid_high > self.high:
            raise ConfigError(
                f"grid [{self.grid_low}, {self.grid_high}] reaches outside the domain [{self.low}, {self.high}]",
                hint="widen prior.low and prior.high, or narrow the grid",
            )
        if self.frame == "global" and self.variant == "independent":
            raise ConfigError(
                "frame = 'global' does not suit variant = 'independent', whose latents are summed",
                hint="set prior.variant=mixture with prior.num_components=1 for one energy per latent",
            )
        if self.frame == "own" and self.variant != "experts":
            raise ConfigError(
                f"frame = 'own' gives every expert a frame, and variant = {self.variant!r} has none",
                hint="set prior.variant=experts, or prior.frame=global",
            )
        if self.refit_interval and self.frame == "own":
            raise ConfigError(
                f"refit_interval = {self.refit_interval} does not suit frame = 'own', whose experts see every "
                "latent in frames of their own",
                hint="set prior.refit_interval=0 or prior.frame=global",
            )
        if self.refit_interval and self.reference == "uniform" and self.basis in WITHOUT_KNOTS:
            raise ConfigError(
                f"refit_interval = {self.refit_interval} has nothing to refit: basis = {self.basis!r} has no knots, "
                "and the domain of the uniform reference is fixed",
                hint="set prior.refit_interval=0",
            )
        if self.variant == "experts":
            self._check_experts()
        if self.variant != "independent" and self.u_sharing == "per_p":
            raise ConfigError(
                f"u_sharing = 'per_p' does not suit variant = {self.variant!r}, whose latents have a uniform each",
                hint="set prior.u_sharing=per_qp or prior.variant=independent",
            )
        if self.variant == "independent" and not self.train_proportions:
            raise ConfigError(
                "train_proportions = False does not suit variant = 'independent', which has no proportions",
                hint="leave prior.train_proportions out or set prior.variant=mixture",
            )

    @property
    def reference_outside(self) -> float:
        """Share of N(0, 1), the start of a Gaussian reference, outside the domain; 0 of references that end with it."""
        if self.reference not in {"gaussian", "learnable_gaussian"}:
            return 0.0
        return 0.5 * (math.erfc(-self.low / math.sqrt(2.0)) + math.erfc(self.high / math.sqrt(2.0)))

    @property
    def has_tails(self) -> bool:
        """Whether the density can go on beyond the domain, on which nearly all of it is sampled."""
        return self.reference in {"gaussian", "learnable_gaussian"} and self.reference_outside <= MOST_OUTSIDE

    def require_tails(self) -> None:
        """Refuse a domain that cuts off a Gaussian reference: latents of an encoder lie on the whole line.

        Raises:
            ConfigError: More than 1e-6 of it lies outside.
        """
        if self.reference_outside > MOST_OUTSIDE:
            raise ConfigError(
                f"domain [{self.low:g}, {self.high:g}] leaves {self.reference_outside:.2g} of the {self.reference} "
                f"reference outside, above {MOST_OUTSIDE:g}: latents of an encoder lie there, samples never do",
                hint="set prior.low=-6 and prior.high=6; the grid may stay narrower",
            )

    @property
    def is_collapsed(self) -> bool:
        """Whether the generator's input is Q independent univariate latents, in a frame or not."""
        return self.variant != "experts" and self.u_sharing == "per_qp"

    @property
    def shares_uniforms(self) -> bool:
        """Whether the latents of a component have one uniform in common."""
        match self.u_sharing:
            case "per_p":
                return True
            case "per_qp":
                return False
            case _:
                assert_never(self.u_sharing)

    @property
    def has_summands(self) -> bool:
        """Whether a latent that the generator sees is a sum over components."""
        match self.variant:
            case "independent":
                return True
            case "mixture" | "experts":
                return False
            case _:
                assert_never(self.variant)

    @property
    def num_uniforms(self) -> int:
        """D, uniforms that one sample takes: Q, one more to pick an expert, or P where they are shared over q."""
        match self.u_sharing:
            case "per_p":
                return self.num_components
            case "per_qp":
                return self.num_latents + (self.variant == "experts")
            case _:
                assert_never(self.u_sharing)

    def _check_domain_of_reference(self) -> None:
        domain = f"domain [{self.low}, {self.high}]"
        if self.reference == "uniform" and (self.low, self.high) != (0.0, 1.0):
            raise ConfigError(
                f"{domain} does not fit the uniform reference, whose support is [0, 1]",
                hint="set prior.low=0 and prior.high=1",
            )
        if self.reference == "lognormal" and self.low <= 0.0:
            raise ConfigError(
                f"{domain} does not fit the lognormal reference, whose support is (0, inf)",
                hint="set prior.low=0.001 prior.high=8 prior.grid_low=0.001 prior.grid_high=8",
            )
        if self.reference == "learnable_gaussian" and not (self.low <= -4.0 and self.high >= 4.0):
            raise ConfigError(
                f"{domain} does not hold [-4, 4], where the learnable Gaussian reference starts",
                hint="set prior.low=-6 and prior.high=6",
            )
        if self.reference == "none" and (self.low, self.high) != (self.grid_low, self.grid_high):
            raise ConfigError(
                f"{domain} is not the grid range [{self.grid_low}, {self.grid_high}]",
                hint="without a reference the density lives on the grid: set prior.low and prior.high to it",
            )

    def _check_domain(self) -> None:
        spacing = (self.grid_high - self.grid_low) / self.grid_size
        width = self.high - self.low
        if self.variant == "experts":
            spacing = min(spacing, LEAST_EXPERT_STD)
        if width > _MOST_CELLS * spacing:
            raise ConfigError(
                f"domain [{self.low}, {self.high}] is {width / spacing:.3g} times as wide as the functions are "
                f"({spacing:.3g}), above {_MOST_CELLS}: its quadrature would need as many cells",
                hint="narrow prior.low and prior.high, or lower prior.grid_size",
            )

    def _check_experts(self) -> None:
        if self.reference != "gaussian":
            raise ConfigError(
                f"reference = {self.reference!r} does not suit variant = 'experts', whose energies hold a Gaussian",
                hint="set prior.reference=gaussian",
            )
        if self.base != "none":
            raise ConfigError(
                f"base = {self.base!r} does not suit variant = 'experts', which needs closed-form expectations",
                hint="set prior.base=none",
            )
