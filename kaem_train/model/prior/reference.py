"""Reference densities pi0, in log and in closed form.

The logarithm is never taken of a computed density plus an epsilon: that damps the score in the tails.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn

from kaem_train.config import PriorConfig, Reference

LEAST_STD = 0.1
_SOFTPLUS_FLOOR = 1e-3
_BREAK_SPACING = 4.0 * LEAST_STD
_HALVINGS = 12


class ReferenceDensity(nn.Module):
    """pi0 of Q x P univariate densities.

    `gaussian` is N(0, 1), `lognormal` exp(N(0, 1)); `uniform` on [0, 1] and `none` on the grid range are 0 in
    log. `learnable_gaussian` is N(mu, s^2) with s = softplus(rho) + 1e-3. mu stays within a quarter of b - a from
    the centre of the configured domain [a, b] and s below an eighth, so that the domain need not grow much; s also
    stays above 0.1, which the quadrature resolves.

    State, of `learnable_gaussian` only: mean (Q, P): mu, start 0; rho (Q, P), start where s is 1. Both bounds are
    applied where mu and s are used.

    Args:
        config: The prior's section.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.name = config.reference
        self._centre, self._length = 0.5 * (config.low + config.high), config.high - config.low
        if self.is_learnable:
            shape = (config.num_latents, config.num_components)
            self.mean = nn.Parameter(torch.zeros(shape))
            self.rho = nn.Parameter(torch.full(shape, math.log(math.expm1(1.0 - _SOFTPLUS_FLOOR))))

    @property
    def is_learnable(self) -> bool:
        """Whether pi0 has parameters."""
        return self.name == "learnable_gaussian"

    @property
    def is_gaussian(self) -> bool:
        """Whether pi0 is one, and so goes on to infinity on both sides."""
        return self.name in {"gaussian", "learnable_gaussian"}

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mu and s as they are used, each of shape (Q, P); of `learnable_gaussian` only."""
        reach = 0.25 * self._length
        mean = self.mean.clamp(self._centre - reach, self._centre + reach)
        std = nn.functional.softplus(self.rho) + _SOFTPLUS_FLOOR
        return mean, std.clamp(LEAST_STD, 0.125 * self._length)

    @torch.no_grad()
    def start(self, means: Tensor, stds: Tensor) -> None:
        """Set mu and s, each of shape (Q, P); of `learnable_gaussian` only."""
        self.mean.copy_(means)
        self.rho.copy_((stds.clamp_min(LEAST_STD) - _SOFTPLUS_FLOOR).expm1().log())

    def paired(self, z: Tensor) -> Tensor:
        """Return log pi0_{q,p}(z[s,q,p]): shape (S, Q, P) -> (S, Q, P)."""
        if not self.is_learnable:
            return log_reference(self.name, z)
        return _log_normal(z, *self.moments())

    def broadcast(self, z: Tensor) -> Tensor:
        """Return log pi0_{q,p}(z[s,q]): shape (S, Q) -> (S, Q, P), or (S, Q, 1) where all p have the same pi0."""
        return self.paired(z.unsqueeze(-1))

    def nodes(self, z: Tensor) -> Tensor:
        """Return log pi0 on quadrature nodes: shape (Q, P, M), (Q, 1, M) or (1, 1, M) -> broadcasts with (Q, P, M)."""
        if not self.is_learnable:
            return log_reference(self.name, z)
        mean, std = self.moments()
        return _log_normal(z, mean.unsqueeze(-1), std.unsqueeze(-1))

    def expected_paired(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E log pi0_{q,p}(z) for z ~ N(mean, std^2): shapes (S, Q, P); pi0 must be a Gaussian.

        E log N(z; mu, s^2) = log N(mean; mu, s^2) - std^2 / (2 s^2).
        """
        if not self.is_learnable:
            return log_reference(self.name, mean) - 0.5 * std.square()
        centre, width = self.moments()
        return _log_normal(mean, centre, width) - 0.5 * (std / width).square()

    def expected_broadcast(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return E log pi0_{q,p}(z) for z ~ N(mean, std^2): shapes (S, Q) -> (S, Q, P) or (S, Q, 1)."""
        return self.expected_paired(mean.unsqueeze(-1), std.unsqueeze(-1))

    def log_tails(self, ends: Tensor, slopes: Tensor | None) -> Tensor:
        """Return log of the integral of exp(slope |z - end|) pi0(z) below and above two ends; a Gaussian's only.

        Args:
            ends: low and high, shape (2,).
            slopes: Shape (Q, P); None for zeros.

        Returns:
            Broadcasts with (Q, P, 2), lower tail first.
        """
        if self.is_learnable:
            return log_gaussian_tails(ends, *self.moments(), slopes)
        like = ends.new_zeros(1, 1)
        return log_gaussian_tails(ends, like, like + 1.0, slopes)

    def breaks(self, low: float, high: float) -> tuple[float, ...]:
        """Return points of [low, high] at which quadrature cells must end for pi0 to be smooth in each.

        A lognormal is smooth over log z: its cells double. A learnable Gaussian may become as narrow as 0.1.
        """
        match self.name:
            case "lognormal":
                return tuple(2.0**power for power in range(-_HALVINGS, math.ceil(math.log2(high))))
            case "learnable_gaussian":
                count = math.ceil((high - low) / _BREAK_SPACING)
                return tuple(low + (high - low) * step / count for step in range(1, count))
            case "gaussian" | "uniform" | "none":
                return ()
            case _:
                assert_never(self.name)


def log_reference(reference: Reference, z: Tensor) -> Tensor:
    """Return the log density at z of a reference without parameters, elementwise.

    Raises:
        ValueError: The reference is not one of those.
    """
    match reference:
        case "gaussian":
            return -0.5 * z * z - 0.5 * math.log(2.0 * math.pi)
        case "lognormal":
            log_z = z.log()
            return -0.5 * log_z * log_z - log_z - 0.5 * math.log(2.0 * math.pi)
        case "uniform" | "none":
            return torch.zeros_like(z)
        case _:
            raise ValueError(f"{reference!r} is not a reference without parameters")


def log_gaussian_tails(ends: Tensor, mean: Tensor, std: Tensor, slopes: Tensor | None) -> Tensor:
    """Return log of the integral of exp(t |z - end|) N(z; m, s^2) below and above two ends.

    With d the end's distance from m in deviations, outwards, that is exp(t^2 s^2 / 2 - t s d) Phi(t s - d).

    Args:
        ends: low and high, shape (2,).
        mean: m, shape (Q, P), or one that broadcasts with it.
        std: s, the same shape.
        slopes: t, shape (Q, P); None for zeros.

    Returns:
        Shape (Q, P, 2), lower tail first.
    """
    distance = torch.stack([(mean - ends[0]) / std, (ends[1] - mean) / std], -1)
    if slopes is None:
        untilted: Tensor = torch.special.log_ndtr(-distance)
        return untilted
    tilt = (slopes * std).unsqueeze(-1)
    tails: Tensor = 0.5 * tilt * tilt - tilt * distance + torch.special.log_ndtr(tilt - distance)
    return tails


def _log_normal(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return log_reference("gaussian", (z - mean) / std) - std.log()
