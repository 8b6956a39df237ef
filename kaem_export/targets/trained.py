"""The trained model behind an artifact, for those who want to run it in torch: the checkpoint that lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kaem.artifact import Manifest
from kaem.engines.cpu import read_file
from kaem.errors import ArtifactError
from kaem.onnx_file import read_artifact
from kaem_export.families.exported_families import exported_family
from kaem_train.checkpoint import fingerprint_weights, load_model, read_checkpoint
from kaem_train.config.preflight import CHECKPOINT_NAME
from kaem_train.families.build import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model in torch, sampled as its artifact says.

    Attributes:
        checkpoint: The file it was read from.
        family: Family of the checkpoint's configuration.
        model: In evaluation mode.
        updates: Optimiser steps that it has had.
    """

    checkpoint: Path
    family: str
    model: Model
    updates: int


def manifest_of(path: Path) -> Manifest:
    """Read the manifest of an artifact without a session.

    Raises:
        ArtifactError: It cannot be read, has none, or is damaged.
    """
    return read_artifact(read_file(path), source=str(path))


def open_trained(source: Path) -> Trained:
    """Open a checkpoint, or the one that an artifact was made of; then with the artifact's sampler and steps.

    Raises:
        ArtifactError: It cannot be read, or no checkpoint of those weights lies beside the artifact.
    """
    if source.suffix == ".pt":
        config, model = load_model(source)
        return Trained(checkpoint=source, family=config.family, model=model, updates=read_checkpoint(source).step)
    manifest = manifest_of(source)
    for checkpoint in _beside(source):
        config, model = load_model(checkpoint)
        if fingerprint_weights(model.state_dict()) == manifest.checkpoint_fingerprint:
            break
    else:
        raise ArtifactError(
            f"no checkpoint of the weights of {source} lies beside it",
            hint=f"put the checkpoint it was exported from there as {CHECKPOINT_NAME}, or leave torch's engines out",
        )
    exported_family(config).set_sampling(config, model, manifest)
    updates = read_checkpoint(checkpoint).step
    return Trained(checkpoint=checkpoint, family=config.family, model=model, updates=updates)


def _beside(source: Path) -> Iterator[Path]:
    """Yield the checkpoint of a training folder, and one of the artifact's own name."""
    for path in (source.with_name(CHECKPOINT_NAME), source.with_suffix(".pt")):
        if path.is_file():
            yield path
