"""The latent energy-based model: its energy, its chains and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from kaem_train.sections.checks import MOST_STEPS, MOST_WIDTH, require_at_least, require_at_most, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentEbmConfig:
    """The latent energy-based model of Pang et al. 2020; the defaults are theirs but for the learning rate.

    Step sizes s are in their convention, z + s^2/2 score + s xi, which is eta = s^2/2 in eq. 11.

    Attributes:
        hidden: Width of the two hidden layers of the energy.
        prior_steps: Langevin steps from N(0, I) that make a prior sample.
        prior_step_size: Their s.
        posterior_steps: Langevin steps from N(0, I) that make a posterior sample.
        posterior_step_size: Their s at the first update; it adapts as `posterior.adapt_step` says.
        learning_rate: Adam step size of the energy, in place of `training.prior_learning_rate`. A fifth of the
            default `training.learning_rate`, which is their ratio (2e-5 to 1e-4).
    """

    hidden: int = 200
    prior_steps: int = 60
    prior_step_size: float = 0.4
    posterior_steps: int = 20
    posterior_step_size: float = 0.1
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("hidden", "prior_steps", "posterior_steps"):
            require_at_least(name, getattr(self, name), 1)
        require_at_most("hidden", self.hidden, MOST_WIDTH)
        for name in ("prior_steps", "posterior_steps"):
            require_at_most(name, getattr(self, name), MOST_STEPS)
        for name in ("prior_step_size", "posterior_step_size", "learning_rate"):
            require_positive(name, getattr(self, name))
