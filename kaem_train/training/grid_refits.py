"""When the knots of a run's functions follow their latents, and which parameters the optimiser then forgets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kaem_train.config.settings import Config
from kaem_train.data import Images
from kaem_train.devices import Module, move_to_cpu
from kaem_train.families.build import Model
from kaem_train.families.diffusion import Diffusion
from kaem_train.families.kaem import Kaem
from kaem_train.model.generators.generator import KanGenerator, refit_steps
from kaem_train.posterior import InfersLatents, Objective

_IMAGES = 1024


class GridRefits:
    """The grids of a prior and of a KAN generator, moved on schedules of their own.

    Args:
        config: Intervals and their growth, and how many latents grids follow.
    """

    def __init__(self, config: Config) -> None:
        self._num_latents = config.training.grid_samples
        generator, prior, updates = config.generator, config.prior, config.training.updates
        self._of_generator = refit_steps(generator.refit_interval, generator.refit_decay, updates)
        self._of_prior = refit_steps(prior.refit_interval, prior.refit_decay, updates) if prior.refit_interval else ()

    def move_due(
        self, model: Model, posterior: Objective, train: Images, step: int, rng: torch.Generator
    ) -> list[nn.Parameter]:
        """Move the grids whose turn it is before update `step` (from 0).

        Args:
            model: Changed in place.
            posterior: Infers the latents to follow.
            train: The first of its images have those latents.
            step: Updates done.
            rng: Source of the draws.

        Returns:
            The parameters that jumped.
        """
        if isinstance(model, Diffusion) or not isinstance(posterior, InfersLatents):
            return []  # nothing to infer
        is_prior_due = isinstance(model, Kaem) and step + 1 in self._of_prior
        is_generator_due = isinstance(model.generator, KanGenerator) and step + 1 in self._of_generator
        if not (is_prior_due or is_generator_due):
            return []
        latents = self._infer_latents(model, posterior, train, rng)
        changed: list[nn.Parameter] = []
        if isinstance(model, Kaem) and is_prior_due:
            changed += _move(model.prior, latents, lambda prior, z: prior.refit_grid(z))
        if isinstance(model.generator, KanGenerator) and is_generator_due:
            inputs = model.prior.generator_input(latents)
            changed += _move(model.generator, inputs, lambda generator, z: generator.refit_grids(z))
        return changed

    def _infer_latents(self, model: Model, posterior: InfersLatents, train: Images, rng: torch.Generator) -> Tensor:
        """Return the latents to follow: of as many images as were asked for, in as many turns as that takes."""
        if not self._num_latents:
            return posterior.latents(model, train[:_IMAGES], rng)
        num = min(self._num_latents, len(train))
        parts = [posterior.latents(model, train[:num], rng)]
        while (done := sum(map(len, parts))) < num:
            parts.append(posterior.latents(model, train[done:num], rng))
        return torch.cat(parts)[:num]


def _move(module: Module, latents: Tensor, refit: Callable[[Module, Tensor], list[nn.Parameter]]) -> list[nn.Parameter]:
    """Refit on the CPU and return the module's own parameters that changed."""
    with move_to_cpu(module) as there:
        changed = {id(parameter) for parameter in refit(there, latents.cpu())}
        names = [name for name, parameter in there.named_parameters() if id(parameter) in changed]
    return [module.get_parameter(name) for name in names]
