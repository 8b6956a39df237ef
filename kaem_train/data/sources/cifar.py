"""CIFAR-10 and CIFAR-100 as published for Python: pickles, of which nothing but arrays and plain containers is made.

A pickle is a program. This reader gives it the constructors of NumPy's array and of bytes and refuses all else, so a
file that was tampered with is an error and runs nothing.

    cifar-10-batches-py/    data_batch_1 ... data_batch_5, test_batch
    cifar-100-python/       train, test, meta

Each holds a dictionary whose `data` is uint8 of shape (N, 3072): rows of red, then green, then blue, 32 x 32 each.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError
from kaem_train.data.sources.files import RawImages

_SHAPE = (3, 32, 32)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Do what old protocols ask of `_codecs.encode` to write bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode(encoding)


_CONSTRUCTORS = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,  # type: ignore[attr-defined]
    ("_codecs", "encode"): _encode_latin1,
}


class _ArraysOnly(pickle.Unpickler):  # noqa: S301  # it imports nothing else
    """Reads arrays, numbers, strings, lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CONSTRUCTORS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs") from None

    def persistent_load(self, _: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names something outside the file")


def is_cifar_folder(folder: Path) -> bool:
    """Return whether the folder holds CIFAR's batches for Python, or the folder in it does that the archive makes."""
    return bool(_find_batches(_find_place(folder))[0])


def read_cifar_folder(folder: Path) -> RawImages:
    """Read the batches of a folder.

    Raises:
        DataError: One of them is damaged, holds something else than images, or is a program.
    """
    train, test = _find_batches(_find_place(folder))
    return RawImages(
        origin=str(folder),
        train=np.concatenate([_read(path) for path in train]),
        holdout=np.concatenate([_read(path) for path in test]) if test else None,
        words=(f"{len(train) + len(test)} batches of CIFAR",),
    )


def _find_place(folder: Path) -> Path:
    places = (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python")
    return next((place for place in places if _find_batches(place)[0]), folder)


def _find_batches(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and to hold out; none to train on where this is no folder of CIFAR's."""
    ten = sorted(path for path in folder.glob("data_batch_?") if path.is_file())
    if ten:
        return ten, sorted(path for path in folder.glob("test_batch") if path.is_file())
    hundred = [folder / name for name in ("train", "test", "meta")]
    return (hundred[:1], hundred[1:2]) if all(path.is_file() for path in hundred) else ([], [])


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        data = content.get(b"data", content.get("data")) if isinstance(content, dict) else None
    # A damaged pickle may fail in any way.
    except Exception as error:
        raise DataError(
            f"cannot read {path} as a batch of CIFAR: {error}", hint="the file is damaged: get it again"
        ) from None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (int(np.prod(_SHAPE)),):
        raise DataError(f"{path} holds no images of CIFAR", hint="its `data` must be uint8 of shape (N, 3072)")
    return data.reshape(len(data), *_SHAPE)
