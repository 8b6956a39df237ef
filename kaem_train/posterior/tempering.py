"""A population of Langevin chains at several temperatures that exchange their states (eqs. 22-25).

After every step one pair of neighbouring temperatures is picked, and each image on its own swaps its two
states with probability

    min(1, r),    log r = (t_{k+1} - t_k) [log p(x|z^k) - log p(x|z^{k+1})].

Below the coldest chain stands the prior itself (t = 0), redrawn exactly for every swap: a global move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.devices import uniform
from kaem_train.families.kaem import Kaem
from kaem_train.posterior.langevin import StepNoise, StepSizes, langevin_step
from kaem_train.posterior.power import ChainState, frozen, power_posterior, squared_error_of
from kaem_train.posterior.protocol import Posterior, Terms
from kaem_train.training.objective import (
    PriorGradient,
    corrected_evidence,
    log_likelihood,
    log_prior_term,
    steppingstone_evidence,
    thermodynamic_evidence,
)

_REFIT_IMAGES = 64

Criterion = Literal["telescoped", "steppingstone", "right_sum"]


def swap_adjacent(state: ChainState, temperatures: Tensor, pair: int, uniform: Tensor) -> tuple[ChainState, Tensor]:
    """Let every image swap its states at temperatures `pair` and `pair` + 1 (eq. 25).

    Args:
        state: K B chains, temperature-major.
        temperatures: Shape (K,).
        pair: k, from 0.
        uniform: Uniforms of the tests, shape (B,).

    Returns:
        The same chains, some exchanged, and the probability of the exchange, shape (B,).
    """
    num = len(temperatures)
    likelihoods = state.log_likelihood.reshape(num, -1)
    log_ratio = (temperatures[pair + 1] - temperatures[pair]) * (likelihoods[pair] - likelihoods[pair + 1])
    acceptance = log_ratio.clamp_max(0.0).exp()
    order = torch.arange(likelihoods.numel(), device=likelihoods.device).reshape(num, -1)
    swapped = order.clone()
    is_swapped = uniform < acceptance
    swapped[pair] = torch.where(is_swapped, order[pair + 1], order[pair])
    swapped[pair + 1] = torch.where(is_swapped, order[pair], order[pair + 1])
    return state.map(lambda values: values[swapped.flatten()]), acceptance


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """A finished run of N_t chains per image.

    Attributes:
        prior_z: Exact prior samples, one per image: shape (B, *latent_shape).
        last: Final states, temperature-major, without t = 0: N_t B chains.
        levels: log p(x|z) at t_0, ..., t_{N_t}: of prior samples, and of the second half of the steps.
        acceptance: Share of accepted proposals of the Langevin steps, per temperature: shape (N_t,).
        reflected: Share of latents folded back, scalar.
        swap_acceptance: Mean probability per pair, nan where it was never tried: shape (N_t,).
    """

    prior_z: Tensor
    last: ChainState
    levels: list[Tensor]
    acceptance: Tensor
    reflected: Tensor
    swap_acceptance: Tensor


def run_population(
    model: Kaem,
    images: Tensor,
    temperatures: Tensor,
    rng: torch.Generator,
    *,
    num_steps: int,
    step_size: Tensor,
    is_adjusted: bool,
) -> Population:
    """Run one population per image from fresh prior samples.

    Args:
        model: Parameters are not differentiated.
        images: Shape (B, C, H, W).
        temperatures: t_0 = 0 < ... < t_{N_t} = 1, shape (N_t + 1,).
        rng: Source of all draws.
        num_steps: T.
        step_size: Shape (N_t B,), temperature-major.
        is_adjusted: MALA or ULA.
    """
    num, batch = len(temperatures) - 1, len(images)
    pairs = torch.randint(num, (num_steps,), generator=rng).tolist()
    drawn = model.prior.sample((num + pairs.count(0)) * batch, rng)
    with frozen(model):
        target = power_posterior(model, images, temperatures[1:])
        at_prior = power_posterior(model, images, temperatures[:1])
        state = target.at(drawn[: num * batch])
        replicas = iter(torch.split(drawn[num * batch :], batch))
        at_zero, later = [state.log_likelihood.reshape(num, batch)], []
        acceptance, swaps, tries = (torch.zeros(num, device=images.device) for _ in range(3))
        reflected = torch.zeros((), device=images.device)
        for step, pair in enumerate(pairs):
            noise = StepNoise.draw(state.z, rng)
            state, info = langevin_step(state, noise, target=target, step_size=step_size, is_adjusted=is_adjusted)
            acceptance = acceptance + info.acceptance.reshape(num, batch).mean(1)
            reflected = reflected + info.reflected.mean()
            if 2 * step >= num_steps:
                later.append(state.log_likelihood.reshape(num, batch))
            draws = uniform((batch,), rng, images)
            if pair == 0:
                replica = at_prior.at(next(replicas))
                at_zero.append(replica.log_likelihood[None])
                population, accepted = swap_adjacent(replica.concatenate(state), temperatures, 0, draws)
                state = population.map(lambda values: values[batch:])
            else:
                state, accepted = swap_adjacent(state, temperatures[1:], pair - 1, draws)
            swaps[pair] += accepted.mean()
            tries[pair] += 1
    return Population(
        prior_z=drawn[:batch],
        last=state,
        levels=[torch.cat(at_zero), *torch.stack(later, 1)],
        acceptance=acceptance / num_steps,
        reflected=reflected / num_steps,
        swap_acceptance=swaps / tries,
    )


class TemperingPosterior(Posterior):
    """Population Langevin sampling with the thermodynamic criterion.

    Args:
        config: Temperatures, kernel and criterion; every temperature adapts its own step size.
        prior_gradient: Form of the prior's gradient.
        updates: Length of the run.
    """

    def __init__(self, config: PosteriorConfig, prior_gradient: PriorGradient, *, updates: int) -> None:
        self.config = config
        self.prior_gradient = prior_gradient
        self.updates = updates
        self.steps = StepSizes(config.step_size, config, num=config.num_temperatures)
        self.network: nn.Module = self.steps

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the criterion's loss; the prior's term always takes the chain at t = 1 (eq. 63)."""
        temperatures = temperature_ladder(self.config.num_temperatures, power_at(self.config, step, self.updates))
        temperatures = temperatures.to(images)
        population = self._run(model, images, temperatures, rng)
        self.steps.follow(population.acceptance)
        z = torch.cat([population.prior_z, population.last.z]).reshape(len(temperatures), *population.prior_z.shape)
        weights = criterion_weights(temperatures, self.config.thermodynamic)
        used = weights.nonzero().flatten()
        errors = torch.stack(
            [squared_error_of(model, images, z[level], model.draw_noise(len(images), rng)) for level in used.tolist()]
        )
        likelihoods = log_likelihood(errors, images[0].numel(), model.sigma)
        reconstruction = -(weights[used].unsqueeze(1) * likelihoods).sum(0)
        prior = -log_prior_term(model.prior, z[-1], self.prior_gradient, rng)
        with torch.no_grad():
            squared_error = squared_error_of(model, images, z[-1]).mean()
        metrics = {
            "reconstruction": reconstruction.detach().mean(),
            "prior": prior.detach().mean(),
            "reflected": population.reflected,
            **_summarise_chains(population),
            **_estimate_evidence(population, temperatures),
        }
        return Terms(loss=(reconstruction + prior).mean(), squared_error=squared_error, metrics=metrics)

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the last states at t = 1 for the first 64 images."""
        images = images[:_REFIT_IMAGES]
        temperatures = temperature_ladder(self.config.num_temperatures, self.config.power_start).to(images)
        return self._run(model, images, temperatures, rng).last.z[-len(images) :]

    def _run(self, model: Kaem, images: Tensor, temperatures: Tensor, rng: torch.Generator) -> Population:
        return run_population(
            model,
            images,
            temperatures,
            rng,
            num_steps=self.config.num_steps,
            step_size=self.steps.per_chain(self.config.num_temperatures * len(images)),
            is_adjusted=self.config.kernel == "mala",
        )


def _summarise_chains(population: Population) -> dict[str, Tensor]:
    named = {f"acceptance_{k}": value for k, value in enumerate(population.acceptance, start=1)}
    pairs = enumerate(population.swap_acceptance)
    named |= {f"swap_{k}_{k + 1}": value for k, value in pairs if bool(value.isfinite())}
    first, last = population.levels[0].mean(), population.levels[-1][-1].mean()
    return {**named, "first_log_likelihood": first, "last_log_likelihood": last}


def _estimate_evidence(population: Population, temperatures: Tensor) -> dict[str, Tensor]:
    estimates = {
        "evidence_steppingstone": steppingstone_evidence,
        "evidence_thermodynamic": thermodynamic_evidence,
        "evidence_corrected": corrected_evidence,
    }
    return {name: estimate(population.levels, temperatures).mean() for name, estimate in estimates.items()}


def temperature_ladder(num: int, power: float) -> Tensor:
    """Return t_k = (k / N_t)^p, k = 0 .. N_t (eq. 22): shape (N_t + 1,), from 0 to 1."""
    return (torch.arange(num + 1) / num) ** power


def power_at(config: PosteriorConfig, step: int, updates: int) -> float:
    """Return p of update `step`: p_start + (p_end - p_start) (1 - cos(2 pi (C + 1/2) i / I)) / 2.

    It begins at `power_start`, ends at `power_end`, and comes back C = `power_cycles` times in between.
    """
    phase = 2.0 * math.pi * (config.power_cycles + 0.5) * step / updates
    return config.power_start + (config.power_end - config.power_start) * 0.5 * (1.0 - math.cos(phase))


def criterion_weights(temperatures: Tensor, criterion: Criterion) -> Tensor:
    """Return the weight of each chain's log p(x|z) in the generator's loss: shape (N_t + 1,), sum 1.

    With samples held constant, `telescoped` (eq. 63) leaves the chain at t = 1 alone and is the gradient of
    log p(x). `steppingstone` (eq. 24, one sample) weighs chain k - 1 by t_k - t_{k-1}, `right_sum` chain k:
    other fixed points, with a smaller generator.
    """
    steps = temperatures.diff()
    match criterion:
        case "telescoped":
            return torch.nn.functional.one_hot(torch.tensor(len(steps)), len(temperatures)).to(steps)
        case "steppingstone":
            return torch.nn.functional.pad(steps, (0, 1))
        case "right_sum":
            return torch.nn.functional.pad(steps, (1, 0))
        case _:
            assert_never(criterion)
