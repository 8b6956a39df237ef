"""The training configuration as a whole: rules across its sections, presets, files and overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, assert_never

from kaem.config import from_mapping, merge, parse_overrides, read_toml
from kaem.errors import ConfigError
from kaem_train.config import (
    MOST_WEIGHTS,
    DataConfig,
    DiffusionConfig,
    GeneratorConfig,
    LatentEbmConfig,
    PosteriorConfig,
    PriorConfig,
    RefitConfig,
    TrainingConfig,
    cnn_kernels,
)
from kaem_train.config.families import FAMILY_RULES, STANDARD_NORMAL, FamilyName, prescribe

_MOST_NUMBERS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that decides a training run; saved whole in every checkpoint.

    Attributes:
        name: Name of the preset or run; names the default output folder and the exported model.
        family: `kaem`, or a baseline on the same data with the same trainer: `vae`, `latent_ebm`
            or `ddpm`; see `kaem_train.families`.
    """

    name: str
    family: FamilyName = "kaem"
    data: DataConfig
    prior: PriorConfig
    generator: GeneratorConfig
    posterior: PosteriorConfig
    training: TrainingConfig
    refit: RefitConfig = field(default_factory=RefitConfig)
    latent_ebm: LatentEbmConfig = field(default_factory=LatentEbmConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise ConfigError(f"name = {self.name!r} cannot name a folder", hint="use letters, digits, . - and _")
        if self.family != "kaem":
            self._require_standard_normal()
        if self.posterior.has_encoder and self.prior.reference not in {"gaussian", "learnable_gaussian"}:
            raise ConfigError(
                f"the {self.posterior.kind} posterior has unbounded support, "
                f"the reference {self.prior.reference!r} has not",
                hint="set posterior.kind=importance or prior.reference=gaussian",
            )
        if self.posterior.has_encoder and self.prior.u_sharing == "per_p":
            raise ConfigError(
                f"the {self.posterior.kind} posterior maximises a bound of the density, "
                "which prior.u_sharing = 'per_p' does not sample from",
                hint="set posterior.kind=importance or prior.u_sharing=per_qp",
            )
        if self.training.prior_gradient == "contrastive":
            self._require_contrastive_is_valid()
        self._check_weight_penalty()
        self._check_generator_noise()
        if self.prior.frame == "global" and not self.posterior.has_encoder:
            raise ConfigError(
                f"frame = 'global' is learned from encoded images, which the {self.posterior.kind} posterior has not",
                hint="set posterior.kind=amortized or prior.frame=none",
            )
        self._require_memory()
        if not FAMILY_RULES[self.family].has_generator:
            self._require_halving()
        elif self.generator.kind == "cnn":
            cnn_kernels(self.data.image_shape, self.generator)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Adam step sizes of the networks and of the prior."""
        return FAMILY_RULES[self.family].learning_rates(self)

    def _require_halving(self) -> None:
        smallest = 2 ** (len(self.diffusion.channels) - 1)
        if any(side % smallest for side in self.data.image_shape[1:]):
            raise ConfigError(
                f"diffusion.channels = {list(self.diffusion.channels)} halves images "
                f"{len(self.diffusion.channels) - 1} times, which {list(self.data.image_shape)} does not allow",
                hint="give fewer widths",
            )

    def _require_standard_normal(self) -> None:
        wanted = {"num_latents": self.prior.num_latents, **STANDARD_NORMAL}
        is_never_replaced = self.posterior.has_encoder and self.posterior.prior_from == 1.0
        if self.prior != PriorConfig(**wanted) or not is_never_replaced:
            raise ConfigError(
                f"family = {self.family!r} has another prior than N(0, I)",
                hint="name the family in a TOML file or with --family; the prior's settings then follow",
            )
        if self.refit.kind != "none":
            raise ConfigError(
                f"refit.kind = {self.refit.kind!r} would replace the prior of family = {self.family!r}",
                hint="set refit.kind=none",
            )

    def _check_weight_penalty(self) -> None:
        penalty = self.training.weight_penalty
        if penalty == 0.0:
            return
        if self.prior.variant == "independent":
            raise ConfigError(
                f"training.weight_penalty = {penalty} does not fit the independent prior, which has no mixture weights",
                hint="set training.weight_penalty=0 or prior.variant=mixture",
            )
        if not self.prior.train_proportions:
            raise ConfigError(
                f"training.weight_penalty = {penalty} has no effect on weights that are not trained",
                hint="set training.weight_penalty=0 or prior.train_proportions=true",
            )

    @property
    def has_energies(self) -> bool:
        """Whether the prior is one of univariate energies, and not N(0, I) or what tilts it."""
        return FAMILY_RULES[self.family].has_energies

    def _check_generator_noise(self) -> None:
        noise = self.training.generator_noise
        if noise == 0.0:
            return
        if self.family != "kaem" or self.posterior.has_encoder:
            raise ConfigError(
                f"training.generator_noise = {noise} is for posteriors without an encoder, and this is "
                f"{self.posterior.kind!r} in the family {self.family!r}",
                hint="set training.generator_noise=0, or posterior.kind=importance, langevin or tempering",
            )
        if self.generator.kind not in {"cnn", "kan"}:
            raise ConfigError(
                f"training.generator_noise = {noise} goes before a sigmoid, which is not known of "
                f"generator.kind = {self.generator.kind!r}",
                hint="set training.generator_noise=0",
            )

    def _require_memory(self) -> None:
        """Refuse what no machine that trains these models holds: numbers of one layer, and of one batch's chains."""
        channels, height, width = self.data.image_shape
        pixels = channels * height * width
        generator, posterior, num_latents = self.generator, self.posterior, self.prior.num_latents
        match generator.kind:
            case "kan":
                widths = (num_latents, *generator.hidden, pixels)
                largest = max(a * b for a, b in pairwise(widths)) * (generator.grid_size + 1)
            case "cnn":
                widths = (num_latents, generator.dense or num_latents, *generator.channels, channels)
                kernel_size = max((49, *(kernel**2 for kernel in generator.kernels)))
                largest = kernel_size * max(a * b for a, b in pairwise(widths))
            case "module" | "onnx":
                largest = 0  # not ours to count
            case _:
                assert_never(generator.kind)
        if largest > _MOST_NUMBERS:
            raise ConfigError(
                f"a layer of the generator would hold {largest:.2g} weights, above {_MOST_NUMBERS:.2g}",
                hint="lower the widths in the generator section, or prior.num_latents",
            )
        if posterior.has_encoder:
            reduction = 4 ** len(posterior.encoder_channels)
            dense = posterior.encoder_channels[-1] * max(height * width // reduction, 1) * posterior.encoder_dense
            if dense > _MOST_NUMBERS:
                raise ConfigError(
                    f"the encoder's dense layer would hold {dense:.2g} weights, above {_MOST_NUMBERS:.2g}",
                    hint="lower posterior.encoder_dense, or give posterior.encoder_channels more layers",
                )
        num_weights = max(self.refit.num_experts) * num_latents**2
        if self.refit.kind == "experts" and num_weights > MOST_WEIGHTS:
            raise ConfigError(
                f"the frames of the final refit would hold {num_weights:.2g} weights, above {MOST_WEIGHTS:.2g}",
                hint="set refit.kind=none, or lower refit.num_experts or prior.num_latents",
            )
        batch = self.training.batch_size
        images = {
            "amortized": batch,
            "weighted_bound": batch * posterior.bound_samples,
            "refined": batch,
            "importance": max(batch, posterior.num_proposals),
            "langevin": batch,
            "tempering": batch * posterior.num_temperatures,
        }[posterior.kind]
        if images * pixels > _MOST_NUMBERS:
            raise ConfigError(
                f"one update would decode {images} images of {pixels} pixels, above {_MOST_NUMBERS:.2g} in all",
                hint="lower training.batch_size",
            )

    def _require_contrastive_is_valid(self) -> None:
        if self.prior.variant != "independent":
            raise ConfigError(
                f"training.prior_gradient = 'contrastive' does not fit the {self.prior.variant} prior: its samples "
                "pick component p with weight alpha_p, the density without normalisers weighs it alpha_p Z_p",
                hint="set training.prior_gradient=quadrature or prior.variant=independent",
            )
        if self.posterior.has_encoder:
            raise ConfigError(
                f"the {self.posterior.kind} posterior maximises a bound of the normalised density, which "
                "training.prior_gradient = 'contrastive' leaves out",
                hint="set training.prior_gradient=quadrature, or posterior.kind=langevin or importance",
            )


def preset_names() -> tuple[str, ...]:
    """Return the names of the packaged presets, sorted."""
    folder = resources.files("kaem_train.config.presets")
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def load_config(preset_or_path: str, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration: a packaged preset or a TOML file, then `section.key=value` overrides.

    A file, or a preset, may name a preset it starts from with a top-level `preset = "..."`; then
    preset < file < overrides < what the family prescribes.

    Raises:
        ConfigError: No such preset or file, or a setting is unknown, missing or wrong.
    """
    if preset_or_path in preset_names():
        mapping = _read_preset(preset_or_path)
    elif preset_or_path.endswith(".toml") or Path(preset_or_path).is_file():
        mapping = _with_parent(read_toml(Path(preset_or_path)))
    else:
        raise _unknown_preset(preset_or_path)
    return from_mapping(Config, prescribe(merge(mapping, parse_overrides(overrides))))


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise _unknown_preset(name)
    with resources.as_file(resources.files("kaem_train.config.presets") / f"{name}.toml") as path:
        return _with_parent(read_toml(path))


def _with_parent(mapping: dict[str, Any]) -> dict[str, Any]:
    parent = mapping.pop("preset", None)
    return mapping if parent is None else merge(_read_preset(str(parent)), mapping)


def _unknown_preset(name: str) -> ConfigError:
    return ConfigError(
        f"no preset or configuration file named {name!r}",
        hint=f"presets: {', '.join(preset_names())}; a file must end in .toml",
    )


def begun_as(config: Config, old: Config, step: int) -> Config:
    """Return the settings with which a run goes on: what has begun in it, at update `step` of `old`, stays begun.

    The prior, and the draws of a weighted bound, begin at shares of all updates; of more updates the same share would
    be later than now, and they would begin a second time.
    """
    begins = max(old.posterior.prior_from, old.posterior.bound_from) * old.training.updates
    if step < begins or config.training.updates < old.training.updates:
        return config
    scale = old.training.updates / config.training.updates
    posterior = replace(
        config.posterior,
        prior_from=old.posterior.prior_from * scale,
        bound_from=old.posterior.bound_from * scale,
    )
    return replace(config, posterior=posterior)


def lengthened(old: Config, new: Config, step: int) -> Config:
    """Return the settings of a run that is finished at update `step` as if it had been meant to be as long as `new`."""
    if step < old.training.updates or new.training.updates <= old.training.updates:
        return old
    return begun_as(replace(old, training=replace(old.training, updates=new.training.updates)), old, step)


def first_difference(old: Config, new: Config) -> str:
    """Name the first setting that differs and matters, or return ""; where data lie and the run computes does not."""
    old = replace(
        old,
        data=replace(old.data, path=new.data.path),
        training=replace(old.training, device=new.training.device),
    )
    if old == new:
        return ""
    if old.family != new.family:
        return f"family: {old.family}, now {new.family}"
    for section in ("training", "data", "prior", "generator", "posterior", "refit", "latent_ebm", "diffusion"):
        before, after = getattr(old, section), getattr(new, section)
        for name in before.__dataclass_fields__:
            values = getattr(before, name), getattr(after, name)
            if values[0] != values[1]:
                return f"{section}.{name}: {values[0]}, now {values[1]}"
    return f"name: {old.name}, now {new.name}"
