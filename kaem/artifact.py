"""The artifact: one ONNX file whose metadata property `kaem.manifest` says what it is.

The graph maps `uniform` float32 (N, D) to `image` (N, C, H, W) and `latent` float32 (N, Q); any program that
runs ONNX can run it with no kaem code. This module knows the manifest only: it neither loads nor builds graphs.

Format versions, newest first (bump for a change that an older reader would misread):
    3   `head`, the kind of the head and the names of what is measured in it.
    2   `manifest_fingerprint`, a digest of all other fields.
    1   first version.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from kaem.errors import ArtifactError

FORMAT_VERSION = 3
MANIFEST_KEY = "kaem.manifest"

_DIGEST_KEY = "manifest_fingerprint"

ImageType = Literal["float32", "uint8"]

_ELEMENT_BYTES: dict[ImageType, int] = {"float32": 4, "uint8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured property of an artifact and the bound it must stay under (both in the property's unit)."""

    name: str
    value: float
    bound: float
    meaning: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the measured value is finite and within its bound."""
        return math.isfinite(self.value) and self.value <= self.bound

    @property
    def words(self) -> tuple[str, str]:
        """Value and bound, with as many digits as it takes to tell them apart."""
        for digits in (3, 5, 8, 17):
            value, bound = (f"{number:.{digits}g}" for number in (self.value, self.bound))
            if value != bound or self.value == self.bound:
                break
        return value, bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is, as its exporter wrote it.

    Attributes:
        family: Kind of model; `kaem` is an energy model, the others are baselines under the same contract. Whoever runs
            the graph need not know it, so families of a newer kaem are read.
        name: Human name of the model, by default the training preset.
        noise_dim: D, uniforms per sample.
        latent_dim: Q, length of the latent vector the generator sees.
        image_shape: (C, H, W).
        image_type: Element type of the output `image`.
        prior: Description of the prior (variant, reference, domain, quadrature) in plain containers.
        head: Kind of the nodes that make latents of uniforms, and the names of the tensors in this graph that a
            certificate speaks of, by what they hold. Empty in artifacts of format 2 and before.
        densities: Coordinates and values of each latent density, for plotting only.
        certificate: Figures measured on this very graph when it was exported.
        config: The whole training configuration.
        checkpoint_fingerprint: `sha256:` digest of the weights that were compiled.
        graph_fingerprint: `sha256:` digest of the graph without its metadata.
        tools: Versions of the programs that made the file.
        compilation: How the graph was made: `passes` in order, `precision` of the generator, `batch_sizes` that it is
            to be called with (none: any), `large_batch_rows` from which another form of it runs (0: none),
            `rows_per_call` at most on a processor, where more are slower (0: no such limit). Empty in artifacts of
            kaem before it had them.
        updates: Optimiser steps that the weights have had; 0 for untrained ones, None in artifacts of kaem before it
            said so.
        format_version: Version of this manifest.
    """

    family: str
    name: str
    noise_dim: int
    latent_dim: int
    image_shape: tuple[int, int, int]
    image_type: ImageType = "float32"
    prior: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    densities: Mapping[str, Any] = field(default_factory=dict)
    certificate: tuple[Figure, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_fingerprint: str = ""
    graph_fingerprint: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    compilation: Mapping[str, Any] = field(default_factory=dict)
    updates: int | None = None
    format_version: int = FORMAT_VERSION

    @property
    def image_bytes(self) -> int:
        """Size of one image in bytes, in the artifact's own element type."""
        return math.prod(self.image_shape) * _ELEMENT_BYTES[self.image_type]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Numbers of rows that the graph is to be called with, ascending; empty for any."""
        return tuple(self.compilation.get("batch_sizes", ()))

    @property
    def rows_per_call(self) -> int:
        """Rows of one call beyond which the graph gets slower per row on a processor; 0 where that is not so."""
        return int(self.compilation.get("rows_per_call", 0))

    @property
    def has_energies(self) -> bool:
        """Whether latents are drawn from univariate energy densities by tables, and not from N(0, I) or a loop."""
        return self.family == "kaem"

    @property
    def sampling(self) -> str:
        """How its weights are sampled, as of `sampling_words`: what two artifacts of one checkpoint may differ in."""
        steps, eta = (self.prior.get(name) for name in ("steps", "eta"))
        return sampling_words(self.family, steps, eta, str(self.compilation.get("precision", "float32")))


def sampling_words(family: str, steps: int | None = None, eta: float | None = None, precision: str = "float32") -> str:
    """Say how a family is sampled: with equal weights and equal words, the law of the images is the same.

    Args:
        family: As in a manifest: diffusion models are named by their sampler.
        steps: Number of steps of a family that samples in steps.
        eta: Noise eta of a diffusion sampler.
        precision: Precision of the generator's arithmetic.
    """
    words = [family, *([] if steps is None else [f"{steps} steps"]), *([] if eta is None else [f"eta {eta:g}"])]
    if precision != "float32":
        words.append(precision)
    return ", ".join(words)


def write_manifest(manifest: Manifest) -> str:
    """Serialise a manifest to the JSON text stored under `MANIFEST_KEY`; the same manifest gives the same text."""
    return seal(asdict(manifest))


def seal(content: Mapping[str, Any]) -> str:
    """Return the JSON text of a manifest's fields with their digest among them."""
    fields = {key: value for key, value in content.items() if key != _DIGEST_KEY}
    return _json({**fields, _DIGEST_KEY: fingerprint(_json(fields).encode())})


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_manifest(metadata: Mapping[str, str], *, source: str) -> Manifest:
    """Read and validate the manifest among an ONNX file's metadata properties.

    Args:
        metadata: All metadata properties of the file.
        source: Name of the file, for messages.

    Raises:
        ArtifactError: There is no manifest, it is not valid or was changed, or a newer kaem wrote it.
    """
    text = metadata.get(MANIFEST_KEY)
    if text is None:
        raise ArtifactError(
            f"{source} is an ONNX file but not a kaem artifact (no {MANIFEST_KEY!r} metadata)",
            hint="make one with: kaem export ckpt.pt",
        )
    try:
        content = json.loads(text)
        version = content["format_version"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise TypeError(f"format_version is {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the manifest of {source} is damaged: {error}", hint="export it again") from None
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{source} has artifact format {version}; this kaem reads up to {FORMAT_VERSION}",
            hint="upgrade with: pip install --upgrade kaem",
        )
    try:
        if version > 1 or _DIGEST_KEY in content:
            _require_digest(content, text)
        return _manifest(content)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the manifest of {source} is damaged: {error}", hint="export it again") from None


def fingerprint(content: bytes) -> str:
    """Return `sha256:<hex>` of some bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _require_digest(content: dict[str, Any], text: str) -> None:
    """Take the digest out of the fields; raise `ValueError` unless it is theirs and `text` is how they are written."""
    stated = content.pop(_DIGEST_KEY, None)
    found = fingerprint(_json(content).encode())
    if stated != found:
        raise ValueError(f"its fields have the digest {found[:19]}, it states {str(stated)[:19]}")
    if text != _json({**content, _DIGEST_KEY: found}):  # 1E5 for 1e5, say: the same fields, and not the bytes of ours
        raise ValueError("it is not written as kaem writes it")


def _manifest(content: dict[str, Any]) -> Manifest:
    shape = content["image_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(_is_size(side) for side in shape)):
        raise ValueError(f"image_shape is {shape!r}")
    for key in ("noise_dim", "latent_dim"):
        if not _is_size(content[key]):
            raise ValueError(f"{key} is {content[key]!r}")
    if content["image_type"] not in get_args(ImageType):
        raise ValueError(f"image_type is {content['image_type']!r}")
    for key in ("prior", "head", "densities", "config", "tools", "compilation"):
        if not isinstance(content.get(key, {}) if key in ("head", "compilation") else content[key], dict):
            raise TypeError(f"{key} is not a table")
    updates = content.get("updates")
    if updates is not None and (type(updates) is not int or updates < 0):
        raise ValueError(f"updates is {updates!r}")
    sizes = content.get("compilation", {}).get("batch_sizes", [])
    if not (isinstance(sizes, list) and all(map(_is_size, sizes)) and sizes == sorted({*sizes})):
        raise ValueError(f"batch_sizes is {sizes!r}")
    limit = content.get("compilation", {}).get("rows_per_call", 0)
    if limit != 0 and not _is_size(limit):
        raise ValueError(f"rows_per_call is {limit!r}")
    for key in ("family", "name", "checkpoint_fingerprint", "graph_fingerprint"):
        if not isinstance(content[key], str) or not (content[key] + "x").isprintable():
            raise TypeError(f"{key} is {content[key]!r}")
    figures = tuple(
        Figure(
            name=str(item["name"]),
            value=float(item["value"]),
            bound=float(item["bound"]),
            meaning=str(item["meaning"]),
        )
        for item in content["certificate"]
    )
    return Manifest(**{**content, "image_shape": tuple(shape), "certificate": figures})


def _is_size(value: object) -> bool:
    """Whether `value` is a whole number that can be a dimension (the upper limit keeps products far from 2^63)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20
