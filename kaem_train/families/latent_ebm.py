"""The latent energy-based model with a Langevin prior (Pang et al. 2020).

    p(z) proportional to exp(f(z)) N(z; 0, I),     x = G(z) + sigma noise

with f a small perceptron over the whole latent. Its normaliser is unknown: samples of prior and posterior are short
Langevin runs from N(0, I), and f learns from their contrast (eq. 16). There is no likelihood to report.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from kaem_train.config import LatentEbmConfig
from kaem_train.config.settings import Config
from kaem_train.data import Images
from kaem_train.devices import normal
from kaem_train.model.generators.generator import build_generator
from kaem_train.model.prior.reference import log_reference
from kaem_train.posterior.langevin import StepSizes
from kaem_train.posterior.power import LogDensity, PowerPosterior, frozen
from kaem_train.posterior.protocol import Terms
from kaem_train.posterior.short_run import ChainRun, run_chains
from kaem_train.training.objective import log_likelihood

_SLOPE = 0.2
_REFIT_IMAGES = 256


class EnergyPrior(nn.Module):
    """p(z) proportional to exp(f(z)) N(z; 0, I), sampled by short Langevin runs.

    Args:
        num_latents: Q.
        config: Widths of f, and steps of the runs.
    """

    def __init__(self, num_latents: int, config: LatentEbmConfig) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(num_latents, config.hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(config.hidden, config.hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(config.hidden, 1),
        )

    def tilt(self, z: Tensor) -> Tensor:
        """Return f(z), which is minus the energy: shape (S, Q) -> (S,)."""
        values: Tensor = self.layers(z).squeeze(-1)
        return values

    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) up to its unknown constant: shape (S, Q) -> (S,)."""
        return self.tilt(z) + log_reference("gaussian", z).sum(-1)

    def generator_input(self, z: Tensor) -> Tensor:
        """Return z itself, as of the priors of a KAEM: shape (S, Q)."""
        return z

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Return the ends of `num` short runs, without gradient: shape (num, Q)."""
        weight = next(self.parameters())
        start = normal((num, self.num_latents), rng, weight)
        steps, size = self.config.prior_steps, self.config.prior_step_size
        with frozen(self):
            return short_run(self.log_density, start, rng, num_steps=steps, step_size=size)


class LatentEbm(nn.Module):
    """Energy prior, generator and the deviation of the likelihood.

    State: `prior.*`, `generator.*` and `sigma` (), as of `Kaem`.

    Attributes:
        image_shape: (C, H, W).
    """

    sigma: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image_shape = config.data.image_shape
        self.prior = EnergyPrior(config.prior.num_latents, config.latent_ebm)
        self.generator = build_generator(config.prior.num_latents, self.image_shape, config.generator)
        self.register_buffer("sigma", torch.tensor(config.training.sigma))

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean images of latents: shape (N, Q) -> (N, C, H, W), in [0, 1]."""
        images: Tensor = self.generator(z)
        return images

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw images: short Langevin runs, decoded; shape (num, C, H, W), in [0, 1]."""
        z = self.prior.sample(num, rng)
        with torch.no_grad():
            return self.decode(z).clamp(0.0, 1.0)

    def parameter_groups(self, inference: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters of the networks and those of the energy; see `Kaem.parameter_groups`."""
        return [*self.generator.parameters(), *inference.parameters()], list(self.prior.parameters())


class ShortRunInference:
    """Posterior samples by short Langevin runs from N(0, I), and the loss at them.

    Args:
        config: Configuration of the run; `latent_ebm` for the steps, `posterior` for how the step size adapts.
    """

    def __init__(self, config: Config) -> None:
        self.num_steps = config.latent_ebm.posterior_steps
        adaptation = replace(config.posterior, kernel="ula")
        self.steps = StepSizes(0.5 * config.latent_ebm.posterior_step_size**2, adaptation)
        self.network: nn.Module = self.steps

    def prepare(self, model: LatentEbm, train: Images, step: int, rng: torch.Generator) -> None:
        """Nothing is due: the energy learns from the first update."""

    def terms(self, model: LatentEbm, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return -log p(x|z+) - [f(z+) - f(z-)], z+ and z- held constant (eqs. 4, 16).

        Its value is no likelihood: the constant of the prior is missing.
        """
        run = self._run(model, images, rng)
        self.steps.follow(run.acceptance.mean(0, keepdim=True))
        errors = (images - model.decode(run.last.z)).square().flatten(1).sum(1)
        reconstruction = -log_likelihood(errors, images[0].numel(), model.sigma).mean()
        prior, metrics = contrast(model.prior, run.last.z, model.prior.sample(len(images), rng))
        metrics |= {
            "reconstruction": reconstruction.detach(),
            "prior": prior.detach(),
            "acceptance": run.acceptance.mean(),
            "step_size": self.steps.log_step.exp()[0],
            "first_log_likelihood": run.first.log_likelihood.mean(),
            "last_log_likelihood": run.last.log_likelihood.mean(),
        }
        return Terms(loss=reconstruction + prior, squared_error=errors.detach().mean(), metrics=metrics)

    def latents(self, model: LatentEbm, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the ends of runs for the first 256 images."""
        return self._run(model, images[:_REFIT_IMAGES], rng).last.z

    def _run(self, model: LatentEbm, images: Tensor, rng: torch.Generator) -> ChainRun:
        def likelihood(z: Tensor) -> Tensor:
            errors = (images - model.decode(z)).square().flatten(1).sum(1)
            return log_likelihood(errors, images[0].numel(), model.sigma)

        target = PowerPosterior(
            log_prior=model.prior.log_density,
            log_likelihood=likelihood,
            temperatures=images.new_ones(len(images)),
            low=-math.inf,
            high=math.inf,
        )
        start = normal((len(images), model.prior.num_latents), rng, images)
        size = self.steps.per_chain(len(images))
        with frozen(model):
            return run_chains(target, start, rng, num_steps=self.num_steps, step_size=size, is_adjusted=False)


def contrast(prior: EnergyPrior, positive: Tensor, negative: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the prior's part of the loss, mean f(z-) - mean f(z+), and both means.

    Args:
        prior: Holds f.
        positive: z+, posterior samples held constant, shape (S, Q).
        negative: z-, prior samples held constant, shape (S, Q).
    """
    at_posterior, at_prior = prior.tilt(positive).mean(), prior.tilt(negative).mean()
    means = {"tilt_posterior": at_posterior.detach(), "tilt_prior": at_prior.detach()}
    return at_prior - at_posterior, means


def short_run(
    log_density: LogDensity, start: Tensor, rng: torch.Generator, *, num_steps: int, step_size: float
) -> Tensor:
    """Advance unadjusted chains by z + s^2/2 score(z) + s xi.

    On N(0, I) the variance they settle at is 1 / (1 - s^2/4).

    Args:
        log_density: Log density of the target, up to a constant.
        start: Shape (S, Q).
        rng: Source of xi.
        num_steps: How often.
        step_size: s.

    Returns:
        Where they end, without gradient: shape (S, Q).
    """
    z = start
    for _ in range(num_steps):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (score,) = torch.autograd.grad(log_density(z).sum(), z)
        noise = normal(z.shape, rng, z)
        z = z.detach() + 0.5 * step_size**2 * score + step_size * noise
    return z
