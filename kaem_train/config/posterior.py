"""How latents of observed images are inferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.config.checks import MOST_STEPS, MOST_WIDTH, require_at_least, require_at_most, require_positive


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
        bound_from: Weighted bound: fraction of the updates after which k draws are taken; until then one, as
            `amortized` does, which costs less and trains the encoder's variance faster.
        kernel: Chains: `ula` (unadjusted Langevin) or `mala` (with a Metropolis-Hastings test).
        num_steps: Langevin and tempering: T, steps per update from fresh prior samples.
        cuda_graphs: Langevin and refined, on a GPU only: record a step once per run of chains and replay it. It pays
            for many steps of small networks.
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
    bound_from: float = 0.0
    kernel: Literal["ula", "mala"] = "ula"
    num_steps: int = 40
    cuda_graphs: bool = False
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
            require_at_least(name, getattr(self, name), 1)
        if max(self.encoder_channels) > MOST_WIDTH:
            raise ConfigError(f"encoder_channels = {list(self.encoder_channels)} holds a width above {MOST_WIDTH}")
        require_at_most("encoder_dense", self.encoder_dense, MOST_WIDTH)
        for name in ("num_proposals", "bound_samples", "num_steps", "refinement_steps", "num_temperatures"):
            require_at_most(name, getattr(self, name), MOST_STEPS)
        require_at_least("num_temperatures", self.num_temperatures, 2)
        require_at_least("power_cycles", self.power_cycles, 0)
        for name in ("prior_from", "bound_from", "resample_below"):
            fraction = getattr(self, name)
            if not 0.0 <= fraction <= 1.0:
                raise ConfigError(f"{name} = {fraction} is outside [0, 1]")
        for name in ("step_size", "refinement_step_size", "power_start", "power_end"):
            require_positive(name, getattr(self, name))
        if not 0.0 < self.target_acceptance < 1.0:
            raise ConfigError(
                f"target_acceptance = {self.target_acceptance} is outside (0, 1)",
                hint="0.574 is the optimum of Langevin proposals in many dimensions",
            )

    @property
    def has_encoder(self) -> bool:
        """Whether latents start at an encoder's draws."""
        return self.kind in {"amortized", "weighted_bound", "refined"}
