"""Langevin steps: unadjusted (ULA, eq. 11) and Metropolis-adjusted (MALA; Roberts & Tweedie 1996).

    z' = reflect(z + eta v score(z) + sqrt(2 eta v) xi),     score = grad [log p(z) + t log p(x|z)]

with v a variance per latent that preconditions the step (1 unless an encoder knows better). A proposal that
leaves the domain is folded back at its ends; MALA's test uses the density of the folded proposal, so the
target keeps its mass there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.devices import normal, uniform
from kaem_train.posterior.power import ChainState, PowerPosterior, per_chain

_ADAPTATION_GAIN = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNoise:
    """What one step of S chains draws.

    Attributes:
        normal: xi, shape (S, *latent_shape).
        uniform: Uniforms of the acceptance test, shape (S,).
    """

    normal: Tensor
    uniform: Tensor

    @classmethod
    def draw(cls, like: Tensor, rng: torch.Generator) -> StepNoise:
        """Draw the noise of one step of chains at `like`, shape (S, *latent_shape)."""
        return cls(
            normal=normal(like.shape, rng, like),
            uniform=uniform((len(like),), rng, like),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What a step did, for people to watch and for adaptation.

    Attributes:
        acceptance: Probability of the Metropolis-Hastings test, applied (MALA) or not (ULA): shape (S,).
        reflected: Share of latents that were folded back: shape (S,).
    """

    acceptance: Tensor
    reflected: Tensor


def langevin_step(
    state: ChainState,
    noise: StepNoise,
    *,
    target: PowerPosterior,
    step_size: Tensor,
    variance: Tensor | None = None,
    is_adjusted: bool,
) -> tuple[ChainState, StepInfo]:
    """Advance S chains by one step.

    Args:
        state: States of the chains before the step.
        noise: What the step draws.
        target: What they sample.
        step_size: eta, shape (S,).
        variance: v, the shape of z; 1 where absent.
        is_adjusted: Whether to apply the test (MALA) or only to report it (ULA).

    Returns:
        Where they stand now, and what happened.
    """
    scale = per_chain(step_size, state.z) * (1.0 if variance is None else variance)
    deviation = (2.0 * scale).sqrt()
    mean = state.z + scale * target.score(state)
    moved = mean + deviation * noise.normal
    folded = reflect(moved, target.low, target.high)
    proposal = target.at(folded)
    back = proposal.z + scale * target.score(proposal)
    log_ratio = (
        target.log_density(proposal)
        - target.log_density(state)
        + _log_proposal(state.z, back, deviation, target)
        - _log_proposal(proposal.z, mean, deviation, target)
    )
    acceptance = torch.nan_to_num(log_ratio, nan=-math.inf).clamp_max(0.0).exp()
    info = StepInfo(acceptance=acceptance, reflected=(moved != folded).to(moved).flatten(1).mean(1))
    if not is_adjusted:
        return proposal, info
    return state.select(noise.uniform < acceptance, proposal), info


def reflect(z: Tensor, low: float, high: float) -> Tensor:
    """Fold latents into [low, high]: reflect at both ends twice, then clamp what was further out."""
    for _ in range(2):
        z = torch.where(z < low, 2.0 * low - z, z)
        z = torch.where(z > high, 2.0 * high - z, z)
    return z.clamp(low, high)


def _log_proposal(z: Tensor, mean: Tensor, deviation: Tensor, target: PowerPosterior) -> Tensor:
    """Return log q(z|mean) of the folded Gaussian, up to a constant of the deviation: shape (S,)."""

    def log_normal(image: Tensor) -> Tensor:
        return -0.5 * ((image - mean) / deviation).square()

    total = log_normal(z)
    if math.isfinite(target.low) and math.isfinite(target.high):
        # All points that two reflections fold onto z.
        twice = 2.0 * (target.high - target.low)
        images = (2.0 * target.low - z, 2.0 * target.high - z, z + twice, z - twice)
        total = torch.logsumexp(torch.stack([total, *map(log_normal, images)]), 0)
    return total.flatten(1).sum(1)


class StepSizes(nn.Module):
    """Step sizes that follow a wanted acceptance from update to update.

        log eta <- log eta + (mean acceptance of the update - target)

    Steps are constant within an update, so its chains have one kernel, and they are part of the checkpoint.

    Under ULA eta never passes its start: nothing there corrects a large step, and the acceptance it would
    have had is a poor guard. On a Gaussian of precision lambda, eta lambda = 1.5 quadruples the variance, and
    the acceptance is still .71 in one dimension and .58 in four.

    State: `log_step` (K,), one per temperature.

    Args:
        start: eta at the first update.
        config: `kernel`, `adapt_step` and `target_acceptance`.
        num: K.
    """

    log_step: Tensor

    def __init__(self, start: float, config: PosteriorConfig, *, num: int = 1) -> None:
        super().__init__()
        self.config = config
        self._log_limit = {"ula": math.log(start), "mala": math.inf}[config.kernel]
        self.register_buffer("log_step", torch.full((num,), math.log(start)))

    def per_chain(self, num_chains: int) -> Tensor:
        """Return eta of every chain, temperature-major: shape (num_chains,), a multiple of K."""
        return self.log_step.exp().repeat_interleave(num_chains // len(self.log_step))

    @torch.no_grad()
    def follow(self, acceptance: Tensor) -> None:
        """Adapt to the mean acceptance of one update, shape (K,)."""
        if self.config.adapt_step:
            self.log_step += _ADAPTATION_GAIN * (acceptance - self.config.target_acceptance)
            self.log_step.clamp_(max=self._log_limit)
