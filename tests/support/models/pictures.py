"""Small sets of image files in their real formats, for tests of data sources."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(num=12, shape=(8, 6, 3), seed=0):
    """Random uint8 images of shape (num, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def encode(image, kind="png", **options):
    """The bytes of one image file; `image` is an array or a Pillow image."""
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def files(images, folder=""):
    """{name: content} of PNG files whose sorted order is that of `images`."""
    return {f"{folder}{index:03d}.png": encode(image) for index, image in enumerate(images)}


def write_folder(path: Path, contents):
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, contents, mode="w", shuffled=True):
    """A tar whose members lie in another order than that of their names."""
    with tarfile.open(path, mode) as archive:
        for name in sorted(contents, key=_scrambled if shuffled else None):
            info = tarfile.TarInfo(name)
            info.size = len(contents[name])
            archive.addfile(info, io.BytesIO(contents[name]))
    return path


def write_zip(path: Path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(contents, key=_scrambled):
            archive.writestr(name, contents[name])
    return path


def _scrambled(name):
    return zlib.crc32(name.encode())


def huge_png(side=30_000):
    """A few bytes that claim to be `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def real_data(name):
    """Path of a real data set in $KAEM_TEST_DATA or ../shared/data, or None where it is absent."""
    default = Path(__file__).parents[4] / "shared" / "data"
    path = Path(os.environ.get("KAEM_TEST_DATA", default)) / name
    return path if path.exists() else None
