"""MATLAB files in the layout of SVHN: X with the image number last, (H, W, C, N) or (H, W, N)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError
from kaem_train.data.files import RawImages

_TRAIN, _TEST = "train*.mat", "test*.mat"
_KEY = "X"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_AT = (0, 512)  # a v7.3 file is HDF5 behind a 512-byte MATLAB header


def is_mat_folder(folder: Path) -> bool:
    """Return whether the folder holds a `train*.mat`."""
    return next(folder.glob(_TRAIN), None) is not None


def read_mat_folder(folder: Path) -> RawImages:
    """Read the one `train*.mat` and, where there is one, the one `test*.mat`.

    Raises:
        DataError: One of them is unreadable, or there are several to choose from.
    """
    train, test = (_only(folder, pattern) for pattern in (_TRAIN, _TEST))
    if train is None:
        raise DataError(f"{folder} holds no {_TRAIN}", hint="check the path given with --data")
    return RawImages(origin=str(folder), train=read_mat(train), holdout=read_mat(test) if test else None)


def _only(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several {pattern}: {', '.join(path.name for path in found)}",
            hint="keep one, or pass one file",
        )
    return found[0] if found else None


def read_mat(path: Path) -> NDArray[Any]:
    """Read the array X of a MATLAB v5 file: shape (N, H, W, C) or (N, H, W).

    Raises:
        DataError: The file is damaged, of version 7.3, or holds no X of images.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HDF5_AT[-1] + len(_HDF5))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path given with --data") from None
    if any(head[start : start + len(_HDF5)] == _HDF5 for start in _HDF5_AT):
        raise DataError(
            f"{path} is a MATLAB 7.3 (HDF5) file, which kaem does not read",
            hint="save it again in MATLAB with: save(file, 'X', '-v7'), or store the images as .npz",
        )
    return np.moveaxis(_array(path), -1, 0)


def _array(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat, whosmat

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        if len(shapes.get(_KEY, ())) in (3, 4):
            return np.asarray(loadmat(path, variable_names=[_KEY])[_KEY])
    # scipy promises no error types: a damaged file gives IndexError, TypeError, zlib.error, MatReadError, ...
    except Exception as error:
        raise DataError(f"cannot read {path} as .mat: {error}", hint="the file is damaged: get it again") from None
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    raise DataError(
        f"{path} holds no array {_KEY} of images; its arrays are: {found}",
        hint=f"store the images as {_KEY} with shape (H, W, C, N), as SVHN does",
    )
