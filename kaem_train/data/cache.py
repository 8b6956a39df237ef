"""Decoded images in a cache folder: one .npy of uint8 per content and recipe, mapped into memory, not read.

    <key>.npy    uint8 (N, C, H, W), images to train on first, then those held out
    <key>.json   {"num_train": ..., "digests": [...], "pixel_range": [...]}, written last: without it there is no entry

The key is a digest of the encoded files and of everything that decides their pixels, so an entry is never
stale; deleting the folder costs nothing but decoding again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from kaem.errors import DataError, RequestError
from kaem.files import FOLDER_VARIABLE, cache_folder, replacing
from kaem_train.config import DataConfig
from kaem_train.data.decode import decode_image
from kaem_train.data.pixels import digest_pixels
from kaem_train.data.sources.encoded import EncodedImages, split_by_folder

_FORMAT = 2

Progress = Callable[[int, int], None]
"""Told (images decoded, images in all) after every image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImages:
    """A set of image files as pixels.

    Attributes:
        train: Shape (N, C, H, W), uint8, mapped from the cache.
        holdout: The split the files brought, or None.
        digests: `digest_pixels` of each of them.
        pixel_range: Lowest and highest value of a pixel, white being 255.
    """

    train: NDArray[np.uint8]
    holdout: NDArray[np.uint8] | None
    digests: tuple[str, ...]
    pixel_range: tuple[float, float]


def decode_images(source: EncodedImages, config: DataConfig, progress: Progress) -> DecodedImages:
    """Return the pixels of `source`, decoded now or by an earlier run.

    Raises:
        DataError: An image cannot be read or does not fit, or the cache folder cannot be written.
    """
    key = _make_key(source, config)
    pixels_path, entry_path = (cache_folder() / f"{key}{suffix}" for suffix in (".npy", ".json"))
    entry = _read_entry(entry_path, pixels_path)
    if entry is None:
        _fill(source, config, pixels_path, entry_path, progress)
        entry = _read_entry(entry_path, pixels_path)
    if entry is None:
        raise DataError(
            f"what was just written to {pixels_path} cannot be read back",
            hint=f"name a folder on a sound disk with {FOLDER_VARIABLE}",
        )
    return entry


def _make_key(source: EncodedImages, config: DataConfig) -> str:
    recipe = (_FORMAT, PIL.__version__, config.image_shape, config.crop, config.resize, config.convert_colour)
    return hashlib.sha256(f"{recipe}{source.digest()}".encode()).hexdigest()[:32]


def _read_entry(entry_path: Path, pixels_path: Path) -> DecodedImages | None:
    try:
        entry = json.loads(entry_path.read_text(encoding="utf-8"))
        pixels = np.load(pixels_path, mmap_mode="r", allow_pickle=False)
        train, holdout = pixels[: entry["num_train"]], pixels[entry["num_train"] :]
        digests = tuple(entry["digests"])
        lowest, highest = entry["pixel_range"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DecodedImages(
        train=train,
        holdout=holdout if len(digests) > 1 else None,
        digests=digests,
        pixel_range=(int(lowest), int(highest)),
    )


def _fill(source: EncodedImages, config: DataConfig, pixels_path: Path, entry_path: Path, progress: Progress) -> None:
    split = split_by_folder(source.names)
    train, holdout = split.train, split.holdout
    positions = {name: position for position, name in enumerate([*train, *(holdout or ())])}
    try:
        pixels_path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(pixels_path) as draft:
            pixel_range = _write_pixels(source, config, draft, positions, progress)
        pixels: Any = np.load(pixels_path, mmap_mode="r", allow_pickle=False)
        parts = [pixels[: len(train)], *([pixels[len(train) :]] if holdout else [])]
        entry = {
            "num_train": len(train),
            "digests": [digest_pixels(part) for part in parts],
            "pixel_range": pixel_range,
        }
        with replacing(entry_path) as draft:
            draft.write_text(json.dumps(entry), encoding="utf-8")
    except (OSError, RequestError) as error:
        raise DataError(
            f"cannot keep the decoded images of {source.origin}: {error}",
            hint=f"free some space, or name another folder with {FOLDER_VARIABLE}",
        ) from None


def _write_pixels(
    source: EncodedImages, config: DataConfig, draft: Path, positions: dict[str, int], progress: Progress
) -> tuple[int, int]:
    """Write the pixels and return their lowest and highest value."""
    lowest, highest = 255, 0
    # Written, not mapped: a full disk is then an error and not a crash.
    size = int(np.prod(config.image_shape))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(positions), *config.image_shape)}
    done = 0
    with draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for name, content in source.read():
            if name in positions:
                pixels = decode_image(content, config, f"{name} in {source.origin}")
                lowest, highest = min(lowest, int(pixels.min())), max(highest, int(pixels.max()))
                file.seek(start + positions[name] * size)
                file.write(pixels.tobytes())
                done += 1
                progress(done, len(positions))
    if done != len(positions):
        raise DataError(f"{source.origin} changed while it was read", hint="run the command again")
    return lowest, highest
