"""Image files: NumPy `.npz` archives and the IDX files of the MNIST family, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError

_TRAIN_KEYS = ("images_train", "x_train", "images")
_HOLDOUT_KEYS = ("images_test", "x_test")
_IDX_UINT8 = 0x08
_MOST_BYTES = 2**38
_MOST_AXES = 8
_READ_TOGETHER = 1 << 24
_DOWNLOAD = "the file is damaged: get it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImages:
    """Arrays as they were stored.

    Attributes:
        origin: The file or folder, for messages.
        train: Any image array.
        holdout: The test split that came with it, or None.
        words: What a person should know of what was taken and left out.
    """

    origin: str
    train: NDArray[Any]
    holdout: NDArray[Any] | None
    words: tuple[str, ...] = ()


def read_npz(path: Path) -> RawImages:
    """Read the images of an `.npz`, and its test split where it has one.

    Raises:
        DataError: The file is damaged, no archive, or lacks the images.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz archive", hint=_DOWNLOAD)
    try:
        # Pickled objects could run code: they are refused, not loaded.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            train_key = next((key for key in _TRAIN_KEYS if key in archive.files), None)
            if train_key is None:
                raise DataError(
                    f"{path} holds no images; its arrays are: {', '.join(archive.files) or 'none'}",
                    hint=f"name the array {', '.join(_TRAIN_KEYS[:-1])} or {_TRAIN_KEYS[-1]}",
                )
            holdout_key = next((key for key in _HOLDOUT_KEYS if key in archive.files), None)
            holdout = archive[holdout_key] if holdout_key else None
            taken = [key for key in (train_key, holdout_key) if key]
            left = [key for key in archive.files if key not in taken]
            words = [f"arrays {' and '.join(taken)}", *([f"left out: {', '.join(left)}"] if left else [])]
            return RawImages(origin=str(path), train=archive[train_key], holdout=holdout, words=tuple(words))
    except DataError:
        raise
    except Exception as error:  # of a damaged header NumPy raises what its parsers do
        raise _make_error(path, error) from None


def read_npy(path: Path) -> RawImages:
    """Read one array of images.

    Raises:
        DataError: The file is damaged, or no array of numbers.
    """
    try:
        # Mapped first: a header that lies about the size is then an error, and no demand for memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return RawImages(origin=str(path), train=np.array(array), holdout=None)
    except Exception as error:  # of a damaged header NumPy raises what its parsers do
        raise _make_error(path, error) from None


def _make_error(path: Path, error: Exception) -> DataError:
    """Return the error of an array file that NumPy cannot read."""
    reason = " ".join(str(error).split())[:200]
    if "Object arrays" in reason or "Python objects" in reason:
        return DataError(
            f"{path} holds Python objects, which are not read: that would run their code",
            hint="save one array of numbers: numpy.stack(images).astype(numpy.uint8)",
        )
    if isinstance(error, MemoryError) or "mmap length" in reason:
        reason = "its header speaks of more numbers than the file or the memory holds"
    return DataError(f"cannot read {path} as {path.suffix}: {reason or type(error).__name__}", hint=_DOWNLOAD)


def find_idx_folder(folder: Path) -> Path:
    """Return where IDX files lie: in the folder, or where torchvision keeps them, in `raw` or `NAME/raw` below it."""
    places = [folder, folder / "raw", *sorted(folder.glob("*/raw"))]
    return next((place for place in places if find_idx(place, "train", "images")), folder)


def is_idx_folder(folder: Path) -> bool:
    """Return whether the folder holds IDX images to train on."""
    return find_idx(find_idx_folder(folder), "train", "images") is not None


def read_idx_folder(folder: Path) -> RawImages:
    """Read `train-images-idx3-ubyte` and, where it exists, `t10k-images-idx3-ubyte`, plain or gzipped.

    Raises:
        DataError: One of them is unreadable, or there is none to train on.
    """
    folder = find_idx_folder(folder)
    train, test = find_idx(folder, "train", "images"), find_idx(folder, "t10k", "images")
    if train is None:
        raise DataError(f"{folder} holds no training images in IDX format", hint="check the path given with --data")
    return RawImages(origin=str(folder), train=read_idx(train), holdout=read_idx(test) if test else None)


def find_idx(folder: Path, split: Literal["train", "t10k"], kind: Literal["images", "labels"]) -> Path | None:
    """Return the file of a split's images or labels, plain or gzipped, or None."""
    dimensions = {"images": 3, "labels": 1}[kind]
    names = (f"{split}-{kind}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes: magic 00 00 08 ndim, big-endian uint32 sizes, then the bytes.

    Raises:
        DataError: The file is unreadable, no IDX file, of another element type, truncated or too long.
    """
    try:
        with path.open("rb") as plain:
            is_packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as file:
            return _read_idx_stream(file, path, None if is_packed else path.stat().st_size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_DOWNLOAD) from None


def _read_idx_stream(file: BinaryIO | gzip.GzipFile, path: Path, num_bytes: int | None) -> NDArray[np.uint8]:
    """Read the images of an open file whose size is known unless it is packed; nothing is read that cannot be one."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"{path} is of no known kind: it begins with {magic.hex(' ') or 'nothing'}",
            hint="pass .npz, .npy, .mat, .parquet, .tar, .tar.gz, .zip, an IDX file, or a folder of images",
        )
    element, ndim = magic[2], magic[3]
    if element != _IDX_UINT8:
        raise DataError(
            f"{path} holds IDX elements of type 0x{element:02x}", hint="images must be unsigned bytes (0x08)"
        )
    if ndim > _MOST_AXES:
        raise DataError(f"{path} holds an array of {ndim} axes", hint="images in IDX format have 3, or 4 with channels")
    header = file.read(4 * ndim)
    sizes = [int.from_bytes(header[start : start + 4], "big") for start in range(0, len(header), 4)]
    expected, wanted = 4 + 4 * ndim + math.prod(sizes), math.prod(sizes)
    if num_bytes not in (None, expected) or wanted > _MOST_BYTES:
        raise DataError(f"{path} has {num_bytes} bytes where its header needs {expected}", hint=_DOWNLOAD)
    content = _read_at_most(file, wanted + 1)
    if len(content) != wanted or len(header) != 4 * ndim:
        has = f"more than {expected}" if len(content) > wanted else str(4 + len(header) + len(content))
        raise DataError(f"{path} has {has} bytes where its header needs {expected}", hint=_DOWNLOAD)
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _read_at_most(file: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    """Read so many bytes, or fewer where there are no more, without asking for the memory of what is not there."""
    content = bytearray()
    while len(content) < size:
        part = file.read(min(size - len(content), _READ_TOGETHER))
        if not part:
            break
        content += part
    return bytes(content)
