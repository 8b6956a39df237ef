"""Latents of an autoencoder in a `.npy` file: one row per image, checked at the door and split by the seed.

Which rows do what, and which are left out, is decided in `latent_rows.py`.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaem.errors import ConfigError, DataError
from kaem_train.config.preflight import require_latents
from kaem_train.fitting.latent_rows import count_distinct, find_outliers, make_row_keys, split_rows

MOST_FITTED = 50_000
"""Rows that a fit looks at; more would take longer and tell little more about a few thousand parameters."""

_MOST_SCORED = 20_000
_MOST_LATENTS = 2048
"""A linear frame of so many latents holds 4 million numbers."""

_SAVE = "save them with numpy.save('z.npy', latents)"
_RESCALE = "multiply the latents by a constant, and divide by it inside the decoder"
_SUBTRACT = "subtract the mean from the latents, and add it inside the decoder"
_NPY, _ZIP, _PICKLE = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06"), b"\x80"
_KINDS = (
    (b"\x89HDF", "of HDF5", "h5py.File({})['NAME'][:]"),
    (b"MATLAB", "of MATLAB", "scipy.io.loadmat({})['NAME']"),
    (b"PAR1", "a Parquet table", "pandas.read_parquet({}).to_numpy('float32')"),
)
_PACKED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
_ROWS_AT_ONCE = 1 << 14
_LEAST_ROWS = 100
_LEAST_STD, _MOST_STD = 1e-30, 1e30
_LARGEST_OFFSET = 100.0
"""Mean over deviation of a latent beyond which float32 no longer resolves its distribution well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """Rows of one file, float32.

    Attributes:
        fitted: Shape (S, Q): what the likelihood is maximised on.
        choosing: Shape (S', Q): held out, decides between fits and when to stop.
        scored: Shape (S'', Q): held out and looked at once, for the figures that are reported.
        num_rows: Number of rows in the file.
        fingerprint: `sha256:` digest of the file.
        num_outliers: Rows that would be in one of the three parts and are left out, far from all others.
        shape: Shape of one latent as the file has it, of Q numbers; empty where it is (Q,).
    """

    fitted: Tensor
    choosing: Tensor
    scored: Tensor
    num_rows: int
    fingerprint: str
    shape: tuple[int, ...] = ()
    num_outliers: int = 0

    @property
    def num_distinct(self) -> int:
        """How many of the fitted rows differ from each other."""
        return count_distinct(make_row_keys(self.fitted.numpy()))


def read_latents(path: Path, *, holdout: float, seed: int, keep_outliers: bool = False) -> Latents:
    """Read, check and split the latents of an autoencoder.

    Args:
        path: A `.npy` file of floats, shape (S, Q), or (S, ...) with latents of any shape: Q is the number of their
            numbers, which lie in C order.
        holdout: Share of the rows that are held out, in (0, 1); half of them choose, half are scored.
        seed: Seed of the split.
        keep_outliers: Fit the few rows that lie far from all others, too.

    Raises:
        ConfigError: The share is not in (0, 1).
        DataError: The file is missing, damaged, holds pickled objects, other types or shapes, too few rows, rows that
            repeat each other, values that are not finite, or a latent that is constant, too small or large for float32
            or far from 0 compared with its spread.
    """
    require_share(holdout)
    array = _open(path)
    rows = array.reshape(len(array), -1)
    num_rows, num_latents = rows.shape
    num_choosing = round(num_rows * holdout / 2.0)
    num_fitted = num_rows - 2 * num_choosing
    least = 2 * num_latents
    if num_rows < _LEAST_ROWS or num_fitted < least or num_choosing < 1:
        is_turned = num_rows < num_latents and num_latents >= _LEAST_ROWS
        raise DataError(
            f"{path} holds {_count(num_rows, 'latent')} of {_count(num_latents, 'number')}, {2 * num_choosing} held "
            "out: too few to fit a distribution",
            hint=f"give at least {_LEAST_ROWS} rows, {least} of them not held out"
            + ("; if its columns are the images, save latents.T" if is_turned else ""),
        )
    _require_finite(rows, path)
    keys = make_row_keys(rows)
    _require_distinct(count_distinct(keys), rows, path)
    parts = split_rows(keys, num_choosing, seed=seed)
    most = (MOST_FITTED, _MOST_SCORED, _MOST_SCORED)
    fitted, choosing, scored = (
        torch.from_numpy(np.asarray(rows[np.sort(part[:limit])], np.float32))
        for part, limit in zip(parts, most, strict=True)
    )
    num_outliers = 0
    if not keep_outliers:
        fitted, choosing, scored, num_outliers = leave_out_outliers(fitted, choosing, scored)
    _require_resolvable(fitted, rows, path)
    return Latents(
        fitted=fitted,
        choosing=choosing,
        scored=scored,
        num_rows=num_rows,
        fingerprint=_digest(path),
        num_outliers=num_outliers,
        shape=array.shape[1:] if array.ndim > 2 else (),
    )


