"""Sample files, written as the samples arrive and renamed into place when all have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kaem.artifact import Manifest
from kaem.errors import RequestError
from kaem.files import replacing
from kaem.images import contact_sheet, encode_png, sheet_bytes
from kaem.sampler import Images

_SUFFIXES = (".png", ".npy")
_MAX_SHEET_BYTES = 1 << 28


def check_outputs(paths: Sequence[Path], **at_least_one: int | None) -> None:
    """Check everything that can be checked before a model is opened.

    Raises:
        RequestError: A suffix is unknown, a folder is missing, or a number is below 1.
    """
    for path in paths:
        if path.suffix not in _SUFFIXES:
            raise RequestError(f"cannot write {path}: unknown suffix {path.suffix!r}", hint="use .png or .npy")
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}; at least 1 is needed")


@contextmanager
def sample_files(
    paths: Sequence[Path],
    manifest: Manifest,
    num: int,
    *,
    tiles: int,
    columns: int | None,
    scale: int | None,
) -> Iterator[Callable[[Images], None]]:
    """Open the output files of one sampling run; a run that fails leaves none of them.

    Args:
        paths: `.png` (contact sheet) and `.npy` (array, memory-mapped while it fills) files.
        manifest: Manifest of the model that is sampled.
        num: Samples that will be added in all.
        tiles: Largest number of images on a sheet, the first ones.
        columns: Images per row of a sheet.
        scale: Magnification on a sheet.

    Yields:
        A function that appends the next samples, shape (n, C, H, W).

    Raises:
        RequestError: A file cannot be written, or PNG cannot hold the model's channels.
    """
    sheets = [path for path in paths if path.suffix == ".png"]
    if sheets and manifest.image_shape[0] not in (1, 3):
        raise RequestError(f"PNG holds 1 or 3 channels; this model has {manifest.image_shape[0]}", hint="use .npy")
    if sheets and sheet_bytes(min(num, tiles), manifest.image_shape, columns, scale) > _MAX_SHEET_BYTES:
        raise RequestError(
            f"a contact sheet of {min(num, tiles)} tiles at this size takes more than {_MAX_SHEET_BYTES >> 20} MiB",
            hint="lower --tiles, --columns or --scale",
        )
    with ExitStack() as stack:
        drafts = {path: stack.enter_context(replacing(path)) for path in paths}
        shape, dtype = (num, *manifest.image_shape), np.dtype(manifest.image_type)
        arrays = [_open_array(draft, dtype, shape) for path, draft in drafts.items() if path.suffix == ".npy"]
        shown: list[Images] = []
        added = 0

        def add(images: Images) -> None:
            nonlocal added
            for array in arrays:
                array[added : added + len(images)] = images
            if added < tiles and sheets:
                shown.append(images[: tiles - added].copy())
            added += len(images)

        yield add
        for array in arrays:
            array.flush()
        if sheets:
            picture = encode_png(contact_sheet(np.concatenate(shown), columns=columns, scale=scale))
            for path in sheets:
                drafts[path].write_bytes(picture)


def _open_array(draft: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a memory-mapped `.npy` file whose space is really there: without it, a full disk kills the process."""
    array = np.lib.format.open_memmap(draft, "w+", dtype=dtype, shape=shape)
    with draft.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, draft.stat().st_size)
    return array
