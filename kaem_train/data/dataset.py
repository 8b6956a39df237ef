"""One data set: images as the configuration declares them, a held-out split, a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import torch

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.config.preflight import require_data
from kaem_train.data.arrays import check_images
from kaem_train.data.cache import DecodedImages, Progress, decode_images
from kaem_train.data.pixels import Images, digest_pixels
from kaem_train.data.sources.encoded import EncodedImages, Split, count_like_held_out, say_counts, split_by_folder
from kaem_train.data.sources.files import RawImages
from kaem_train.data.sources.hub import HubImages
from kaem_train.data.sources.source import open_source

_DARKEST = 32
"""Of 255: where no pixel of a set is lighter, its numbers mean something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images to train on and images held out.

    Attributes:
        train: Shape (N, C, H, W), served as float32 in [0, 1].
        holdout: Shape (N', C, H, W), the same kind, never trained on.
        fingerprint: `sha256:` digest of both, the same wherever and in whatever file format they lie.
        summary: What was taken and what was left out, in one line for people.
    """

    train: Images
    holdout: Images
    fingerprint: str
    summary: str = ""

    def serve_on(self, device: torch.device) -> Dataset:
        """Return the same data set, its images served on another device."""
        return replace(self, train=self.train.serve_on(device), holdout=self.holdout.serve_on(device))


def load_dataset(config: DataConfig, *, progress: Progress = lambda _done, _total: None) -> Dataset:
    """Read, check and split the configured images.

    Args:
        config: What to read, and the shape it must have.
        progress: Told (done, total) while image files are decoded; once decoded, they are kept (`cache.py`).

    Raises:
        DataError: Files are not given, missing, corrupt, empty, or of another type, shape or range than configured.
    """
    require_data(config)
    source = _open_configured(config)
    if isinstance(source, RawImages):
        found, words = _check_arrays(source, config), source.words
        _require_enough(len(found.train), source.origin, config, has_split=found.holdout is not None)
    else:
        division = split_by_folder(source.names)
        # Before the images are decoded, which may take minutes.
        _require_enough(len(division.train), source.origin, config, has_split=division.holdout is not None)
        found, words = decode_images(source, config, progress), _say_files(source, division)
    _require_light(found.pixel_range, source.origin)
    if found.holdout is not None:
        train, holdout = Images.whole(found.train), Images.whole(found.holdout)
        split = ""
    else:
        train, holdout = _split(Images.whole(found.train), config.num_holdout)
        split = f"num_holdout={config.num_holdout}"
    if config.num_train:
        train = Images(train.stored, train.rows[: config.num_train])
        split += f" num_train={config.num_train}"
    digest = hashlib.sha256(" ".join([*found.digests, split]).encode())
    taken = f"{len(train):,} images to train on, {len(holdout):,} held out"
    which = "from the files' own split" if found.holdout is not None else "chosen by chance, always the same"
    lowest, highest = found.pixel_range
    summary = "; ".join([f"{taken} ({which})", *words, f"pixels from {lowest:g} to {highest:g} of 255"])
    return Dataset(train=train, holdout=holdout, fingerprint=f"sha256:{digest.hexdigest()}", summary=summary)


def _say_files(source: EncodedImages, split: Split) -> tuple[str, ...]:
    words = []
    num_alike = count_like_held_out(split.train)
    if num_alike:
        words.append(f"{num_alike:,} of these lie in folders named like a test set, which is no split beside `train`")
    if split.left_out:
        words.append(f"left out, for they lie beside the split: {say_counts(split.left_out)}")
    if source.left_out:
        words.append(f"left out, for they are no images: {say_counts(source.left_out)}")
    if isinstance(source, HubImages):
        words.append(f"column {source.column}")
    return (*words, "turned upright as EXIF says")


def _require_light(pixel_range: tuple[float, float], origin: str) -> None:
    """Refuse pixels that are numbers from 0 to 1, or to 16, in a type whose white is 255."""
    lowest, highest = pixel_range
    if highest < _DARKEST:
        raise DataError(
            f"the pixels of {origin} run from {lowest:g} to {highest:g} where white is 255: all images would be black",
            hint=f"multiply them by {255 / highest:g}, or store floats in [0, 1]" if highest else "they are all 0",
        )


def _open_configured(config: DataConfig) -> RawImages | EncodedImages:
    match config.source:
        case "digits":
            return _load_digits()
        case "files":
            return open_source(config.path, config.column)
        case "latents":
            raise AssertionError("no images were seen: `require_data` refuses this before")
        case _:
            assert_never(config.source)


def _require_enough(num: int, origin: str, config: DataConfig, *, has_split: bool) -> None:
    """Refuse a set of `num` images, beside those held out where it `has_split`, that is smaller than what is asked."""
    if not has_split and config.num_holdout >= num:
        raise DataError(
            f"{origin} holds {num} image{'s' * (num != 1)}, too few to hold out {config.num_holdout}",
            hint="lower data.num_holdout" if num > 1 else "give one to train on and one to hold out at least",
        )
    num_train = num if has_split else num - config.num_holdout
    if config.num_train > num_train:
        raise DataError(
            f"{origin} holds {num_train} images to train on, fewer than data.num_train = {config.num_train}",
            hint="lower data.num_train, or set it to 0 to take all",
        )


def _load_digits() -> RawImages:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise DataError(
            "the embedded digits come with scikit-learn, which is not installed",
            hint="pip install 'kaem[train]'",
        ) from None
    images = load_digits().images / 16.0
    return RawImages(origin="scikit-learn's digits", train=images.astype(np.float32), holdout=None)


def _check_arrays(raw: RawImages, config: DataConfig) -> DecodedImages:
    train = check_images(raw.train, config, raw.origin)
    holdout = None if raw.holdout is None else check_images(raw.holdout, config, raw.origin)
    parts = [part for part in (train, holdout) if part is not None]
    for name, part in zip(("", "the test split of "), parts, strict=False):
        scale = 1 if part.dtype == np.uint8 else 255
        _require_light((scale * float(part.min()), scale * float(part.max())), f"{name}{raw.origin}")
    white = 1 if train.dtype == np.uint8 else 255
    return DecodedImages(
        train=train,
        holdout=holdout,
        digests=tuple(digest_pixels(part) for part in parts),
        pixel_range=(
            white * min(float(part.min()) for part in parts),
            white * max(float(part.max()) for part in parts),
        ),
    )


def _split(images: Images, num_holdout: int) -> tuple[Images, Images]:
    """Hold out `num_holdout` images, the same ones for every training seed so that runs compare."""
    order = images.rows[np.random.default_rng(0).permutation(len(images))]
    return Images(images.stored, order[num_holdout:]), Images(images.stored, order[:num_holdout])