def require_share(holdout: float) -> None:
    """Refuse a held-out share that is not in (0, 1), by a `ConfigError`."""
    if not 0.0 < holdout < 1.0:
        raise ConfigError(f"holdout = {holdout:g} is outside (0, 1)", hint="give the share that is held out: 0.2")


def leave_out_outliers(*parts: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the three parts of some latents, each of shape (S, Q), without outliers, and how many those were.

    Raises:
        DataError: A part is empty without them.
    """
    left_out = find_outliers(parts)
    fitted, choosing, scored = (part[~is_out] for part, is_out in zip(parts, left_out, strict=True))
    if not (len(choosing) and len(scored)):
        raise DataError("all latents that choose, or all that are scored, are outliers", hint="give a larger --holdout")
    return fitted, choosing, scored, sum(int(is_out.sum()) for is_out in left_out)


def _open(path: Path) -> NDArray[np.floating]:
    """Map the file into memory as (S, ...)."""
    require_latents(path)
    _require_array(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header NumPy raises what its parsers do
        reason = " ".join(str(error).split())[:200]
        if "Python objects" in reason:
            raise DataError(
                f"{path} holds Python objects, which are not read: that would run their code",
                hint="save one array of numbers: numpy.stack(latents).astype(numpy.float32)",
            ) from None
        if "mmap length" in reason:
            raise DataError(
                f"{path} is cut short: it holds fewer numbers than its header says", hint=f"copy it again, or {_SAVE}"
            ) from None
        raise DataError(f"cannot read {path} as a .npy array of numbers: {reason}", hint=_SAVE) from None
    if array.dtype.kind != "f":
        is_number = array.dtype.kind in "biu"
        raise DataError(
            f"{path} holds {array.dtype}, not floating point numbers",
            hint="save latents.astype(numpy.float32)" if is_number else "give the numbers that the decoder takes",
        )
    if array.ndim < 2 or 0 in array.shape:
        one_each = "; if it is one number per image, save latents.reshape(-1, 1)" if array.ndim == 1 else ""
        raise DataError(
            f"{path} has shape {array.shape}, not (images, latents)",
            hint=f"give one row per image, at least one number{one_each}",
        )
    num_latents = math.prod(array.shape[1:])
    if num_latents > _MOST_LATENTS:
        raise DataError(
            f"{path} has {num_latents} latents per image, more than {_MOST_LATENTS}",
            hint="use an autoencoder with a smaller latent",
        )
    return cast(NDArray[np.floating], array)


def _require_array(path: Path) -> None:
    """Refuse other kinds of files by what they are: NumPy takes all it does not know for pickled data.

    Raises:
        DataError: The file does not begin as a `.npy` array does.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_NPY):
        return
    if start.startswith(_ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
        if any(name.endswith("data.pkl") for name in names):
            what, hint = "was saved by torch", "save them with numpy.save('z.npy', latents.numpy())"
        elif arrays:
            what = f"is an .npz archive of {_count(len(arrays), 'array')}, not one array"
            hint = f"save the one that holds the latents: numpy.save('z.npy', numpy.load({path.name!r})[{arrays[0]!r}])"
        else:
            what, hint = "is a zip archive, not an array", _SAVE
    else:
        what, hint = _recognise_kind(start, path.name)
    raise DataError(f"cannot read {path} as a .npy array: it {what}", hint=hint)


def _recognise_kind(start: bytes, name: str) -> tuple[str, str]:
    """Return what a file that begins so is, and how its numbers become a `.npy` array."""
    for mark, what, reader in _KINDS:
        if start.startswith(mark):
            return f"is {what}", f"convert it: numpy.save('z.npy', {reader.format(repr(name))})"
    if not start:
        return "is empty", _SAVE
    if start[:2] in _PACKED:
        return "is packed", f"unpack it: {_PACKED[start[:2]]} {name}"
    if start.startswith(_PICKLE):
        return "is a pickle, which is not read: that would run its code", _SAVE
    if start[8:10] == b'{"':
        return "is of safetensors", f"convert it: safetensors.numpy.load_file({name!r}), then numpy.save one of them"
    if _is_text(start):
        if start.lstrip()[:1] in (b"[", b"{"):
            return "is JSON", f"convert it: numpy.save('z.npy', numpy.asarray(json.load(open({name!r})), 'float32'))"
        return "is text", (f"convert it: numpy.save('z.npy', numpy.loadtxt({name!r}, delimiter=',', dtype='float32'))")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "is text", (
            f"convert it: numpy.save('z.npy', numpy.loadtxt({name!r}, delimiter=',', dtype='float32', "
            "encoding='utf-16'))"
        )
    return "does not begin as a .npy array does", _SAVE


def _is_text(start: bytes) -> bool:
    """Whether the first bytes of a file are words or numbers that people read."""
    text = start.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="ignore")
    return len(text) >= len(start) - 8 and all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _require_finite(rows: NDArray[np.floating], path: Path) -> None:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
            part = np.asarray(rows[first : first + _ROWS_AT_ONCE], np.float32)
        bad = ~np.isfinite(part)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            value = rows[first + row, column]
            where = f"{path} holds {value:.6g} at row {first + row}, column {column}"
            if np.isfinite(value):
                raise DataError(f"{where}, too large for float32", hint=_RESCALE)
            raise DataError(f"{where}, no finite number", hint="encode the images again, or drop such rows")


