"""The latent prior: its variant, functions, domain and frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.sections.checks import require_at_least, require_range

LEAST_EXPERT_STD = math.exp(-2.0)
"""Smallest deviation of an expert's Gaussian part; every quadrature of experts resolves it."""


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
        reference: pi0: `gaussian`, `uniform` (exactly on [0, 1]) or `none` (constant on the grid range).
        low: Lower end of the domain on which the density is defined.
        high: Upper end of that domain.
        grid_low: First knot of the radial basis functions.
        grid_high: Last knot.
        grid_size: G, intervals between the knots; there are G + 1 functions.
        base: Activation b of the term w_b b(z); `none` leaves the term at zero.
    """

    variant: Literal["mixture", "independent", "experts"] = "mixture"
    num_latents: int
    num_components: int
    frame: Literal["none", "global", "own"] = "none"
    reference: Literal["gaussian", "uniform", "none"] = "gaussian"
    low: float = -6.0
    high: float = 6.0
    grid_low: float = -4.0
    grid_high: float = 4.0
    grid_size: int = 20
    base: Literal["none", "silu", "relu"] = "none"

    def __post_init__(self) -> None:
        require_at_least("num_latents", self.num_latents, 1)
        require_at_least("num_components", self.num_components, 1)
        require_at_least("grid_size", self.grid_size, 2)
        require_range("low", self.low, "high", self.high)
        require_range("grid_low", self.grid_low, "grid_high", self.grid_high)
        if self.reference == "uniform" and (self.low, self.high) != (0.0, 1.0):
            raise ConfigError(
                f"domain [{self.low}, {self.high}] does not fit the uniform reference, whose support is [0, 1]",
                hint="set prior.low=0 and prior.high=1",
            )
        if self.reference == "none" and (self.low, self.high) != (self.grid_low, self.grid_high):
            raise ConfigError(
                f"domain [{self.low}, {self.high}] is not the grid range [{self.grid_low}, {self.grid_high}]",
                hint="without a reference the density lives on the grid: set prior.low and prior.high to it",
            )
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
        if self.variant == "experts":
            self._check_experts()

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
