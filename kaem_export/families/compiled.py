"""What compiling gives, whatever the family: a graph, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx

from kaem.artifact import Family, Manifest
from kaem.errors import ConfigError, RequestError, VerificationError

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
class Compiled:
    """A graph and its part of the manifest; see `kaem.artifact.Manifest`.

    Attributes:
        graph: From `uniform` (N, D) to `image` and `latent` (N, Q).
        family: That of the manifest, which tells the samplers of a diffusion model apart.
        name: Human name.
        noise_dim: D.
        latent_dim: Q.
        prior: Description of where latents come from.
        densities: Densities of the latents, where they are known, for plotting.
    """

    graph: onnx.ModelProto
    family: Family
    name: str
    noise_dim: int
    latent_dim: int
    prior: Mapping[str, Any]
    densities: Mapping[str, Any] = field(default_factory=dict)


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
