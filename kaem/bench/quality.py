"""Quality beside speed: figures of `kaem eval`, attached to a model only if they were measured on that model.

An evaluation names the weights it looked at and how they were sampled, an artifact's manifest does the same; a
checkpoint is known by the digest of its file. Nothing is matched by name, so a figure cannot land at another model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaem.artifact import fingerprint
from kaem.bench.record import Quality
from kaem.engines.cpu import LocalSampler, read_any_file
from kaem.errors import ArtifactError, RequestError

_FIGURE = "frechet_infinity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a source of a benchmark says of itself.

    Attributes:
        source: As it was named.
        family: Family of the model; "" where it is not known.
        updates: Optimiser steps that its weights have had; None where that is not known.
        keys: Digests by which an evaluation of it may name it.
    """

    source: str
    family: str = ""
    updates: int | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An evaluation, as it was written by `kaem eval --json`.

    Attributes:
        path: Path of the file.
        model: What it was measured on.
        keys: Digests by which it names that.
        quality: The figure.
        compared_with: What must be equal for two figures to compare: network, real images.
    """

    path: Path
    model: str
    keys: tuple[str, ...]
    quality: Quality
    compared_with: tuple[Any, ...]


def subject_of(source: str) -> Subject:
    """Read what an artifact says of itself; a checkpoint is only hashed, and a server not asked.

    Raises:
        ArtifactError: The file cannot be read. A file that is no artifact of kaem's is not refused here.
    """
    if source.endswith(".pt"):
        return Subject(source=source, keys=(fingerprint(read_any_file(Path(source))),))
    if not source.endswith(".onnx"):
        return Subject(source=source)
    try:
        with LocalSampler(Path(source), workers=1) as sampler:
            manifest = sampler.manifest
    except ArtifactError:
        return Subject(source=source)  # an engine that needs no manifest may still run it, or say what is wrong
    return Subject(
        source=source,
        family=manifest.family,
        updates=manifest.updates,
        keys=(_key(manifest.checkpoint_fingerprint, manifest.sampling),),
    )


def read_evaluation(path: Path) -> Evaluation:
    """Read a file of `kaem eval --json`.

    Raises:
        ArtifactError: It is missing, damaged, or no evaluation that names its weights.
        RequestError: It is of untrained weights, whose quality means nothing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"no evaluation at {path}", hint=f"make one with: kaem eval model.onnx --json {path}"
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ArtifactError(
            f"cannot read {path} as an evaluation: {why}", hint="make one with: kaem eval model.onnx --json eval.json"
        ) from None
    try:
        evaluation = _evaluation(path, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f": it has no {error}" if isinstance(error, KeyError) else ""
        raise ArtifactError(
            f"{path} is no evaluation that says whose figures it holds{why}",
            hint="evaluate the model again: kaem eval model.onnx --json FILE",
        ) from None
    if content["updates"] == 0:
        raise RequestError(f"{path} evaluates untrained weights, whose quality means nothing", hint="train them first")
    return evaluation


def attach(evaluations: Iterable[Evaluation], subjects: Sequence[Subject]) -> dict[str, Quality]:
    """Return the quality of each source that an evaluation is of.

    Raises:
        RequestError: An evaluation is of none of them, two are of one, or two do not compare.
    """
    found: dict[str, Quality] = {}
    first: Evaluation | None = None
    for one in evaluations:
        first = first or one
        if one.compared_with != first.compared_with:
            raise RequestError(
                f"{first.path} and {one.path} were measured with different networks or real images and do not compare",
                hint="evaluate all models with the same --data, --features, --real and --num-real",
            )
        sources = [subject.source for subject in subjects if set(subject.keys) & set(one.keys)]
        if not sources:
            raise RequestError(
                f"{one.path} is of {one.model}, which is none of the models measured: {one.keys[0][:60]}",
                hint="evaluate the very artifact: kaem eval model.onnx --json FILE",
            )
        for source in sources:
            if source in found:
                raise RequestError(f"two evaluations are of {source}, one of them {one.path}", hint="give one of them")
            found[source] = one.quality
    return found


def _evaluation(path: Path, content: Mapping[str, Any]) -> Evaluation:
    figure, network = content["figures"][_FIGURE], content["network"]
    error = figure["standard_error"]
    quality = Quality(
        figure=_FIGURE,
        value=float(figure["value"]),
        standard_error=None if error is None else float(error),
        network=str(network["name"]),
        num_generated=int(content["num_generated"]),
        num_real=int(content["num_real"]),
        weights=str(content["weights_fingerprint"]),
        sampling=str(content["sampling"]),
    )
    return Evaluation(
        path=path,
        model=str(content["model"]),
        keys=(_key(quality.weights, quality.sampling), str(content["model_fingerprint"])),
        quality=quality,
        compared_with=(network["fingerprint"], content["data_fingerprint"], content["real"], content["num_real"]),
    )


def _key(weights: str, sampling: str) -> str:
    return f"{weights} {sampling}"
