"""A finished decoder in an ONNX file, tried on some latents before anything is built on it.

Reading it runs no code but the graph itself, on ONNX Runtime; nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from kaem.backend import open_session
from kaem.errors import ArtifactError
from kaem_train.decoder_graph import EXPORT_AGAIN, has_unit_sides, normal_form, read_graph

_RANGE_SLACK = 1e-3
"""How far outside the stated range an intensity may be; a quarter of a level of 8 bits, clipped afterwards."""

_ROW_SLACK = 1e-4
_PROBE_ROWS = 32
_LONE_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder in the form of `decoder_graph`.

    Attributes:
        content: The ONNX file.
        image_shape: (C, H, W).
    """

    content: bytes
    image_shape: tuple[int, int, int]


def read_decoder(path: Path, latents: NDArray[np.float32], *, pixel_range: tuple[float, float] = (0.0, 1.0)) -> Decoder:
    """Read, check and normalise a decoder.

    Args:
        path: An ONNX file with one float32 input (N, Q) or (N, Q, 1, 1) and one float32 output (N, C, H, W).
        latents: Some latents of images that it decodes, shape (S, Q).
        pixel_range: What its black and white are; mapped to 0 and 1 inside the graph.

    Raises:
        ArtifactError: The file is missing, damaged or too large, or keeps weights elsewhere, uses operators that are
            not ONNX's own or a newer opset, has other inputs or outputs, a fixed batch size, or a row that depends on
            its batch, or its images leave the range.
    """
    model = read_graph(path)
    has_sides = has_unit_sides(model, latents.shape[1], path)
    image_shape = _image_shape(model, path, has_sides=has_sides, latents=latents, pixel_range=pixel_range)
    content = normal_form(model, latents.shape[1], image_shape, has_sides=has_sides, pixel_range=pixel_range)
    return Decoder(content=content, image_shape=image_shape)


def _image_shape(
    model: onnx.ModelProto,
    path: Path,
    *,
    has_sides: bool,
    latents: NDArray[np.float32],
    pixel_range: tuple[float, float],
) -> tuple[int, int, int]:
    """Decode some latents and check what comes: shape, range, and rows that do not depend on their batch."""
    session = open_session(model.SerializeToString(), "cpu", source=f"the decoder {path}")
    name = session.get_inputs()[0].name
    rows = latents[:_PROBE_ROWS]

    def decode(some: NDArray[np.float32]) -> NDArray[np.float32]:
        some = some[:, :, None, None] if has_sides else some
        try:
            return np.asarray(session.run(None, {name: np.ascontiguousarray(some)})[0])
        except Exception as error:  # onnxruntime's own exception classes share no public base
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"the decoder {path} fails on a batch of {len(some)}: {reason}", hint=EXPORT_AGAIN
            ) from None

    images = decode(rows)
    if images.ndim != 4 or len(images) != len(rows):
        raise ArtifactError(
            f"the decoder {path} turns {len(rows)} latents into shape {images.shape}, not (N, C, H, W)",
            hint="reshape inside the decoder, for example with nn.Unflatten(1, (1, 28, 28)), and export it again",
        )
    low, high = pixel_range
    slack = _RANGE_SLACK * (high - low)
    if not (np.isfinite(images).all() and images.min() >= low - slack and images.max() <= high + slack):
        raise ArtifactError(
            f"the images of the decoder {path} lie in [{images.min():.4g}, {images.max():.4g}], "
            f"not in [{low:g}, {high:g}]",
            hint="state its range with --pixel-range, for example -1 1 after tanh; an unbounded decoder needs a "
            "sigmoid or a clamp at its end",
        )
    alone = np.concatenate([decode(row[None]) for row in rows[:_LONE_ROWS]])
    difference = float(np.abs(alone - images[:_LONE_ROWS]).max())
    if difference > _ROW_SLACK * (high - low):
        raise ArtifactError(
            f"an image of the decoder {path} depends on the batch it is in, by up to {difference:.2g}",
            hint="export it in evaluation mode (model.eval()), without batch statistics, dropout or noise",
        )
    channels, height, width = images.shape[1:]
    return channels, height, width
