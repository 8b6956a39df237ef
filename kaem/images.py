"""Arrays to pictures: 8-bit conversion, PNG, contact sheets."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.errors import RequestError

GAP = 4
"""Grey pixels between neighbours on a contact sheet."""


def to_uint8(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert images in [0, 1] to 8 bits, rounding to nearest and clipping; uint8 passes through unchanged.

    Args:
        images: Any shape, float or uint8.

    Returns:
        The same shape, uint8.
    """
    if images.dtype == np.uint8:
        return np.asarray(images, np.uint8)
    scaled = np.multiply(images, np.float32(255), dtype=np.float32)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return np.asarray(scaled, np.uint8)


def encode_png(image: NDArray[Any]) -> bytes:
    """Encode one image as PNG; the same pixels always give the same bytes.

    Args:
        image: Shape (C, H, W) with C = 1 (grey) or 3 (RGB), float in [0, 1] or uint8.

    Raises:
        RequestError: C is neither 1 nor 3.
    """
    from PIL import Image  # on first use: a server that streams floats never needs it

    channels, height, width = image.shape
    if channels not in (1, 3):
        raise RequestError(f"PNG holds 1 or 3 channels; this image has {channels}", hint="ask for .npy instead")
    pixels = np.ascontiguousarray(to_uint8(image).transpose(1, 2, 0))
    mode, shape = ("L", (height, width)) if channels == 1 else ("RGB", (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(shape), mode=mode).save(buffer, format="PNG")
    return buffer.getvalue()


def sheet_bytes(num: int, image_shape: tuple[int, int, int], columns: int | None, scale: int | None) -> int:
    """Return about how many bytes `contact_sheet` would take, so that nobody has to find out by allocating them."""
    channels, height, width = image_shape
    columns, scale = _layout(num, height, width, columns, scale)
    return channels * -(-num // columns) * columns * (height * scale + GAP) * (width * scale + GAP)


def contact_sheet(
    images: NDArray[Any], *, columns: int | None = None, scale: int | None = None, gap: int = GAP
) -> NDArray[np.uint8]:
    """Lay images out in rows, left to right and top to bottom, in the order given.

    Args:
        images: Shape (N, C, H, W), float in [0, 1] or uint8.
        columns: Images per row; by default about as many as make the sheet square.
        scale: Whole-number magnification (each pixel becomes a square); by default what brings the shorter
            side of an image to at least 40 pixels.
        gap: Grey pixels between neighbours and around the sheet.

    Returns:
        Shape (C, sheet height, sheet width), uint8.

    Raises:
        RequestError: Nothing to show, or `columns` or `scale` is below 1.
    """
    num, channels, height, width = images.shape
    if num < 1:
        raise RequestError("no images to lay out")
    columns, scale = _layout(num, height, width, columns, scale)
    rows = math.ceil(num / columns)
    tiles = to_uint8(images).repeat(scale, axis=2).repeat(scale, axis=3)
    tile_height, tile_width = height * scale + gap, width * scale + gap
    sheet = np.full((channels, rows * tile_height + gap, columns * tile_width + gap), 128, np.uint8)
    for index, tile in enumerate(tiles):
        top = gap + index // columns * tile_height
        left = gap + index % columns * tile_width
        sheet[:, top : top + height * scale, left : left + width * scale] = tile
    return sheet


def _layout(num: int, height: int, width: int, columns: int | None, scale: int | None) -> tuple[int, int]:
    if columns is None:
        columns = math.ceil(math.sqrt(num))
    if scale is None:
        scale = max(1, math.ceil(40 / min(height, width)))
    if columns < 1 or scale < 1:
        raise RequestError(f"columns ({columns}) and scale ({scale}) must be at least 1")
    return min(num, columns), scale
