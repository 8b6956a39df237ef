"""Encoder draws refined by a few Langevin steps that the encoder's variance preconditions.

The generator and the prior learn from the refined latents, the encoder from the evidence bound at its own
draw. The score at that draw is needed anyway, for the first step; the encoder reuses it:

    grad_phi E_q log p(x, z) = E [grad_z log p(x, z)]^T dz / dphi,    z = m + s xi.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.families.kaem import Kaem
from kaem_train.posterior.amortized import AmortizedPosterior, log_prior_or_reference
from kaem_train.posterior.langevin import StepSizes
from kaem_train.posterior.power import PowerPosterior, frozen, log_likelihood_of, squared_error_of
from kaem_train.posterior.protocol import Terms
from kaem_train.posterior.short_run import ChainRun, run_chains
from kaem_train.training.objective import gaussian_entropy, log_likelihood


class RefinedPosterior(AmortizedPosterior):
    """An encoder followed by `refinement_steps` Langevin steps; the held-out bound takes its unrefined draws."""

    def __init__(
        self,
        config: PosteriorConfig,
        image_shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        *,
        updates: int,
    ) -> None:
        super().__init__(config, image_shape, latent_shape, updates=updates)
        self.steps = StepSizes(config.refinement_step_size, config)
        self.network = nn.ModuleDict({"encoder": self.encoder, "steps": self.steps})

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return -log p(x|z) - log p(z) at the refined latents, plus the encoder's part."""
        is_reference = step < self.prior_start
        _, log_std, drawn = self._draw(images, rng)
        target = _build_target(model, images, is_reference=is_reference)
        run = self._refine(model, target, drawn.detach(), log_std.detach().exp(), rng)
        errors = squared_error_of(model, images, run.last.z)
        reconstruction = -log_likelihood(errors, images[0].numel(), model.sigma)
        prior = -log_prior_or_reference(model, run.last.z, is_reference=is_reference)
        # Its value means nothing: only the gradient in the encoder's parameters is that of the evidence bound.
        encoder = -(target.score(run.first) * drawn).flatten(1).sum(1) - gaussian_entropy(log_std)
        loss = (reconstruction + prior).mean() + (encoder - encoder.detach()).mean()
        metrics = {
            "reconstruction": reconstruction.detach().mean(),
            "prior": prior.detach().mean(),
            "entropy": gaussian_entropy(log_std.detach()).mean(),
            **run.follow(self.steps),
        }
        latents = None if is_reference else torch.cat([drawn.detach(), run.last.z])
        return Terms(loss=loss, squared_error=errors.detach().mean(), metrics=metrics, latents=latents)

    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return one refined draw per image, under the prior as it is."""
        with torch.no_grad():
            _, log_std, drawn = self._draw(images, rng)
        target = _build_target(model, images, is_reference=False)
        return self._refine(model, target, drawn, log_std.exp(), rng).last.z

    def _refine(
        self, model: Kaem, target: PowerPosterior, drawn: Tensor, std: Tensor, rng: torch.Generator
    ) -> ChainRun:
        with frozen(model):
            return run_chains(
                target,
                drawn,
                rng,
                num_steps=self.config.refinement_steps,
                step_size=self.steps.per_chain(len(drawn)),
                variance=std.square(),
                is_adjusted=self.config.kernel == "mala",
                is_captured=self.config.cuda_graphs,
            )


def _build_target(model: Kaem, images: Tensor, *, is_reference: bool) -> PowerPosterior:
    return PowerPosterior(
        log_prior=partial(log_prior_or_reference, model, is_reference=is_reference),
        log_likelihood=partial(log_likelihood_of, model, images),
        temperatures=images.new_ones(len(images)),
        # Like the encoder's draws: the density has tails.
        low=-math.inf,
        high=math.inf,
    )
