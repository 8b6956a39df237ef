"""The training configuration as a whole: rules across its sections, presets, files and overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from kaem.config import from_mapping, merge, parse_overrides, read_toml
from kaem.errors import ConfigError
from kaem_train.sections import (
    DataConfig,
    GeneratorConfig,
    PosteriorConfig,
    PriorConfig,
    RefitConfig,
    TrainingConfig,
    first_size_and_doublings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that decides a training run; saved whole in every checkpoint.

    Attributes:
        name: Of the preset or run; names the default output folder and the exported model.
    """

    name: str
    data: DataConfig
    prior: PriorConfig
    generator: GeneratorConfig
    posterior: PosteriorConfig
    training: TrainingConfig
    refit: RefitConfig = field(default_factory=RefitConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise ConfigError(f"name = {self.name!r} cannot name a folder", hint="use letters, digits, . - and _")
        if self.posterior.has_encoder and self.prior.reference != "gaussian":
            raise ConfigError(
                f"the {self.posterior.kind} posterior has unbounded support, "
                f"the reference {self.prior.reference!r} has not",
                hint="set posterior.kind=importance or prior.reference=gaussian",
            )
        if self.training.prior_gradient == "contrastive":
            self._require_contrastive_is_valid()
        if self.prior.frame == "global" and not self.posterior.has_encoder:
            raise ConfigError(
                f"frame = 'global' is learned from encoded images, which the {self.posterior.kind} posterior has not",
                hint="set posterior.kind=amortized or prior.frame=none",
            )
        if self.generator.kind == "cnn":
            _, doublings = first_size_and_doublings(self.data.image_shape)
            if len(self.generator.channels) != doublings:
                raise ConfigError(
                    f"generator.channels = {list(self.generator.channels)} has {len(self.generator.channels)} "
                    f"widths, images of {list(self.data.image_shape)} need {doublings}",
                    hint="give one width per doubling of the image size",
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
    folder = resources.files("kaem_train.presets")
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def load_config(preset_or_path: str, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration: a packaged preset or a TOML file, then `section.key=value` overrides.

    A file may name a preset it starts from with a top-level `preset = "..."`; then preset < file < overrides.

    Raises:
        ConfigError: No such preset or file, or a setting is unknown, missing or wrong.
    """
    if preset_or_path in preset_names():
        mapping = _read_preset(preset_or_path)
    elif preset_or_path.endswith(".toml") or Path(preset_or_path).is_file():
        mapping = read_toml(Path(preset_or_path))
        parent = mapping.pop("preset", None)
        if parent is not None:
            mapping = merge(_read_preset(str(parent)), mapping)
    else:
        raise _unknown_preset(preset_or_path)
    return from_mapping(Config, merge(mapping, parse_overrides(overrides)))


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise _unknown_preset(name)
    with resources.as_file(resources.files("kaem_train.presets") / f"{name}.toml") as path:
        return read_toml(path)


def _unknown_preset(name: str) -> ConfigError:
    return ConfigError(
        f"no preset or configuration file named {name!r}",
        hint=f"presets: {', '.join(preset_names())}; a file must end in .toml",
    )
