"""What a feature network is, and the features of a set of images, kept in the cache where they cost time.

A distance between two sets of images is a distance between two sets of feature vectors. Its value means
something only beside the name of the network, so every network carries one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kaem.errors import DataError, RequestError
from kaem.files import FOLDER_VARIABLE, cache_folder, replacing
from kaem_train.data.pixels import digest_pixels

Pixels = NDArray[np.uint8]
"""Shape (N, C, H, W): images as a person would see them, 8 bits."""

Features = NDArray[np.float32]
"""Shape (N, F)."""

Progress = Callable[[str, int, int], None]
"""Told (what is being done, done, in all)."""

_FORMAT = 1


class FeatureNetwork(Protocol):
    """A fixed map from images to feature vectors.

    Attributes:
        name: What figures are named after.
        description: Network, layer and preparation of images, in words for the report.
        fingerprint: `sha256:` digest of the network.
        num_features: F.
        batch_size: Images that are put through it together.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def num_features(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102

    def features(self, images: Pixels) -> Features:
        """Return one feature vector per image."""
        ...


def extract_features(network: FeatureNetwork, images: Pixels, progress: Progress, what: str) -> Features:
    """Return the features of `images`, shape (N, F), a batch at a time.

    Raises:
        DataError: The network gives values that are not finite.
    """
    found = np.empty((len(images), network.num_features), np.float32)
    for start in range(0, len(images), network.batch_size):
        stop = min(start + network.batch_size, len(images))
        found[start:stop] = network.features(images[start:stop])
        progress(what, stop, len(images))
    if not np.isfinite(found).all():
        raise DataError(f"the network {network.name} gives features that are not finite for {what}")
    return found


def recall_features(network: FeatureNetwork, images: Pixels, progress: Progress, what: str) -> Features:
    """Return `extract_features`, from the cache folder where the same images met the same network before.

    Raises:
        DataError: The cache folder cannot be written.
    """
    key = hashlib.sha256(f"{_FORMAT} {network.fingerprint} {digest_pixels(images)}".encode()).hexdigest()[:32]
    path = cache_folder() / "features" / f"{key}.npy"
    kept = _read(path, (len(images), network.num_features))
    if kept is not None:
        return kept
    found = extract_features(network, images, progress, what)
    write_cached(path, lambda draft: np.save(draft, found))
    return found


def write_cached(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache folder whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            write(draft)
    except (OSError, RequestError) as error:
        raise DataError(
            f"cannot keep {path.name} in the cache folder: {error}",
            hint=f"free some space, or name another folder with {FOLDER_VARIABLE}",
        ) from None


def _read(path: Path, shape: tuple[int, int]) -> Features | None:
    try:
        kept: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.float32 else None


def fitted(images: Pixels, channels: int, height: int, width: int) -> Tensor:
    """Return images as a network of another input size takes them: float32 (N, channels, height, width), 0 to 255.

    Grey images fill three channels; other sizes are resampled bilinearly, with antialiasing where they shrink.

    Raises:
        DataError: Neither the images nor the network are grey, and their channels differ.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    if pixels.shape[1] != channels:
        if pixels.shape[1] != 1:
            raise DataError(
                f"the feature network takes images of {channels} channels, these have {pixels.shape[1]}",
                hint="choose another network with --features",
            )
        pixels = pixels.expand(-1, channels, -1, -1)
    if pixels.shape[2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return pixels
