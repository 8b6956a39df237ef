"""One data set: images as the configuration declares them, a held-out split, a fingerprint, a fixed order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaem.errors import DataError
from kaem_train.data.files import RawImages, read_images
from kaem_train.settings import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images to train on and images held out.

    Attributes:
        train: Shape (N, C, H, W), float32 in [0, 1].
        holdout: Shape (N', C, H, W), the same kind, never trained on.
        fingerprint: `sha256:` digest of both, the same wherever and in whatever file format they lie.
    """

    train: Tensor
    holdout: Tensor
    fingerprint: str


def load_dataset(config: DataConfig) -> Dataset:
    """Read, check and split the configured images.

    Raises:
        DataError: Files are not given, missing, corrupt, empty, or of another type or shape than configured.
    """
    if config.source == "digits":
        raw = _embedded_digits()
    else:
        if not config.path:
            raise DataError(
                "this configuration trains on files and none are given",
                hint="pass --data PATH: an .npz, an IDX file, or a folder with the IDX files of the MNIST family",
            )
        raw = read_images(Path(config.path))
    train = _checked_images(raw.train, config, raw.origin)
    if raw.holdout is not None:
        holdout = _checked_images(raw.holdout, config, raw.origin)
    else:
        train, holdout = _split(train, config.num_holdout, raw.origin)
    digest = hashlib.sha256(repr((train.shape, holdout.shape)).encode())
    digest.update(train.tobytes())
    digest.update(holdout.tobytes())
    return Dataset(
        train=torch.from_numpy(train),
        holdout=torch.from_numpy(holdout),
        fingerprint=f"sha256:{digest.hexdigest()}",
    )


def batch_indices(num_images: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Return the images of update `step` (from 0) as indices of shape (batch_size,).

    A pure function of its arguments: each epoch is its own seeded permutation, so a resumed run sees the
    same images in the same order. The remainder of an epoch that fills no batch is left out; the next
    permutation brings other images into the remainder.
    """
    batches = num_images // batch_size
    epoch, batch = divmod(step, batches)
    # SeedSequence keeps neighbouring (seed, epoch) pairs unrelated, which seed + epoch would not.
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]) >> 1
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(state))
    return order[batch * batch_size : (batch + 1) * batch_size]


def _embedded_digits() -> RawImages:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise DataError(
            "the embedded digits come with scikit-learn, which is not installed",
            hint="pip install 'kaem[train]'",
        ) from None
    images = load_digits().images / 16.0
    return RawImages(origin="scikit-learn's digits", train=images.astype(np.float32), holdout=None)


def _checked_images(images: NDArray[Any], config: DataConfig, origin: str) -> NDArray[np.float32]:
    """Return `images` as contiguous float32 (N, C, H, W) in [0, 1], or say why that is not possible."""
    channels, height, width = config.image_shape
    if images.ndim < 3 or images.shape[0] == 0:
        raise DataError(
            f"{origin} holds an array of shape {images.shape}, not a stack of images",
            hint="images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0",
        )
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
            hint="choose a preset of that size, or change data.image_shape and generator.channels",
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(ordered, dtype=np.float32) / np.float32(255.0)
    if images.dtype.kind != "f":
        raise DataError(f"{origin} holds {images.dtype} values", hint="store uint8 pixels, or floats scaled to [0, 1]")
    lowest, highest = float(images.min()), float(images.max())
    if not (lowest >= 0.0 and highest <= 1.0):
        raise DataError(f"{origin} holds floats from {lowest:g} to {highest:g}", hint="scale the pixels to [0, 1]")
    return np.ascontiguousarray(ordered, dtype=np.float32)


def _split(
    images: NDArray[np.float32], num_holdout: int, origin: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hold out `num_holdout` images, the same ones for every training seed so that runs compare."""
    if num_holdout >= len(images):
        raise DataError(
            f"{origin} holds {len(images)} images, too few to hold out {num_holdout}",
            hint="lower data.num_holdout",
        )
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[num_holdout:]], images[order[:num_holdout]]
