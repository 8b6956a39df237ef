"""Sets of image files: what a folder, an archive and a hub data set have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from kaem.errors import DataError
from kaem_train.data.decode import IMAGE_SUFFIXES

_TRAIN = "train"
_HOLDOUT = ("test", "validation", "valid", "val")


class EncodedImages(Protocol):
    """Image files that are not decoded yet."""

    @property
    def origin(self) -> str:
        """Where they lie, for messages."""

    @property
    def names(self) -> Sequence[str]:
        """One name per image, `/` between folders, sorted."""

    def digest(self) -> str:
        """Return a digest of everything the images depend on, in hexadecimal, without decoding them."""

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield every name once with its file's bytes, in the order that is quickest to read."""


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is an image to train on: a known suffix, and nothing hidden above it."""
    path = PurePosixPath(name)
    is_hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden


def require_images(names: Sequence[str], origin: str) -> None:
    """Refuse a set without images.

    Raises:
        DataError: There is no name.
    """
    if not names:
        raise DataError(f"{origin} holds no images", hint=f"images end in {', '.join(IMAGE_SUFFIXES)}")


def split_by_folder(names: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the names to train on and those held out, or None where the folders name no split.

    Below the folder that all share, `train/` and one of `test/`, `validation/`, `valid/` and `val/` make a
    split (the first of them that exists is held out), but only where no other folder stands beside them:
    folders may also be classes.
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == parts[0][depth] for path in parts):
        depth += 1
    tops = [path[depth].lower() if len(path) > depth + 1 else "" for path in parts]
    held_out = next((top for top in _HOLDOUT if top in tops), None)
    if _TRAIN not in tops or held_out is None or not set(tops) <= {_TRAIN, *_HOLDOUT}:
        return list(names), None
    train = [name for name, top in zip(names, tops, strict=True) if top == _TRAIN]
    return train, [name for name, top in zip(names, tops, strict=True) if top == held_out]
