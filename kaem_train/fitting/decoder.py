"""A finished decoder in an ONNX file, tried on some latents before anything is built on it.

Reading it runs no code but the graph itself, on ONNX Runtime; nothing is unpickled. What is kept of it is another
graph, converted by a library and wrapped by us. So the file as it came decodes probe latents first, and the graph that
is kept has to give the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaem.engines.session import open_session
from kaem.errors import ArtifactError
from kaem_train.fitting.decoder_graph import (
    EXPORT_AGAIN,
    OPSET,
    read_graph,
    read_opset,
    require_one_each,
    write_normal_form,
)
from kaem_train.fitting.decoder_layout import declare, is_channels_last, latent_sides
from kaem_train.fitting.decoder_opset import convert_to_one_opset, first_difference
from kaem_train.library_errors import one_line

_RANGE_SLACK = 1e-3
"""How far outside the stated range an intensity may be; a quarter of a level of 8 bits, clipped afterwards."""

_ROW_SLACK = 1e-4
_SAME = 1e-4
"""Of the range: how far the graph that is kept may be from the file that was given."""

_PROBE_ROWS = (4, 32)
"""Latents decoded, at least and at most: fewer where images are large."""

_PIXELS = 1 << 22
"""About how many intensities a batch of probes may have."""

_FAR_SHARE = 4
_FAR = 3.0
"""Some probes lie so many times as far from the mean as latents do: a prior has tails."""

_TAIL, _TAIL_ROWS = 6.0, 4
"""How many deviations from the mean, and how many latents there and as many opposite, no image may be NaN."""

_BATCHES = (1, 2, 3, 5, 17)
_MANY = 257
"""Rows of one large batch, of images that are small enough."""

Images = NDArray[np.float32]
Decode = Callable[[NDArray[np.float32]], Images]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder in the form of `decoder_graph`.

    Attributes:
        content: The ONNX file.
        image_shape: (C, H, W).
        summary: What was read and how it was brought to this form, in words.
    """

    content: bytes
    image_shape: tuple[int, int, int]
    summary: str = ""


def read_decoder(
    path: Path,
    latents: NDArray[np.float32],
    *,
    latent_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
) -> Decoder:
    """Read, check and normalise a decoder.

    Args:
        path: An ONNX file with one float32 input, latents (N, Q) or of any shape of Q numbers, and one float32 output,
            images (N, C, H, W) or (N, H, W, C).
        latents: Some latents of images that it decodes, shape (S, Q).
        latent_shape: Shape of one latent as its encoder gives it, of Q numbers; by default (Q,).
        pixel_range: What its black and white are; mapped to 0 and 1 inside the graph.

    Raises:
        ArtifactError: The file is missing, damaged or too large, or keeps weights elsewhere, uses operators that are
            not ONNX's own or a newer opset, has other inputs or outputs, a fixed batch size, or a row that depends on
            its batch or on chance, its images leave the range, or it cannot be brought to one form without changing
            them.
    """
    given = read_graph(path)
    source = require_one_each(given, path)
    sides = latent_sides(source, latent_shape or latents.shape[1:], path)
    declare(source, sides)
    converted = convert_to_one_opset(given, path)
    decode = _open_runner(given.SerializeToString(), source.name, sides, path, "")
    most = _PIXELS // math.prod(decode(latents[:2]).shape[1:])
    probes, num_far = _draw_probes(latents, max(_PROBE_ROWS[0], min(most, _PROBE_ROWS[1])))
    images = decode(probes)
    image_shape, last = _read_layout(images[:-num_far], path, pixel_range)
    _require_numbers(decode, latents, path)
    _require_rows_alone(decode, probes, images, path, pixel_range)
    with one_line(f"the decoder {path} cannot be brought to the form of a checkpoint", EXPORT_AGAIN):
        content = write_normal_form(converted, sides, image_shape, is_channels_last=last, pixel_range=pixel_range)
    kept = _open_runner(content, "latent", (math.prod(sides),), path, f" in opset {OPSET}")
    low, high = pixel_range
    expected = np.clip((images.transpose(0, 3, 1, 2) if last else images) - low, 0.0, high - low) / (high - low)
    difference = max(_measure_difference(found, wanted) for found, wanted in _decode_in_batches(kept, probes, expected))
    version = read_opset(given)
    if not difference <= _SAME:
        feed = {source.name: probes[:3].reshape(-1, *sides)}
        node = first_difference(given, converted, feed, _SAME)
        raise ArtifactError(
            f"the decoder {path} gives other images, by up to {difference:.2g} of their range, once it is converted "
            f"from opset {version} to {OPSET}" + (f"; they part at {node}" if node else ""),
            hint=EXPORT_AGAIN,
        )
    words = [
        f"latents {_join_sides(sides)}",
        f"images {_join_sides(image_shape)}" + (" (turned from height x width x channels)" if last else ""),
        f"{low:g} to {high:g}",
        f"opset {version}",
        f"within {difference:.1g} of the file on {len(probes)} latents",
    ]
    return Decoder(content=content, image_shape=image_shape, summary=", ".join(words))