def _require_distinct(num_distinct: int, rows: NDArray[np.floating], path: Path) -> None:
    num_rows = len(rows)
    if num_distinct == 1:
        for column in range(rows.shape[1]):
            _require_kept(rows[:, column], column, path)
        raise DataError(
            f"{path} holds {num_rows} latents that are all the same, so they have no density",
            hint="the encoder ignores its images: train it again, or give draws of its distribution, not its means",
        )
    if num_distinct < _LEAST_ROWS:
        raise DataError(
            f"{path} holds {num_rows} latents of which only {num_distinct} differ: too few to fit a distribution",
            hint=f"give at least {_LEAST_ROWS} different rows, such as draws of the encoder's distribution",
        )


def _require_kept(column: NDArray[np.floating], number: int, path: Path) -> None:
    """Refuse a latent that varies in the file and is one number in float32."""
    if column.max() > column.min() and len(np.unique(column.astype(np.float32))) == 1:
        raise DataError(
            f"{path}: latent {number} runs from {column.min():.6g} to {column.max():.6g}, which is one number in "
            "float32",
            hint=_RESCALE if abs(column).max() < _LEAST_STD else _SUBTRACT,
        )


def _require_resolvable(fitted: Tensor, rows: NDArray[np.floating], path: Path) -> None:
    mean, std = fitted.double().mean(0), fitted.double().std(0)
    constant = (fitted.amax(0) == fitted.amin(0)).nonzero().flatten().tolist()
    if constant:
        _require_kept(rows[:, constant[0]], constant[0], path)
        others = int(np.count_nonzero(np.asarray(rows[:, constant[0]], np.float32) != float(fitted[0, constant[0]])))
        where = f"all but {others} of {len(rows)} rows" if others else "every row"
        raise DataError(
            f"{path}: latent {constant[0]} has the same value in {where}, so it has no density",
            hint="give draws of the encoder's distribution instead of its means, or drop it from the decoder",
        )
    extreme = ((std < _LEAST_STD) | (std > _MOST_STD)).nonzero().flatten().tolist()
    if extreme:
        raise DataError(
            f"{path}: latent {extreme[0]} has deviation {std[extreme[0]]:.3g}, outside {_LEAST_STD:g} to {_MOST_STD:g}"
            ": float32 cannot compute with it",
            hint=_RESCALE,
        )
    offset = mean.abs() / std
    worst = int(offset.argmax())
    if offset[worst] > _LARGEST_OFFSET:
        raise DataError(
            f"{path}: latent {worst} has mean {mean[worst]:.4g} and deviation {std[worst]:.2g}, which float32 cannot "
            "resolve",
            hint=_SUBTRACT,
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
