"""The final refit of the prior, when training is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.sections.checks import MOST_STEPS, require_at_least, require_at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitConfig:
    """What replaces the trained prior at the end, if latents of images kept aside say that it is better.

    Attributes:
        kind: `experts` fits Gaussian experts in frames of their own by expectation maximisation, then their
            univariate functions by gradient steps; `none` keeps the trained prior.
        num_experts: Numbers of experts to try; one that has fewer than ten images per expert is left out.
        num_images: Training images whose latents are fitted to, at most.
        num_set_aside: Training images that neither the run nor the refit is trained on, and that judge the refit; at
            most one in twenty. 0 sets none aside: a tenth of `num_images` judges, which the trained prior has seen.
        correction_steps: Gradient steps for the univariate functions; 0 leaves the experts Gaussian.
    """

    kind: Literal["none", "experts"] = "none"
    num_experts: tuple[int, ...] = (16, 32, 64)
    num_images: int = 20_000
    num_set_aside: int = 1000
    correction_steps: int = 120

    def __post_init__(self) -> None:
        if not self.num_experts or min(self.num_experts) < 1:
            raise ConfigError(f"num_experts = {list(self.num_experts)} must hold positive numbers")
        require_at_least("num_images", self.num_images, 20)
        require_at_least("num_set_aside", self.num_set_aside, 0)
        require_at_least("correction_steps", self.correction_steps, 0)
        require_at_most("correction_steps", self.correction_steps, MOST_STEPS)
