"""One image file -> uint8 (C, H, W) of the configured shape: decode, turn upright, crop, resize, in this order."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kaem.errors import DataError
from kaem_train.config import DataConfig

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MOST_PIXELS = 2**26
_CHANNELS = {"L": 1, "RGB": 3}
_NAMES = {1: "grey", 3: "RGB"}
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}


def decode_image(content: bytes, config: DataConfig, label: str) -> NDArray[np.uint8]:
    """Decode one image file, upright as its EXIF orientation says, and bring it to the configured shape.

    Args:
        content: The file's bytes.
        config: What shape is wanted and how to get there.
        label: Names the file in messages.

    Raises:
        DataError: The file is corrupt, of another format, larger than 2^26 pixels, or does not fit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                # The further pictures of a camera's file are previews of its first.
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise DataError(
                        f"{label} holds {getattr(image, 'n_frames', 1)} pictures, as an animation or pages do",
                        hint="store each as a file of its own, or remove it",
                    )
                image.load()
                return fit_image(ImageOps.exif_transpose(image), config, label)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{label} unpacks to more than {_MOST_PIXELS} pixels", hint="remove it, or store it at a smaller size"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{label} is no image of a kind that is read", hint="convert it, or remove it") from None
    # Pillow's decoders raise SyntaxError and ValueError for damaged headers.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{label} is damaged: {error}", hint="get it again, or remove it") from None


def fit_image(image: Image.Image, config: DataConfig, label: str) -> NDArray[np.uint8]:
    """Return an image's pixels in the configured shape, uint8 (C, H, W).

    Raises:
        DataError: Its channels or size are not what the configuration wants.
    """
    channels, height, width = config.image_shape
    image = _convert_channels(_make_plain(image, label), channels, config, label)
    if config.crop:
        image = _crop_centre(image, config.crop, label)
    if config.resize != "none":
        image = image.resize((width, height), _FILTERS[config.resize])
    if (image.width, image.height) != (width, height):
        raise DataError(
            f"{label} is {image.height} x {image.width} (height x width), the configuration wants {height} x {width}",
            hint="set data.resize=lanczos, or data.image_shape to the images' size",
        )
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _make_plain(image: Image.Image, label: str) -> Image.Image:
    """Return what can be said without loss in 8-bit grey or RGB: palettes, bits and unused transparency."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode in _CHANNELS and "transparency" in image.info:  # one grey or colour that is not to be seen
        image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LA", "RGBA"):
        if np.asarray(image.getchannel("A")).min() < 255:
            raise DataError(f"{label} is partly transparent", hint="put it on a background first")
        return image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode not in _CHANNELS:
        raise DataError(f"{label} has pixels of kind {image.mode}", hint="convert it to 8-bit grey or RGB")
    return image


def _convert_channels(image: Image.Image, channels: int, config: DataConfig, label: str) -> Image.Image:
    found = _CHANNELS[image.mode]
    if found == channels:
        return image
    if not config.convert_colour or channels not in _NAMES:
        raise DataError(
            f"{label} is {_NAMES[found]}, the configuration wants {channels} channel{'s' * (channels > 1)}",
            hint=f"set data.image_shape to {found} channel{'s' * (found > 1)}, or data.convert_colour=true",
        )
    return image.convert("L" if channels == 1 else "RGB")


def _crop_centre(image: Image.Image, side: int, label: str) -> Image.Image:
    if side > min(image.width, image.height):
        raise DataError(
            f"{label} is {image.height} x {image.width} (height x width), smaller than the crop of {side}",
            hint=f"set data.crop to {min(image.width, image.height)} or less",
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
