"""Sets of image files: what a folder, an archive and a hub data set have in common."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Protocol

from kaem.errors import DataError
from kaem_train.data.decode import IMAGE_SUFFIXES

_TRAIN = ("train", "training")
_HOLDOUT = ("test", "testing", "validation", "valid", "val")
_OF_SYSTEMS = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
    *("system volume information", "lost+found", "thumbs.db", "desktop.ini"),
}
_LIKE_HELD_OUT = re.compile(r"(?:.*[^a-z])?(?:test|testing|valid|val|validation|dev|eval|holdout)(?:[^a-z].*|[ab])?")
"""Lower-case names of folders that look like a test set, in a layout that is not read as a split."""


class EncodedImages(Protocol):
    """Image files that are not decoded yet."""

    @property
    def origin(self) -> str:
        """Where they lie, for messages."""

    @property
    def names(self) -> Sequence[str]:
        """One name per image, `/` between folders, sorted."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of files that are no images to train on, by suffix."""

    def digest(self) -> str:
        """Return a digest of everything the images depend on, in hexadecimal, without decoding them."""

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield every name once with its file's bytes, in the order that is quickest to read."""


def digest_files(files: Iterable[tuple[str, bytes]]) -> str:
    """Return the SHA-256 of all names and contents, in hexadecimal."""
    digest = hashlib.sha256()
    for name, content in files:
        # Names that are no UTF-8 come from the system as they are.
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is an image to train on: a known suffix, and nothing hidden above it."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden_name(name)


def is_hidden_name(name: str) -> bool:
    """Return whether a system put the file there for itself: hidden files, previews, waste baskets, resource forks."""
    parts = PurePosixPath(name).parts
    return any((part.startswith((".", "__MACOSX")) and part != "..") or part.lower() in _OF_SYSTEMS for part in parts)


def count_left_out(names: Iterable[str]) -> dict[str, int]:
    """Return how many files are no images, by suffix; those of systems do not count."""
    others = (name for name in names if not is_image_name(name) and not is_hidden_name(name))
    return dict(sorted(Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others).items()))


def require_images(names: Sequence[str], origin: str, left_out: Mapping[str, int] = MappingProxyType({})) -> None:
    """Refuse a set without images.

    Raises:
        DataError: There is no name.
    """
    if not names:
        others = f", only {say_counts(left_out)}" if left_out else ""
        raise DataError(f"{origin} holds no images{others}", hint=f"images end in {', '.join(IMAGE_SUFFIXES)}")


def say_counts(counts: Mapping[str, int]) -> str:
    """Return counts by name as words: `200 .txt, 1 .md`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which image files are trained on, held out, and neither.

    Attributes:
        train: Names to train on.
        holdout: Names held out; None where the folders name no split.
        left_out: How many images lie in further folders, by the folder's name.
    """

    train: list[str]
    holdout: list[str] | None
    left_out: dict[str, int]


def split_by_folder(names: Sequence[str]) -> Split:
    """Divide image files by the folders that name a split.

    Below the folder that all share, `train/` and one of `test/`, `validation/`, `valid/` and `val/` make a split; the
    first of them that exists is held out. Whatever lies beside them is neither: a second set for validation,
    images without labels, or more to train on that may repeat what is held out.
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == parts[0][depth] for path in parts):
        depth += 1
    tops = [path[depth].lower() if len(path) > depth + 1 else "" for path in parts]
    train_top = next((top for top in _TRAIN if top in tops), None)
    held_out = next((top for top in _HOLDOUT if top in tops), None)
    if train_top is None or held_out is None:
        return Split(train=list(names), holdout=None, left_out={})
    others = Counter(top or "beside the folders" for top in tops if top not in (train_top, held_out))
    return Split(
        train=[name for name, top in zip(names, tops, strict=True) if top == train_top],
        holdout=[name for name, top in zip(names, tops, strict=True) if top == held_out],
        left_out=dict(sorted(others.items())),
    )


def count_like_held_out(names: Sequence[str]) -> int:
    """Return how many images to train on lie in folders that are called like a test set."""
    folders = {str(PurePosixPath(name).parent) for name in names}
    alike = {folder for folder in folders if any(map(_LIKE_HELD_OUT.fullmatch, PurePosixPath(folder.lower()).parts))}
    return sum(str(PurePosixPath(name).parent) in alike for name in names)
