"""Optimiser, schedule and bookkeeping.

The final refit of the prior, when training is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.config.checks import MOST_STEPS, require_at_least, require_at_most, require_device, require_positive

_LEAST_SIGMA = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Optimiser, schedule and bookkeeping of one run.

    Attributes:
        updates: Optimiser steps of the whole run.
        batch_size: Images per step.
        learning_rate: Adam step size of generator, encoder and frame.
        prior_learning_rate: Adam step size of the energies and their weights.
        adam_beta2: Decay of Adam's mean of squared gradients; that of its mean of gradients is 0.9.
        warmup: Updates over which both rates rise linearly from zero; 0 starts with the whole rates.
        schedule: How both rates go on: `linear` or `cosine` fall to zero from `decay_from` on, `constant` does not.
        decay_from: Fraction of the updates after which both rates fall.
        prior_gradient: Gradient of the prior, `quadrature` (log Z differentiated, no sampling noise) or `contrastive`
            (eq. 16: a batch of prior samples in place of log Z; independent variant only).
        weight_penalty: lambda of the term lambda sum |a| on the logits a of the mixture weights (of components or
            experts); it draws the weights together.
        generator_noise: sigma_eps: deviation of normal noise that is added to the generator's pixels before their
            sigmoid, in its own update alone: never where posteriors are sampled or weighed, nor in samples.
        grid_samples: How many latents grids follow when they are moved: of as many training images, or of the prior
            under `importance`. 0 takes what the posterior gives for its usual cost (1024 by an encoder, 512 of the
            prior, 256 by chains, 64 by populations of chains).
        gradient_clip: Largest global gradient norm.
        sigma: Standard deviation of the likelihood (eq. 7), on pixels in [0, 1]; the start value if learned.
        learn_sigma: Follow the running mean of the squared reconstruction error instead of keeping `sigma`.
        ema_decay: Weight of the past in a moving average of all weights, for example 0.999; the average is what is
            evaluated, sampled and exported. 0 keeps none.
        precision: Precision of the networks: `float32`; `tf32`, which on a GPU rounds the factors of products and
            convolutions to 10 bits of mantissa and is `float32` elsewhere; or `bfloat16` by autocast of generator and
            encoder, where densities stay as they are.
        device: Where the run computes: `auto` is an NVIDIA GPU where there is one, else the CPU; `cuda:1` is the
            second GPU. Noise is drawn on the CPU, so it is the same everywhere, and a run may be resumed on another
            device.
        compile: Compile generator and encoder (torch.compile); needs a C++ compiler.
        seed: Seed of everything random in the run.
        log_every: Updates between reports.
        checkpoint_every: Updates between checkpoints; one is always written at the end.
        samples_every: Updates between sample grids.
    """

    updates: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    prior_learning_rate: float = 5e-3
    adam_beta2: float = 0.99
    warmup: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    decay_from: float = 0.7
    prior_gradient: Literal["quadrature", "contrastive"] = "quadrature"
    weight_penalty: float = 0.0
    generator_noise: float = 0.0
    grid_samples: int = 0
    gradient_clip: float = 100.0
    sigma: float = 0.1
    learn_sigma: bool = True
    ema_decay: float = 0.0
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    device: str = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    samples_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "log_every", "checkpoint_every", "samples_every"):
            require_at_least(name, getattr(self, name), 1)
        require_device("device", self.device)
        require_at_most("batch_size", self.batch_size, 1_000_000)
        require_at_most("updates", self.updates, 10**9)
        for name in ("learning_rate", "prior_learning_rate", "gradient_clip", "sigma"):
            require_positive(name, getattr(self, name))
        for name in ("weight_penalty", "generator_noise"):
            value = getattr(self, name)
            if not (value >= 0.0 and math.isfinite(value)):
                raise ConfigError(f"{name} = {value} is not a number of at least 0")
            require_at_most(name, value, 1e12)
        require_at_least("grid_samples", self.grid_samples, 0)
        require_at_most("grid_samples", self.grid_samples, 1_000_000)
        if self.sigma < _LEAST_SIGMA:
            raise ConfigError(
                f"sigma = {self.sigma} is below {_LEAST_SIGMA:g}: its inverse square outgrows float32",
                hint="pixels of 8 bits lie 0.004 apart",
            )
        if not 0.0 <= self.decay_from <= 1.0:
            raise ConfigError(f"decay_from = {self.decay_from} is outside [0, 1]")
        if not 0 <= self.warmup <= self.updates:
            raise ConfigError(f"warmup = {self.warmup} is outside 0 to updates = {self.updates}")
        if not 0.0 <= self.adam_beta2 < 1.0:
            raise ConfigError(f"adam_beta2 = {self.adam_beta2} is outside [0, 1)", hint="usual is 0.99 to 0.999")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay = {self.ema_decay} is outside [0, 1)", hint="0 keeps no average")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed} is outside [0, 2^63)")


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
