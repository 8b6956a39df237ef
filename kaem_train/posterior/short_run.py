"""Short-run Langevin chains: T steps per update, each chain from its own fresh prior sample (eq. 11).

Where an encoder is not wanted. The samples are those of a chain that has not forgotten its start; how
far it came shows in the likelihood of its first and last state.

On a GPU a step may be recorded as one CUDA graph, which runs its many small operations without waiting for Python.
What a graph does is fixed when it is recorded: it reads and writes the tensors that it saw. So state and noise are
copied in and out, parameters must keep their places, and nothing in the step may ask the device for a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.families.kaem import Kaem
from kaem_train.posterior.langevin import StepInfo, StepNoise, StepSizes, langevin_step
from kaem_train.posterior.power import ChainState, PowerPosterior, frozen, power_posterior, squared_error_of
from kaem_train.posterior.protocol import Posterior, Terms
from kaem_train.training.objective import PriorGradient, log_likelihood, log_prior_term

_REFIT_IMAGES = 256
_WARMUP_STEPS = 2

Step = Callable[[ChainState, StepNoise], tuple[ChainState, StepInfo]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRun:
    """A finished run of S chains.

    Attributes:
        first: States at the start.
        last: States at the end.
        acceptance: Mean over steps, shape (S,).
        reflected: Mean over steps, shape (S,).
    """

    first: ChainState
    last: ChainState
    acceptance: Tensor
    reflected: Tensor

    def follow(self, steps: StepSizes) -> dict[str, Tensor]:
        """Adapt step sizes to this run, and return what people watch of both, scalars by name."""
        steps.follow(self.acceptance.mean(0, keepdim=True))
        return {
            "acceptance": self.acceptance.mean(),
            "step_size": steps.log_step.exp()[0],
            "first_log_likelihood": self.first.log_likelihood.mean(),
            "last_log_likelihood": self.last.log_likelihood.mean(),
        }


def run_chains(
    target: PowerPosterior,
    start: Tensor,
    rng: torch.Generator,
    *,
    num_steps: int,
    step_size: Tensor,
    is_adjusted: bool,
    variance: Tensor | None = None,
    is_captured: bool = False,
) -> ChainRun:
    """Advance chains `num_steps` times.

    Arguments are those of `langevin_step`, `start` of shape (S, *latent_shape); where `is_captured`, a GPU replays the
    step from a CUDA graph.
    """
    first = state = target.at(start)
    acceptance, reflected = torch.zeros(len(start), device=start.device), torch.zeros(len(start), device=start.device)
    step: Step = partial(langevin_step, target=target, step_size=step_size, variance=variance, is_adjusted=is_adjusted)
    for number in range(num_steps):
        noise = StepNoise.draw(state.z, rng)
        if number == 0 and is_captured and start.is_cuda:
            step = CapturedStep(step, state, noise)
        state, info = step(state, noise)
        acceptance, reflected = acceptance + info.acceptance, reflected + info.reflected
    return ChainRun(first=first, last=state, acceptance=acceptance / num_steps, reflected=reflected / num_steps)


class LangevinPosterior(Posterior):
    """One chain per image, unadjusted or with the Metropolis-Hastings test.

    Args:
        config: T = `num_steps`, eta = `step_size`, the kernel and its adaptation.
        prior_gradient: Form of the prior's gradient.
    """

    def __init__(self, config: PosteriorConfig, prior_gradient: PriorGradient) -> None:
        self.config = config
        self.prior_gradient = prior_gradient
        self.steps = StepSizes(config.step_size, config)
        self.network: nn.Module = self.steps

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return -log p(x|z) - log p(z) at the chains' last states, held constant (eq. 4)."""
        run = self._run(model, images, rng)
        errors = squared_error_of(model, images, run.last.z, model.draw_noise(len(images), rng))
        reconstruction = -log_likelihood(errors, images[0].numel(), model.sigma)
        prior = -log_prior_term(model.prior, run.last.z, self.prior_gradient, rng)
        metrics = {
            "reconstruction": reconstruction.detach().mean(),
            "prior": prior.detach().mean(),
            "reflected": run.reflected.mean(),
            **run.follow(self.steps),
        }
        return Terms(loss=(reconstruction + prior).mean(), squared_error=errors.detach().mean(), metrics=metrics)

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the last states of chains for the first 256 images."""
        return self._run(model, images[:_REFIT_IMAGES], rng).last.z

    def _run(self, model: Kaem, images: Tensor, rng: torch.Generator) -> ChainRun:
        with frozen(model):
            return run_chains(
                power_posterior(model, images, torch.ones(1)),
                model.prior.sample(len(images), rng),
                rng,
                num_steps=self.config.num_steps,
                step_size=self.steps.per_chain(len(images)),
                is_adjusted=self.config.kernel == "mala",
                is_captured=self.config.cuda_graphs,
            )


class CapturedStep:
    """A step to be called like the one that it records.

    Args:
        step: Advances chains; of tensors on a GPU.
        state: A state of the shapes of those to come.
        noise: Likewise.
    """

    def __init__(self, step: Step, state: ChainState, noise: StepNoise) -> None:
        self._state = state.map(torch.clone)
        self._noise = StepNoise(normal=noise.normal.clone(), uniform=noise.uniform.clone())
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries choose their algorithms, which a graph cannot hold
            for _ in range(_WARMUP_STEPS):
                step(self._state, self._noise)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._next, self._info = step(self._state, self._noise)

    def __call__(self, state: ChainState, noise: StepNoise) -> tuple[ChainState, StepInfo]:
        """Advance the chains by one step; see `langevin_step`."""
        self._state.overwrite(state)
        self._noise.normal.copy_(noise.normal)
        self._noise.uniform.copy_(noise.uniform)
        self._graph.replay()
        info = StepInfo(acceptance=self._info.acceptance.clone(), reflected=self._info.reflected.clone())
        return self._next.map(torch.clone), info
