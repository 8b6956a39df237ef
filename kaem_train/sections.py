"""The sections of a training configuration: one frozen dataclass per component, its ranges checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError

LEAST_EXPERT_STD = math.exp(-2.0)
"""Smallest deviation of an expert's Gaussian part; every quadrature of experts resolves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images to train on.

    Attributes:
        source: `digits` is the set of real handwritten digits embedded in scikit-learn; `files` reads `path`.
        path: A file, folder or archive, or `hf:OWNER/NAME`; its kind is told from what it is; `files` only.
        image_shape: (C, H, W) of one image; data of another shape is refused unless the next three say how to fit it.
        crop: Side in pixels of the square that is cut from the centre of every image; 0 cuts nothing.
        resize: Antialiasing filter with which images become H x W after the crop: `lanczos`, `box`, or `none`.
        convert_colour: Convert between grey and RGB where the images' channels are not C.
        num_holdout: Images held out for evaluation where the files bring no test split of their own.
        augment_flip: Mirror every training image left to right with probability one half.
    """

    source: Literal["digits", "files"]
    path: str = ""
    image_shape: tuple[int, ...]
    crop: int = 0
    resize: Literal["none", "lanczos", "box"] = "none"
    convert_colour: bool = False
    num_holdout: int = 297
    augment_flip: bool = False

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ConfigError(
                f"image_shape = {list(self.image_shape)} is not [channels, height, width]",
                hint="write for example image_shape = [1, 28, 28]",
            )
        _require_at_least("num_holdout", self.num_holdout, 1)
        _require_at_least("crop", self.crop, 0)
        if self.crop and self.resize == "none" and self.image_shape[1:] != (self.crop, self.crop):
            raise ConfigError(
                f"crop = {self.crop} does not give the height and width of image_shape = {list(self.image_shape)}",
                hint="set data.resize=lanczos, or make them equal",
            )
        if self.source == "digits" and self.path:
            raise ConfigError(
                f"path = {self.path!r} is not used by source = 'digits', which is embedded",
                hint="leave the path out, or set data.source=files",
            )

    @property
    def changes_images(self) -> bool:
        """Whether images may be cropped, resized or converted on their way in."""
        return self.crop > 0 or self.resize != "none" or self.convert_colour


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """The latent prior p(z) proportional to exp(f(z)) pi0(z), built from Q x P univariate functions.

    Attributes:
        variant: `mixture` (eq. 17: Q latents of P components), `independent` (eq. 15: Q x P latents) or
            `experts` (a mixture of P factorised densities, its index tied across the Q latents).
        num_latents: Q, length of the vector the generator sees.
        num_components: P, components (mixture), summands (independent) of each latent, or experts.
        frame: `global` learns z = b + W u, u from the univariate densities; `none` is z = u.
        reference: pi0: `gaussian`, `uniform` (exactly on [0, 1]) or `none` (constant on the grid range).
        low: Lower end of the domain on which the density is defined.
        high: Upper end of that domain.
        grid_low: First knot of the radial basis functions.
        grid_high: Last knot.
        grid_size: G, intervals between the knots; there are G + 1 functions.
        base: Activation b of the term w_b b(z); `none` leaves the term at zero.
    """

    variant: Literal["mixture", "independent", "experts"] = "mixture"
    num_latents: int
    num_components: int
    frame: Literal["none", "global"] = "none"
    reference: Literal["gaussian", "uniform", "none"] = "gaussian"
    low: float = -6.0
    high: float = 6.0
    grid_low: float = -4.0
    grid_high: float = 4.0
    grid_size: int = 20
    base: Literal["none", "silu", "relu"] = "none"

    def __post_init__(self) -> None:
        _require_at_least("num_latents", self.num_latents, 1)
        _require_at_least("num_components", self.num_components, 1)
        _require_at_least("grid_size", self.grid_size, 2)
        _require_range("low", self.low, "high", self.high)
        _require_range("grid_low", self.grid_low, "grid_high", self.grid_high)
        if self.reference == "uniform" and (self.low, self.high) != (0.0, 1.0):
            raise ConfigError(
                f"domain [{self.low}, {self.high}] does not fit the uniform reference, whose support is [0, 1]",
                hint="set prior.low=0 and prior.high=1",
            )
        if self.reference == "none" and (self.low, self.high) != (self.grid_low, self.grid_high):
            raise ConfigError(
                f"domain [{self.low}, {self.high}] is not the grid range [{self.grid_low}, {self.grid_high}]",
                hint="without a reference the density lives on the grid: set prior.low and prior.high to it",
            )
        if self.grid_low < self.low or self.grid_high > self.high:
            raise ConfigError(
                f"grid [{self.grid_low}, {self.grid_high}] reaches outside the domain [{self.low}, {self.high}]",
                hint="widen prior.low and prior.high, or narrow the grid",
            )
        if self.frame == "global" and self.variant == "independent":
            raise ConfigError(
                "frame = 'global' does not suit variant = 'independent', whose latents are summed",
                hint="set prior.variant=mixture with prior.num_components=1 for one energy per latent",
            )
        if self.variant == "experts":
            self._check_experts()

    def _check_experts(self) -> None:
        if self.reference != "gaussian":
            raise ConfigError(
                f"reference = {self.reference!r} does not suit variant = 'experts', whose energies hold a Gaussian",
                hint="set prior.reference=gaussian",
            )
        if self.base != "none":
            raise ConfigError(
                f"base = {self.base!r} does not suit variant = 'experts', which needs closed-form expectations",
                hint="set prior.base=none",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """The generator G that maps the Q latents to an image with pixels in [0, 1].

    Attributes:
        kind: `cnn` (transposed convolutions) or `kan` (Kolmogorov-Arnold layers, eq. 30-32).
        dense: CNN: width of a fully connected layer before the first convolution; 0 leaves it out.
        channels: CNN: channels after each layer but the last, one per doubling of the image size.
        hidden: KAN: widths of the hidden layers; empty gives the single layer of eq. 30.
        grid_size: KAN: G, intervals of each layer's grid.
        refit_interval: KAN: updates between the first two grid refits; 0 keeps the first refit only.
        refit_decay: KAN: the interval f grows to floor(f (2 - decay)^i) after the refit at update i.
    """

    kind: Literal["cnn", "kan"] = "cnn"
    dense: int = 0
    channels: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    grid_size: int = 20
    refit_interval: int = 100
    refit_decay: float = 0.999

    def __post_init__(self) -> None:
        _require_at_least("dense", self.dense, 0)
        _require_at_least("grid_size", self.grid_size, 2)
        _require_at_least("refit_interval", self.refit_interval, 0)
        for name, widths in (("channels", self.channels), ("hidden", self.hidden)):
            if any(width < 1 for width in widths):
                raise ConfigError(f"{name} = {list(widths)} holds a width below 1")
        if not 0.0 < self.refit_decay <= 1.0:
            raise ConfigError(f"refit_decay = {self.refit_decay} is outside (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """How latents of an observed image are inferred during training.

    Attributes:
        kind: With an encoder: `amortized` (the evidence bound), `weighted_bound` (the importance-weighted one)
            or `refined` (encoder draws, then a few Langevin steps). Without: `importance` (Algorithm 2),
            `langevin` (eq. 11) or `tempering` (a population at several temperatures, eqs. 22-25).
        encoder_channels: With an encoder: channels of the stride-2 convolutions.
        encoder_dense: With an encoder: width of the fully connected layer after them.
        prior_from: With an encoder: fraction of the updates after which the reference N(0, I) is replaced by
            the prior.
        num_proposals: Importance: N, prior samples per update, shared by the batch.
        resample_below: Importance: gamma, resample where the effective sample size is below gamma N; 0 never.
        resampling: Importance: `residual`, `systematic` or `stratified`.
        bound_samples: Weighted bound: k, draws of the encoder per image.
        kernel: Chains: `ula` (unadjusted Langevin) or `mala` (with a Metropolis-Hastings test).
        num_steps: Langevin and tempering: T, steps per update from fresh prior samples.
        step_size: Langevin and tempering: eta: where adaptation starts, and its upper limit under `ula`. The
            independent variant wants it smaller by P, the number of latents that move a generator input.
        refinement_steps: Refined: steps from the encoder's draw.
        refinement_step_size: Refined: eta, in units of the encoder's variance.
        adapt_step: Chains: follow `target_acceptance` from update to update instead of keeping eta.
        target_acceptance: Chains: wanted mean acceptance probability (`mala`); below it `ula` takes smaller
            steps, going by the test it leaves out.
        num_temperatures: Tempering: N_t, power posteriors besides the prior itself.
        power_start: Tempering: p of t_k = (k / N_t)^p at the first update; above 1 clusters near the prior.
        power_end: Tempering: p at the end of the run.
        power_cycles: Tempering: whole cosine cycles between the two; 0 is half a cycle.
        thermodynamic: Tempering: `telescoped` (eq. 63, the likelihood gradient), `steppingstone` (eq. 24 with
            samples held constant) or `right_sum`; the last two shrink the generator.
    """

    kind: Literal["amortized", "weighted_bound", "refined", "importance", "langevin", "tempering"] = "amortized"
    encoder_channels: tuple[int, ...] = (32,)
    encoder_dense: int = 128
    prior_from: float = 0.6
    num_proposals: int = 100
    resample_below: float = 0.0
    resampling: Literal["residual", "systematic", "stratified"] = "residual"
    bound_samples: int = 5
    kernel: Literal["ula", "mala"] = "ula"
    num_steps: int = 40
    step_size: float = 0.005
    refinement_steps: int = 2
    refinement_step_size: float = 0.15
    adapt_step: bool = True
    target_acceptance: float = 0.574
    num_temperatures: int = 5
    power_start: float = 2.0
    power_end: float = 0.5
    power_cycles: int = 0
    thermodynamic: Literal["telescoped", "steppingstone", "right_sum"] = "telescoped"

    def __post_init__(self) -> None:
        if not self.encoder_channels or min(self.encoder_channels) < 1:
            raise ConfigError(f"encoder_channels = {list(self.encoder_channels)} must hold positive widths")
        for name in ("encoder_dense", "num_proposals", "bound_samples", "num_steps", "refinement_steps"):
            _require_at_least(name, getattr(self, name), 1)
        _require_at_least("num_temperatures", self.num_temperatures, 2)
        _require_at_least("power_cycles", self.power_cycles, 0)
        for name in ("prior_from", "resample_below"):
            fraction = getattr(self, name)
            if not 0.0 <= fraction <= 1.0:
                raise ConfigError(f"{name} = {fraction} is outside [0, 1]")
        for name in ("step_size", "refinement_step_size", "power_start", "power_end"):
            _require_positive(name, getattr(self, name))
        if not 0.0 < self.target_acceptance < 1.0:
            raise ConfigError(
                f"target_acceptance = {self.target_acceptance} is outside (0, 1)",
                hint="0.574 is the optimum of Langevin proposals in many dimensions",
            )

    @property
    def has_encoder(self) -> bool:
        """Whether latents start at an encoder's draws."""
        return self.kind in {"amortized", "weighted_bound", "refined"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Optimiser, schedule and bookkeeping of one run.

    Attributes:
        updates: Optimiser steps of the whole run.
        batch_size: Images per step.
        learning_rate: Adam step size of generator, encoder and frame.
        prior_learning_rate: Adam step size of the energies and their weights.
        decay_from: Fraction of the updates after which both rates fall linearly to zero.
        prior_gradient: Of the prior: `quadrature` (log Z differentiated, no sampling noise) or `contrastive`
            (eq. 16: a batch of prior samples in place of log Z; independent variant only).
        gradient_clip: Largest global gradient norm.
        sigma: Standard deviation of the likelihood (eq. 7), on pixels in [0, 1]; the start value if learned.
        learn_sigma: Follow the running mean of the squared reconstruction error instead of keeping `sigma`.
        seed: Of everything random in the run.
        log_every: Updates between reports.
        checkpoint_every: Updates between checkpoints; one is always written at the end.
        samples_every: Updates between sample grids.
    """

    updates: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    prior_learning_rate: float = 5e-3
    decay_from: float = 0.7
    prior_gradient: Literal["quadrature", "contrastive"] = "quadrature"
    gradient_clip: float = 100.0
    sigma: float = 0.1
    learn_sigma: bool = True
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    samples_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "log_every", "checkpoint_every", "samples_every"):
            _require_at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "prior_learning_rate", "gradient_clip", "sigma"):
            _require_positive(name, getattr(self, name))
        if not 0.0 <= self.decay_from <= 1.0:
            raise ConfigError(f"decay_from = {self.decay_from} is outside [0, 1]")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed} is outside [0, 2^63)")


def first_size_and_doublings(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the side of the CNN's first feature map and how often it doubles: 28 -> (7, 2), 32 -> (4, 3).

    Raises:
        ConfigError: The image is not square, or its side is not 4 or 7 times a power of two.
    """
    _, height, width = image_shape
    for first in (4, 7):
        doublings = round(math.log2(height / first))
        if height == width and doublings >= 1 and first * 2**doublings == height:
            return first, doublings
    raise ConfigError(
        f"image_shape = {list(image_shape)} does not suit the CNN generator",
        hint="its sides must be equal and 8, 14, 16, 28, 32, 56, 64, ...; or set generator.kind=kan",
    )


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} = {value} is below {least}")


def _require_positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value} is not a positive number")


def _require_range(low_name: str, low: float, high_name: str, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{low_name} = {low} is not below {high_name} = {high}")
