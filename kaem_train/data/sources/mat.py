"""MATLAB 5 files in the layout of SVHN: uint8 X with the image number last, (H, W, C, N) or (H, W, N).

A file is a header of 128 bytes, then elements: uint32 type, uint32 size, data. A variable is an element of
type MATRIX, or one inside a COMPRESSED element; it holds the elements class, dimensions, name and values, the
values in column-major order (MathWorks, "MAT-File Format"). The reader is our own because scipy's trusts the
sizes in a file: one flipped bit can end the process with a segmentation fault.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError
from kaem_train.data.sources.files import RawImages

_TRAIN, _TEST = "train*.mat", "test*.mat"
_KEY = "X"
_HEADER = 128
_HDF5, _HDF5_AT = b"\x89HDF\r\n\x1a\n", 512  # a v7.3 file is HDF5 behind a larger header
_UINT8, _MATRIX, _COMPRESSED = 2, 14, 15  # types of elements
_UINT8_CLASS = 9
_PREFIX = 4096  # holds class, dimensions and name of any variable


@dataclass(frozen=True, slots=True)
class _Variable:
    """What stands before a variable's values: `kind` is its class, `start` where its values lie in the element."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _DamagedError(Exception):
    """The bytes contradict the format."""


def is_mat_folder(folder: Path) -> bool:
    """Return whether the folder holds a `train*.mat`."""
    return next(folder.glob(_TRAIN), None) is not None


def read_mat_folder(folder: Path) -> RawImages:
    """Read the one `train*.mat` and, where there is one, the one `test*.mat`.

    Raises:
        DataError: One of them is unreadable, or there are several to choose from.
    """
    train, test = (_find_only(folder, pattern) for pattern in (_TRAIN, _TEST))
    if train is None:
        raise DataError(f"{folder} holds no {_TRAIN}", hint="check the path given with --data")
    return RawImages(origin=str(folder), train=read_mat(train), holdout=read_mat(test) if test else None)


def _find_only(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several {pattern}: {', '.join(path.name for path in found)}",
            hint="keep one, or pass one file",
        )
    return found[0] if found else None


def read_mat(path: Path) -> NDArray[np.uint8]:
    """Read the array X of a MATLAB 5 file: shape (N, H, W, C) or (N, H, W).

    Raises:
        DataError: The file is damaged, of version 7.3, or holds no X of images.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_header(path, content)
            found = []
            for variable, values in _read_variables(content):
                is_image = variable.kind == _UINT8_CLASS and len(variable.shape) in (3, 4)
                if variable.name == _KEY and is_image:
                    return np.moveaxis(values().reshape(variable.shape, order="F"), -1, 0)
                found.append(f"{variable.name} {variable.shape}")
    # An empty file cannot be mapped: ValueError.
    except (_DamagedError, struct.error, zlib.error, OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as .mat: {error}", hint="the file is damaged: get it again") from None
    raise DataError(
        f"{path} holds no uint8 array {_KEY} of images; its arrays are: {', '.join(found) or 'none'}",
        hint=f"store the images as {_KEY}, uint8 of shape (H, W, C, N), as SVHN does",
    )


def _check_header(path: Path, content: mmap.mmap) -> None:
    if content[_HDF5_AT : _HDF5_AT + len(_HDF5)] == _HDF5 or content[: len(_HDF5)] == _HDF5:
        raise DataError(
            f"{path} is a MATLAB 7.3 (HDF5) file, which kaem does not read",
            hint="save it again in MATLAB with: save(file, 'X', '-v7'), or store the images as .npz",
        )
    if content[124:_HEADER] != b"\x00\x01IM":
        raise _DamagedError("it has no header of a little-endian MATLAB 5 file")


def _read_variables(content: mmap.mmap) -> Iterator[tuple[_Variable, Callable[[], NDArray[np.uint8]]]]:
    """Yield every variable, and a function that reads its values as bytes."""
    position = _HEADER
    while position < len(content):
        kind, size = struct.unpack("<II", content[position : position + 8])
        start, position = position + 8, position + 8 + size
        if position > len(content):
            raise _DamagedError("it is cut short")
        if kind == _MATRIX:
            variable = _describe(content[start : min(position, start + _PREFIX)], size)
            yield variable, partial(_read_stored, content, start, variable)
        elif kind == _COMPRESSED:
            head = zlib.decompressobj().decompress(content[start:position], _PREFIX)
            inner, size = struct.unpack("<II", head[:8])
            if inner != _MATRIX:
                raise _DamagedError(f"an element of type {inner} is compressed")
            variable = _describe(head[8:], size)
            yield variable, partial(_inflate, content, start, position, variable)
        else:
            raise _DamagedError(f"it holds an element of unknown type {kind}")


def _read_stored(content: mmap.mmap, start: int, variable: _Variable) -> NDArray[np.uint8]:
    start += variable.start
    return np.frombuffer(content[start : start + variable.size], np.uint8)


def _inflate(content: mmap.mmap, start: int, stop: int, variable: _Variable) -> NDArray[np.uint8]:
    skipped = 8 + variable.start
    values = zlib.decompressobj().decompress(content[start:stop], skipped + variable.size)
    if len(values) != skipped + variable.size:
        raise _DamagedError("it is cut short")
    return np.frombuffer(values, np.uint8, offset=skipped)


def _describe(head: bytes, size: int) -> _Variable:
    """Read what stands before a variable's values.

    Args:
        head: First bytes of the element's data.
        size: Bytes of all of it.
    """
    (_, start, _), position = _read_element(head, 0)
    kind = struct.unpack("<I", head[start : start + 4])[0] & 0xFF
    (_, start, length), position = _read_element(head, position)
    shape = struct.unpack(f"<{length // 4}i", head[start : start + length])
    (_, start, length), position = _read_element(head, position)
    name = head[start : start + length].decode("latin-1")
    if name and not (name.isascii() and name.isidentifier()):
        raise _DamagedError("a variable has an impossible name")
    if kind != _UINT8_CLASS:
        return _Variable(name, shape, kind, 0, 0)
    (stored_as, start, length), _ = _read_element(head, position)
    if stored_as != _UINT8 or min(shape, default=0) < 0 or math.prod(shape) != length or start + length > size:
        raise _DamagedError(f"the {length} bytes of {name} do not fill its shape {shape}")
    return _Variable(name, shape, kind, start, length)


def _read_element(head: bytes, position: int) -> tuple[tuple[int, int, int], int]:
    """Return ((type, start, length) of the element at `position`, position of the next)."""
    kind, length = struct.unpack("<II", head[position : position + 8])
    if kind >> 16:  # small: type and length share four bytes, the data has the other four
        return (kind & 0xFFFF, position + 4, min(kind >> 16, 4)), position + 8
    return (kind, position + 8, length), position + 8 + -(-length // 8) * 8
