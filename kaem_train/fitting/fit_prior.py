"""A prior for a finished autoencoder: fitted to its latents by maximum likelihood, then joined to its decoder.

The latents are standardised, z = m + s o z', so that energies meet them on their domain; the fit happens in z', and
b + W u becomes m + s o b + diag(s) W u, which is exact. A prior without a frame is fitted to z as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kaem.config import from_mapping, merge, parse_overrides
from kaem.errors import ConfigError, DataError
from kaem_train.checkpoint import Checkpoint, write_checkpoint
from kaem_train.config import DataConfig, GeneratorConfig, PosteriorConfig, PriorConfig, TrainingConfig, Variant
from kaem_train.config.settings import Config
from kaem_train.families.kaem import Kaem
from kaem_train.fitting.decoder import Decoder
from kaem_train.fitting.density import fit_density, log_densities, mean_log_density
from kaem_train.fitting.latents import Latents
from kaem_train.fitting.mixtures import fit_full_mixture
from kaem_train.model.generators.onnx_generator import OnnxGenerator
from kaem_train.model.prior.factorised import Prior, build_prior
from kaem_train.model.prior.own_frames import OwnFramesPrior
from kaem_train.posterior.start import start_prior
from kaem_train.rng import noise_stream

PriorName = Literal["own-frames", "experts", "mixture", "strict", "independent"]

_PRIORS: dict[PriorName, dict[str, Any]] = {
    "own-frames": {"variant": "experts", "frame": "own"},
    "experts": {"variant": "experts", "frame": "global"},
    "mixture": {"variant": "mixture", "frame": "global", "num_components": 8},
    "strict": {"variant": "mixture", "frame": "global", "num_components": 1},
    "independent": {"variant": "independent", "frame": "none", "num_components": 1},
}
_TRAILING: dict[Variant, tuple[int, ...]] = {"independent": (1,), "mixture": (), "experts": ()}
"""Sizes after (S, Q) of a variant's latents, where there is one summand."""

