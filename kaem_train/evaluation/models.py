"""What is evaluated: a checkpoint, or an exported artifact, which knows nothing but how to draw images."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import kaem
from kaem.artifact import fingerprint
from kaem.config import from_mapping
from kaem.errors import ArtifactError, ConfigError
from kaem.images import to_uint8
from kaem.sampler import Sampler
from kaem_train.checkpoint import fingerprint_weights, read_checkpoint, restore_model
from kaem_train.config import DataConfig
from kaem_train.config.checks import require_device
from kaem_train.config.families import FAMILY_RULES
from kaem_train.devices import choose_device
from kaem_train.evaluation.features.network import Pixels
from kaem_train.families.build import Model
from kaem_train.families.kaem import Kaem
from kaem_train.model.encoder import Encoder
from kaem_train.posterior import Posterior, build_posterior
from kaem_train.rng import noise_stream

_TOGETHER = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model came from.

    Attributes:
        source: Path of the file.
        fingerprint: `sha256:` digest of the checkpoint file or of the artifact's graph.
        weights: `sha256:` digest of the weights, the same for a checkpoint and for artifacts made of it.
        sampling: How the weights are sampled, in the words of a manifest.
        updates: Optimiser steps that the weights have had; None where an artifact does not say.
        data: Images that the model was trained on; None where an artifact does not say.
    """

    source: str
    fingerprint: str
    weights: str
    sampling: str
    updates: int | None
    data: DataConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel(ModelSource):
    """A checkpoint.

    Attributes:
        model: The model, in evaluation mode.
        posterior: With its trained network; None where the likelihood is not to be had.
        encoder: That network's encoder; None where latents are inferred without one.
    """

    model: Model
    posterior: Posterior | None
    encoder: Encoder | None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.model.image_shape

    def draw(self, num: int, seed: int) -> Iterator[Pixels]:
        """Yield `num` unselected samples in batches, rounded to 8 bits."""
        rng = noise_stream(seed, 0, "evaluation samples")
        for start in range(0, num, _TOGETHER):
            yield round_pixels(self.model.sample(min(_TOGETHER, num - start), rng))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel(ModelSource):
    """An artifact.

    Attributes:
        sampler: The loaded file.
    """

    sampler: Sampler

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.sampler.manifest.image_shape

    def draw(self, num: int, seed: int) -> Iterator[Pixels]:
        """Yield samples 0 .. num - 1 of `seed` in batches, rounded to 8 bits."""
        for chunk in self.sampler.stream(num, seed):
            yield to_uint8(chunk.images)


def open_model(path: Path, *, device: str = "auto", allow_modules: Container[str] = ()) -> TrainedModel | ExportedModel:
    """Open a checkpoint, or an artifact where the name ends in .onnx.

    Args:
        path: Path of the file.
        device: Device that computes, as `kaem_train.devices.choose_device` takes it; an artifact runs on a GPU only
            where it is named.
        allow_modules: Generator classes that may be imported, see `load_model`.

    Raises:
        ArtifactError: The file is missing, damaged or neither, or its generator is a class that is not allowed.
        BackendError: ONNX Runtime cannot run the artifact.
        ConfigError: There is no such device, or an artifact cannot be run there.
    """
    if path.suffix == ".onnx":
        sampler = kaem.load(path, provider=choose_provider(device))
        manifest = sampler.manifest
        return ExportedModel(
            source=str(path),
            fingerprint=manifest.graph_fingerprint,
            weights=manifest.checkpoint_fingerprint,
            sampling=manifest.sampling,
            updates=manifest.updates,
            data=_read_data(manifest.config.get("data")),
            sampler=sampler,
        )
    checkpoint = read_checkpoint(path)
    _, model = restore_model(checkpoint, path, allow_modules=allow_modules)
    weights = fingerprint_weights(model.state_dict())
    there = choose_device(device)
    model.to(there)
    trained = TrainedModel(
        source=str(path),
        fingerprint=fingerprint(path.read_bytes()),
        weights=weights,
        sampling=FAMILY_RULES[checkpoint.config.family].sampling(checkpoint.config),
        updates=checkpoint.step,
        data=checkpoint.config.data,
        model=model,
        posterior=None,
        encoder=None,
    )
    if not isinstance(model, Kaem):
        return trained
    posterior = build_posterior(checkpoint.config, model.prior.latent_shape)
    if checkpoint.config.posterior.has_encoder and not checkpoint.inference_state:
        return trained  # the prior was fitted to latents that somebody else's encoder gave
    try:
        posterior.network.load_state_dict(checkpoint.inference_state)
    except (RuntimeError, AttributeError, TypeError):
        raise ArtifactError(
            f"the encoder in {path} does not fit its configuration", hint="the file is damaged: train again"
        ) from None
    posterior.network.to(there).eval().requires_grad_(False)
    encoder = next((part for part in posterior.network.modules() if isinstance(part, Encoder)), None)
    return replace(trained, posterior=posterior, encoder=encoder)


def choose_provider(device: str) -> str:
    """Return the provider that runs an artifact on a device.

    Raises:
        ConfigError: It is a GPU that is not the first.
    """
    require_device("device", device)
    if not device.startswith("cuda"):
        return "cpu"
    if device not in ("cuda", "cuda:0"):
        raise ConfigError(
            f"an exported file is evaluated on the first GPU, and the device is {device!r}",
            hint="say --device cuda, with CUDA_VISIBLE_DEVICES set to the number of the GPU",
        )
    return "cuda"


def choose_data(model: TrainedModel | ExportedModel, path: str | None) -> DataConfig:
    """Return which images a model is compared with: those it was trained on, or those at `path`, fitted alike.

    Raises:
        ConfigError: Neither the model nor `path` says.
    """
    if path is None:
        if model.data is None:
            raise ConfigError(f"{model.source} does not say what it was trained on", hint="pass --data PATH")
        return model.data
    if model.data is None:
        return DataConfig(source="files", path=path, image_shape=model.image_shape)
    return replace(model.data, source="files", path=path)


def round_pixels(images: Tensor) -> Pixels:
    """Return images in [0, 1] as 8 bits, rounded to nearest and not truncated."""
    return np.asarray(to_uint8(images.cpu().numpy()))


def _read_data(content: Any) -> DataConfig | None:
    try:
        return from_mapping(DataConfig, content) if isinstance(content, dict) else None
    except ConfigError:
        return None
