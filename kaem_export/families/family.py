"""What every family does for an artifact: compile a model to a graph, describe it, and measure what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import onnx
from torch import nn

from kaem.artifact import Figure, ImageType, Manifest
from kaem.engines.cpu import LocalSampler
from kaem.errors import ConfigError, RequestError, VerificationError
from kaem_export.tables.leaves import TOLERANCE
from kaem_train.config.settings import Config

ModelT = TypeVar("ModelT", bound=nn.Module)

_MOST_UNIFORMS = 1 << 20
"""The largest dimension that a manifest may state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model of a family that samples in steps is to do it; None means as its checkpoint says.

    Attributes:
        sampler: Sampler of a diffusion model: `ddim` or `ddpm`.
        steps: Number of steps of a diffusion model: network passes per image; of a latent EBM: Langevin steps.
    """

    sampler: Literal["ddim", "ddpm"] | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise RequestError(f"steps is {self.steps}; at least 1 is needed")

    def refuse_steps(self, family: str) -> None:
        """Raise `RequestError` if anything is asked for: `family` samples in one pass."""
        for option, value in (("--sampler", self.sampler), ("--steps", self.steps)):
            if value is not None:
                raise RequestError(
                    f"{option} {value}: a model of the family {family} samples in one pass, without steps",
                    hint=f"leave {option} out, or give a latent_ebm or ddpm checkpoint",
                )


AS_TRAINED = Sampling()
"""As the checkpoint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a compilation.

    Attributes:
        image_type: Element type of the images.
        sampling: Sampler and steps of a family that has them.
        tolerance: Error in u that quantile tables aim at.
        keep_components: Whether components of a mixture, or summands, stay functions of their own.
    """

    image_type: ImageType = "float32"
    sampling: Sampling = AS_TRAINED
    tolerance: float = TOLERANCE
    keep_components: bool = False

    def refuse_tables(self, family: str) -> None:
        """Raise `RequestError` if anything is asked of quantile tables: a `family` without a trained prior has none."""
        for option, is_given in (
            ("--tolerance", self.tolerance != TOLERANCE),
            ("--keep-components", self.keep_components),
        ):
            if is_given:
                raise RequestError(
                    f"{option}: a model of the family {family} has no quantile tables of its own",
                    hint=f"leave {option} out, or give a checkpoint of the family kaem",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a manifest says of a model; see `kaem.artifact.Manifest`.

    Attributes:
        family: Family of the manifest, which tells the samplers of a diffusion model apart.
        name: Human name.
        noise_dim: D.
        latent_dim: Q.
        prior: Description of where latents come from.
    """

    family: str
    name: str
    noise_dim: int
    latent_dim: int
    prior: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A graph and its part of the manifest.

    Attributes:
        graph: Graph from `uniform` (N, D) to `image` and `latent` (N, Q).
        description: Description of the model.
        head: Kind of the head, and the names of the tensors that are measured.
        densities: Densities of the latents, where they are known, for plotting.
    """

    graph: onnx.ModelProto
    description: Description
    head: Mapping[str, Any]
    densities: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject(Generic[ModelT]):
    """An artifact, and the model that it was made of.

    Attributes:
        sampler: The loaded artifact.
        artifact: Its file.
        config: Configuration of the checkpoint.
        model: Model of the checkpoint, in float32 and evaluation mode.
        tolerance: Error in u that quantile tables are judged by.
    """

    sampler: LocalSampler
    artifact: Path
    config: Config
    model: ModelT
    tolerance: float = TOLERANCE


class ExportedFamily(ABC, Generic[ModelT]):
    """What a family does for an artifact, one object a family: `exported_families.py` holds all."""

    manifest_names: ClassVar[tuple[str, ...]]
    """Names of the family in manifests, where samplers of diffusion models have names of their own."""

    has_loop: ClassVar[bool] = False
    """Whether graphs hold a loop; they are exported in one form only."""

    @abstractmethod
    def compile(self, config: Config, model: ModelT, request: Request) -> Compiled:
        """Compile a model to a graph.

        Raises:
            RequestError: The family has no such option.
            ConfigError: The model cannot take so many steps, or needs more uniforms than an artifact may have.
            ArtifactError: The generator cannot be exported, or a density cannot be integrated.
        """

    @abstractmethod
    def describe(self, config: Config, manifest: Manifest) -> Description:
        """Return what a manifest ought to say, with the steps and the sampler that it states.

        Raises:
            VerificationError: It states steps or a sampler that the model does not have.
        """

    @abstractmethod
    def measure(self, subject: Subject[ModelT]) -> tuple[Figure, ...]:
        """Measure the latents, and the images that are made of them.

        Raises:
            VerificationError: The manifest describes another head than the model has.
        """

    def set_sampling(self, config: Config, model: ModelT, manifest: Manifest) -> None:
        """Let the model itself sample as a manifest says; nothing to do in a family that has one way only."""

    def energies(self, model: ModelT) -> str | None:
        """Return what the manifest says of the energies of a prior; None where the family has none."""
        return None

    def generator(self, model: ModelT) -> nn.Module | None:
        """Return the module that makes images of latents; None where there is none."""
        return model.get_submodule("generator")


def require_noise_dim(noise_dim: int, hint: str) -> None:
    """Raise `ConfigError` where an image needs more uniforms than an artifact may have."""
    if noise_dim > _MOST_UNIFORMS:
        raise ConfigError(
            f"one image would need {noise_dim:,} uniforms, more than an artifact's {_MOST_UNIFORMS:,}", hint=hint
        )


def stated_steps(manifest: Manifest) -> int:
    """Return the number of steps that a manifest says its graph takes.

    Raises:
        VerificationError: It says none that could be.
    """
    steps = manifest.prior.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_UNIFORMS:
        raise VerificationError(
            f"the manifest of {manifest.name} says steps is {steps!r}, which no sampler takes", hint="export it again"
        )
    return steps
