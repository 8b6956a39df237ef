"""From a configuration to its posterior."""

from __future__ import annotations

from typing import assert_never

from kaem_train.config.settings import Config
from kaem_train.posterior.amortized import AmortizedPosterior
from kaem_train.posterior.importance import ImportancePosterior
from kaem_train.posterior.protocol import Posterior
from kaem_train.posterior.refined import RefinedPosterior
from kaem_train.posterior.short_run import LangevinPosterior
from kaem_train.posterior.tempering import TemperingPosterior
from kaem_train.posterior.weighted_bound import WeightedBoundPosterior


def build_posterior(config: Config, latent_shape: tuple[int, ...]) -> Posterior:
    """Return the configured posterior."""
    settings, gradient, updates = config.posterior, config.training.prior_gradient, config.training.updates
    shape = config.data.image_shape

    match settings.kind:
        case "amortized":
            return AmortizedPosterior(settings, shape, latent_shape, updates=updates)
        case "weighted_bound":
            return WeightedBoundPosterior(settings, shape, latent_shape, updates=updates)
        case "refined":
            return RefinedPosterior(settings, shape, latent_shape, updates=updates)
        case "importance":
            return ImportancePosterior(settings, gradient)
        case "langevin":
            return LangevinPosterior(settings, gradient)
        case "tempering":
            return TemperingPosterior(settings, gradient, updates=updates)
        case _:
            assert_never(settings.kind)
