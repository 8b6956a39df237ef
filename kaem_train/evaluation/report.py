"""The result: every figure with what it was measured on, as rows for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kaem_train.evaluation.extrapolation import Extrapolation

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFigure:
    """One measured number.

    Attributes:
        name: Key in the JSON, the same for every network: `frechet`, `kernel_infinity`, ...
        label: For people.
        value: The number.
        standard_error: Standard error of the number; None where it is not known.
        detail: Images or samples that it was measured on, and its unit.
    """

    name: str
    label: str
    value: float
    standard_error: float | None = None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkIdentity:
    """The feature network that distances, precision and recall were measured in.

    Attributes:
        name: `classifier`, `inception`, or the name of an .onnx file.
        description: Layer, input and, for the classifier, its accuracy.
        fingerprint: `sha256:` digest.
        num_features: F.
        accuracy: Accuracy of the classifier on held-out images; None for the others.
    """

    name: str
    description: str
    fingerprint: str
    num_features: int
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """All that was measured of one model.

    Attributes:
        model: Its path.
        model_fingerprint: `sha256:` digest of the checkpoint file or of the artifact's graph.
        weights_fingerprint: `sha256:` digest of its weights, the one that artifacts name.
        sampling: How they were sampled: family, steps, precision.
        updates: Optimiser steps they have had; None where that is not known.
        network: Feature network of distances, precision and recall.
        data: Path or name of the data set.
        data_fingerprint: Fingerprint of the data set.
        real: Split of the real images: `train`, `test` or `all`.
        num_real: How many of them.
        num_generated: Samples drawn; unselected, rounded to 8 bits.
        seed: Seed of everything random.
        figures: Measured numbers, in the order to show them.
        frechet_curve: The points and the fit behind `frechet_infinity`.
        kernel_curve: The points and the fit behind `kernel_infinity`.
        missing: Figure's name -> why this model has none.
        notes: What a reader must know before comparing.
        versions: Versions of the programs that decide the figures.
        duration_s: Wall time in seconds.
    """

    model: str
    model_fingerprint: str
    weights_fingerprint: str
    sampling: str
    updates: int | None
    network: NetworkIdentity
    data: str
    data_fingerprint: str
    real: str
    num_real: int
    num_generated: int
    seed: int
    figures: tuple[EvaluationFigure, ...]
    frechet_curve: Extrapolation
    kernel_curve: Extrapolation
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    duration_s: float

    def __getitem__(self, name: str) -> float:
        """Return a figure's value by its name.

        Raises:
            KeyError: It was not measured; `missing` says why.
        """
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(self.missing.get(name, name))

    def to_json(self) -> dict[str, Any]:
        """Return plain containers: `figures` is keyed by name, everything else as the attributes say."""
        content = asdict(self)
        content["format_version"] = FORMAT_VERSION
        content["figures"] = {figure.pop("name"): figure for figure in content["figures"]}
        return content