def _draw_probes(latents: NDArray[np.float32], num: int) -> tuple[NDArray[np.float32], int]:
    """Return so many latents spread over those given, then some farther out, and how many those are."""
    chosen = latents[np.linspace(0, len(latents) - 1, num).astype(int)]
    mean, num_far = latents.mean(axis=0), num // _FAR_SHARE
    return np.concatenate([chosen, mean + np.float32(_FAR) * (chosen[:num_far] - mean)]), num_far


def _open_runner(content: bytes, name: str, sides: tuple[int, ...], path: Path, form: str) -> Decode:
    """Open a graph; return what decodes rows (N, Q) with it."""
    session = open_session(content, "cpu", source=f"the decoder {path}{form}")

    def decode(rows: NDArray[np.float32]) -> Images:
        with one_line(f"the decoder {path}{form} fails on a batch of {len(rows)}", EXPORT_AGAIN):
            images = np.asarray(session.run(None, {name: np.ascontiguousarray(rows.reshape(-1, *sides))})[0])
        if images.ndim != 4 or len(images) != len(rows):
            raise ArtifactError(
                f"the decoder {path}{form} turns {len(rows)} latents into shape {images.shape}, not (N, C, H, W)",
                hint="reshape inside the decoder, for example with nn.Unflatten(1, (1, 28, 28)), and export it again",
            )
        return images

    return decode


def _read_layout(images: Images, path: Path, pixel_range: tuple[float, float]) -> tuple[tuple[int, int, int], bool]:
    """Return (C, H, W) of images in their range, and whether channels are their last axis."""
    low, high = pixel_range
    slack = _RANGE_SLACK * (high - low)
    if np.isnan(images).any():
        raise ArtifactError(
            f"the decoder {path} gives NaN for some of the latents", hint="look for its roots, logarithms and quotients"
        )
    if not (np.isfinite(images).all() and images.min() >= low - slack and images.max() <= high + slack):
        raise ArtifactError(
            f"the images of the decoder {path} lie in [{images.min():.4g}, {images.max():.4g}], "
            f"not in [{low:g}, {high:g}]",
            hint="state its range with --pixel-range, for example -1 1 after tanh; an unbounded decoder needs a "
            "sigmoid or a clamp at its end",
        )
    first, second, third = images.shape[1:]
    last = is_channels_last(images.shape[1:])
    return ((third, first, second) if last else (first, second, third)), last


def _require_numbers(decode: Decode, latents: NDArray[np.float32], path: Path) -> None:
    """Refuse a decoder that gives NaN where a prior's tails are: 6 deviations from the mean, in all directions.

    Infinities are let be: they are clipped.
    """
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0], np.float32), size=(_TAIL_ROWS, latents.shape[1]))
    rows = np.concatenate([signs, -signs]) * np.float32(_TAIL) * latents.std(axis=0) + latents.mean(axis=0)
    if np.isnan(decode(rows)).any():
        raise ArtifactError(
            f"the decoder {path} gives NaN for latents {_TAIL:g} deviations from their mean, which priors draw now and "
            "then",
            hint="look for its roots, logarithms and quotients, and clamp what they are given",
        )


def _require_rows_alone(
    decode: Decode, probes: NDArray[np.float32], images: Images, path: Path, pixel_range: tuple[float, float]
) -> None:
    """Refuse images that depend on their batch, its order, or on chance."""
    again = [
        (decode(probes), images),
        (decode(probes[::-1])[::-1], images),
        *_decode_in_batches(decode, probes, images),
    ]
    difference = max(_measure_difference(found, wanted) for found, wanted in again)
    low, high = pixel_range
    if not difference <= _ROW_SLACK * (high - low):
        raise ArtifactError(
            f"an image of the decoder {path} depends on the batch it is in, or on chance, by up to {difference:.2g}",
            hint="export it in evaluation mode (model.eval()), without batch statistics, dropout or noise",
        )


def _decode_in_batches(decode: Decode, probes: NDArray[np.float32], images: Images) -> list[tuple[Images, Images]]:
    """Decode probes in batches of several sizes; return what came beside what should have."""
    batches = [np.arange(len(probes))]
    sizes = [size for size in _BATCHES if size < len(probes)]
    batches += [np.arange(first, first + size) for size in sizes for first in (0, len(probes) - size)]
    if _MANY * math.prod(images.shape[1:]) <= _PIXELS:
        batches.append(np.arange(_MANY) % len(probes))
    return [(decode(probes[rows]), images[rows]) for rows in batches]


def _measure_difference(found: Images, wanted: Images) -> float:
    """Return the largest difference where what is wanted is a number; infinite where nothing like it was found."""
    if found.shape != wanted.shape:
        return math.inf
    is_known = np.isfinite(wanted)  # a decoder may overflow far out
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(found[is_known] - wanted[is_known]).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def _join_sides(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
