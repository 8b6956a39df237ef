"""Stacks of images as files store them -> uint8 or float32 (N, C, H, W) of the configured shape, or an error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data.pixels import convert_exact_bytes


def check_images(images: NDArray[Any], config: DataConfig, origin: str) -> NDArray[Any]:
    """Return `images` in the configured shape, cropped, resized and converted where the configuration asks for it.

    Args:
        images: Shape (N, H, W), (N, H, W, C) or (N, C, H, W); uint8, or floats in [0, 1].
        config: What shape is wanted and how to get there.
        origin: The file, for messages.

    Returns:
        Shape (N, C, H, W), contiguous; uint8 where every pixel is a whole 255th, else float32.

    Raises:
        DataError: There is no image, or the type, range or shape is not what the configuration wants.
    """
    if images.ndim not in (3, 4) or images.shape[0] == 0:
        raise DataError(
            f"{origin} holds an array of shape {images.shape}, not a stack of images",
            hint="images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0",
        )
    if images.dtype != np.uint8:
        images = _check_floats(images, origin)
    if config.changes_images:
        return _fit_images(images, config, origin)
    channels, height, width = config.image_shape
    shape = images.shape[1:]
    if shape == (channels, height, width):
        ordered = images
    elif shape == (height, width, channels):
        ordered = images.transpose(0, 3, 1, 2)
    elif channels == 1 and shape == (height, width):
        ordered = images[:, None]
    else:
        raise DataError(
            f"{origin} holds images of shape {shape}, the configuration wants "
            f"{channels} x {height} x {width} (channels x height x width)",
            hint="choose a preset of that size, change data.image_shape and generator.channels, "
            "or set data.crop, data.resize or data.convert_colour",
        )
    return np.ascontiguousarray(ordered)


def _check_floats(images: NDArray[Any], origin: str) -> NDArray[Any]:
    if images.dtype.kind != "f":
        raise DataError(f"{origin} holds {images.dtype} values", hint="store uint8 pixels, or floats scaled to [0, 1]")
    finite = np.isfinite(images)
    if not finite.all():
        place = tuple(map(int, np.unravel_index(int(np.argmin(finite)), images.shape)))
        raise DataError(
            f"{origin} holds {images[place]} at {list(place)}, one of {int((~finite).sum())} values that are "
            "no finite numbers",
            hint="drop such images, or find out what made them",
        )
    lowest, highest = float(images.min()), float(images.max())
    if not (lowest >= 0.0 and highest <= 1.0):
        raise DataError(f"{origin} holds floats from {lowest:g} to {highest:g}", hint="scale the pixels to [0, 1]")
    return convert_exact_bytes(images.astype(np.float32))


def _fit_images(images: NDArray[Any], config: DataConfig, origin: str) -> NDArray[np.uint8]:
    """Treat every image of an array as if it came from a file of its own."""
    from PIL import Image

    from kaem_train.data.decode import fit_image

    if images.dtype != np.uint8:
        raise DataError(
            f"{origin} holds floats that are not whole 255ths, which cannot be cropped, resized or converted",
            hint="store uint8 pixels, or leave data.crop, data.resize and data.convert_colour out",
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim == 4 and images.shape[-1] != 3:
        raise DataError(
            f"{origin} holds images of shape {images.shape[1:]}, neither grey nor RGB",
            hint="images must have 1 or 3 channels",
        )
    fitted = np.empty((len(images), *config.image_shape), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image))
        fitted[index] = fit_image(picture, config, f"image {index} of {origin}")
    return fitted