_NUMBERS_OF_EXPERTS = (1, 2, 4, 8, 16, 32, 64)
_ROWS_PER_EXPERT = 4
_FALLS_TO_STOP = 2
_MOST_OUTSIDE = 1e-3
_RIDGE = 1e-6
_FLAT = 1e-9
_LEAST_GAIN = 0.01
"""Nats below which nothing is said of a better prior."""


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much it is in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Mean log p(z) in nats of latents that no fit has seen.

    Attributes:
        standard_normal: Score of N(0, I), the prior that a variational autoencoder was trained with.
        full_gaussian: Score of one Gaussian with the latents' mean and covariance.
        start: Score of the fitted prior before its energies were: clusters or Gaussian mixtures.
        prior: Score of the fitted prior.
    """

    standard_normal: float
    full_gaussian: float
    start: float
    prior: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrior:
    """A prior and what it reached.

    Attributes:
        config: Its section, with the number of experts that was chosen.
        prior: The fitted prior, of the latents as they came.
        scores: Mean log densities of latents that no fit has seen.
        outside: Share of the latents that lie outside the configured domain, which has grown to hold them.
        warnings: What a reader of the scores must know: that a simpler prior is better, or why figures mean little.
    """

    config: PriorConfig
    prior: Prior
    scores: Scores
    outside: float
    warnings: tuple[str, ...] = ()


def choose_prior_configs(
    name: PriorName, num_latents: int, num_rows: int, assignments: Iterable[str]
) -> list[PriorConfig]:
    """Return the configurations to try, smallest first: one, or one per number of experts.

    Args:
        name: Name of the kind of prior.
        num_latents: Q.
        num_rows: Latents to fit that differ from each other.
        assignments: `prior.key=value` words of the user.

    Raises:
        ConfigError: The name or a setting is unknown or wrong, or does not fit latents of an autoencoder.
    """
    if name not in get_args(PriorName):
        raise ConfigError(f"no prior named {name!r}", hint=f"choose one of: {', '.join(get_args(PriorName))}")
    overrides = parse_overrides(assignments)
    if "refit_interval" in overrides.get("prior", {}):
        raise ConfigError("prior.refit_interval has no meaning here: the latents do not move", hint="leave it out")
    foreign = sorted(set(overrides) - {"prior"})
    if foreign:
        raise ConfigError(f"setting {foreign[0]} does not matter to a prior alone", hint="write --set prior.key=value")
    chosen = merge({"low": -8.0, "high": 8.0, "num_latents": num_latents, **_PRIORS[name]}, overrides.get("prior", {}))
    numbers = [chosen["num_components"]] if "num_components" in chosen else _choose_numbers(num_rows)
    configs = [from_mapping(PriorConfig, {**chosen, "num_components": number}, path="prior") for number in numbers]
    config = configs[0]
    config.require_tails()
    if config.num_latents != num_latents:
        raise ConfigError(f"prior.num_latents = {config.num_latents}, but the latents have {num_latents} numbers")
    if config.variant == "independent" and config.num_components > 1:
        raise ConfigError(
            f"the independent prior sums prior.num_components = {config.num_components} latents, which an autoencoder "
            "does not tell apart",
            hint="set prior.num_components=1",
        )
    if config.variant == "experts" and config.num_components > num_rows:
        raise ConfigError(
            f"{num_rows} different latents cannot start prior.num_components = {config.num_components} experts",
            hint="lower prior.num_components",
        )
    return configs


def fit_prior(
    latents: Latents,
    configs: Iterable[PriorConfig],
    *,
    seed: int = 0,
    steps: int = 400,
    progress: Progress = lambda _what, _done, _total: None,
) -> FittedPrior:
    """Fit the best of some priors to latents.

    The number of experts is chosen by the held-out likelihood of the starts, in the order given, until it has fallen
    twice; then the energies of the best start are fitted.

    Args:
        latents: Latents of any autoencoder.
        configs: Priors to try.
        seed: Seed of everything random.
        steps: Number of steps of Adam.
        progress: Told as work goes on.

    Raises:
        DataError: The prior cannot hold the latents on its domain, or no prior has a finite density.
        KaemError: They lie too far apart for it.
    """
    mean, std = latents.fitted.mean(0), latents.fitted.std(0)
    candidates = list(configs)
    if candidates[0].frame == "none":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    shape = (-1, latents.fitted.shape[1], *_TRAILING[candidates[0].variant])
    fitted, choosing = (((part - mean) / std).reshape(shape) for part in (latents.fitted, latents.choosing))
    if candidates[0].frame == "none":
        _require_inside(fitted, candidates[0])
    config, prior = _find_best_start(candidates, fitted, choosing, seed, progress)
    scored = ((latents.scored - mean) / std).reshape(shape)
    everything = torch.cat([fitted, choosing, scored])
    _require_density(prior, everything)

    def score(prior: Prior) -> Tensor:
        # log p(z) = log p(z') - sum log s
        return log_densities(prior, scored) - float(std.log().sum())

    start = float(score(prior).mean())
    # The Gaussian mixture of own frames is a maximum of the likelihood already; what is left is its shapes.
    parameters = [value for name, value in prior.named_parameters() if not name.startswith("frames.")]
    fit_density(
        prior,
        fitted,
        choosing,
        steps=steps,
        rng=noise_stream(seed, 0, "latent fit"),
        parameters=parameters,
        progress=lambda step, held_out: progress(f"fitting energies, log p(z) {held_out:.2f}", step, steps),
    )
    own = score(prior)
    if bool(own.isnan().any()):
        raise DataError("log p(z) of the fitted prior is not a number", hint="look for odd rows in the latents")
    is_outside = torch.zeros(len(everything), dtype=torch.bool)
    if prior.has_tails:
        u = prior.coordinates(everything).flatten(1)
        is_outside = ((u < config.low) | (u > config.high)).any(1)
        prior.widen(everything)
    unfold(prior, mean, std)
    prior.eval().requires_grad_(False)
    covariance = torch.cov(latents.fitted.double().T).reshape(len(mean), -1)
    simple = {
        "N(0, I)": _gaussian_log_densities(latents.scored, torch.zeros_like(mean), torch.eye(len(mean))),
        "one Gaussian": _gaussian_log_densities(latents.scored, latents.fitted.double().mean(0), covariance),
    }
    return FittedPrior(
        config=config,
        prior=prior,
        scores=Scores(
            standard_normal=float(simple["N(0, I)"].mean()),
            full_gaussian=float(simple["one Gaussian"].mean()),
            start=start,
            prior=float(own.mean()),
        ),
        warnings=(*_find_flat_directions(covariance), *_find_better_ones(own, simple)),
        outside=float(is_outside.float().mean()),
    )


def make_decoder_config(
    prior: PriorConfig, image_shape: tuple[int, ...], *, name: str, seed: int, steps: int
) -> Config:
    """Return the configuration of a prior joined to a finished decoder.

    Args:
        prior: Its section.
        image_shape: (C, H, W) of the decoder.
        name: Name of the model.
        seed: Seed of the fit.
        steps: Number of steps of the fit.

    Raises:
        ConfigError: The sections do not go together.
    """
    is_bounded = prior.reference not in {"gaussian", "learnable_gaussian"} or prior.u_sharing == "per_p"
    return Config(
        name=name,
        data=DataConfig(source="latents", image_shape=image_shape),
        prior=prior,
        generator=GeneratorConfig(kind="onnx"),
        # There was no posterior; only these are allowed beside such a prior.
        posterior=PosteriorConfig(kind="importance" if is_bounded else "amortized"),
        training=TrainingConfig(updates=max(steps, 1), learn_sigma=False, seed=seed),
    )


def write_fitted(path: Path, fit: FittedPrior, decoder: Decoder, config: Config, *, fingerprint: str) -> None:
    """Write prior and decoder as a checkpoint that is exported like any other.

    Args:
        path: Path of the checkpoint.
        fit: The prior.
        decoder: Decoder of the same latents.
        config: Configuration by `make_decoder_config`, for this prior.
        fingerprint: Fingerprint of the latents.

    Raises:
        RequestError: The file cannot be written.
    """
    model = Kaem(config)
    model.prior.load_state_dict(fit.prior.state_dict())
    if not isinstance(model.generator, OnnxGenerator):
        raise AssertionError("generator.kind = 'onnx' gives an OnnxGenerator")
    model.generator.set_file(decoder.content)
    write_checkpoint(
        path,
        Checkpoint(
            config=config,
            model_state=model.state_dict(),
            posterior_state={},
            optimiser_state={},
            step=config.training.updates,
            data_fingerprint=fingerprint,
        ),
    )


@torch.no_grad()
def unfold(prior: Prior, mean: Tensor, std: Tensor) -> None:
    """Turn a prior of z' into that of z = m + s o z', through its frame or frames; without one both must be trivial."""
    frame = getattr(prior, "frames", prior.frame)
    if frame is not None:
        frame.offset.mul_(std).add_(mean)
        frame.matrix.mul_(std.unsqueeze(-1))


def _choose_numbers(num_rows: int) -> list[int]:
    return [number for number in _NUMBERS_OF_EXPERTS if number * _ROWS_PER_EXPERT <= num_rows]


def _find_best_start(
    configs: list[PriorConfig], fitted: Tensor, choosing: Tensor, seed: int, progress: Progress
) -> tuple[PriorConfig, Prior]:
    """Start every prior from the latents and return the one that explains held-out ones best."""
    best: tuple[float, PriorConfig, Prior] | None = None
    falls = 0
    for number, config in enumerate(configs):
        progress(f"starting from the latents (components: {config.num_components})", number, len(configs))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            prior = build_prior(config)
        if isinstance(prior, OwnFramesPrior):
            # Exactly the Gaussian mixture of the final refit: no energies yet.
            mixture = fit_full_mixture(fitted, config.num_components, seed=seed)
            torch.nn.init.zeros_(prior.bank.coefficients)
            prior.start(mixture.weights, mixture.means, mixture.covariances)
            prior.widen(fitted)
        else:
            rng = noise_stream(seed, config.num_components, "prior start")
            start_prior(prior, fitted, torch.zeros_like(fitted), rng)
        held_out = mean_log_density(prior, choosing)
        if math.isnan(held_out):
            continue
        if best is None or held_out > best[0]:
            best, falls = (held_out, config, prior), 0
        else:
            falls += 1
            if falls == _FALLS_TO_STOP:
                break
    if best is None:
        raise DataError("no prior could be started: log p(z) is not a number", hint="look for odd rows in the latents")
    return best[1:]


def _require_inside(fitted: Tensor, config: PriorConfig) -> None:
    """Refuse latents that a prior without a frame cannot reach: it has no scale of its own."""
    is_inside = ((fitted >= config.low) & (fitted <= config.high)).flatten(1).all(1)
    outside = 1.0 - float(is_inside.float().mean())
    if outside > _MOST_OUTSIDE:
        raise DataError(
            f"{outside:.1%} of the latents lie outside the domain [{config.low:g}, {config.high:g}] of a prior without "
            "a frame",
            hint="use --prior strict, which scales and turns them, or widen prior.low and prior.high",
        )


def _require_density(prior: Prior, latents: Tensor) -> None:
    """Refuse latents that have no density under a prior that ends with its domain."""
    if prior.has_tails:
        return
    outside = float(prior.is_outside(latents).double().mean())
    if outside > 0.0:
        raise DataError(
            f"{outside:.2g} of the latents lie outside the domain [{prior.low:g}, {prior.high:g}], where the "
            f"{prior.reference.name} reference has no density",
            hint="set prior.reference=gaussian, or a domain that holds all latents",
        )


def _find_better_ones(own: Tensor, simple: Mapping[str, Tensor]) -> list[str]:
    """Say which simple priors explain held-out latents better, and how sure that is: log densities, each (S,)."""
    found = []
    for name, log_density in simple.items():
        gain = log_density - own
        mean, error = float(gain.mean()), float(gain.std(correction=0)) / math.sqrt(len(gain))
        if not mean <= _LEAST_GAIN:  # nan, where the prior's is -inf, is worse too
            found.append(
                f"the fitted prior is worse than {name} on held-out latents, by {mean:.3g} nats (standard error "
                f"{error:.2g}): fit it to more or other latents, or choose another --prior"
            )
    return found


def _find_flat_directions(covariance: Tensor) -> list[str]:
    """Say that latents fill only some of their directions, if so: densities there mean little."""
    deviations = covariance.diagonal().sqrt()
    variances = torch.linalg.eigvalsh(covariance / deviations / deviations.unsqueeze(-1))
    num = int((variances > _FLAT * variances[-1]).sum())
    if num == len(variances):
        return []
    return [
        f"the latents vary in {num} of their {len(variances)} directions only: in the others the prior and one "
        "Gaussian have the least deviation that each allows, which decides the scores"
    ]


def _gaussian_log_densities(latents: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the log density of latents, shape (S, Q) -> (S,), under N(mean, covariance), in float64."""
    covariance = covariance.double()
    # Latents that repeat each other have a singular covariance.
    factor = torch.linalg.cholesky(covariance + _RIDGE * torch.diag(covariance.diagonal()))
    white = torch.linalg.solve_triangular(factor, (latents.double() - mean.double()).T, upper=False)
    constant = 0.5 * len(mean) * math.log(2.0 * math.pi) + float(factor.diagonal().log().sum())
    log_density: Tensor = -0.5 * white.square().sum(0) - constant
    return log_density
