"""Pixels as they are kept, 8 bits where possible and perhaps on disk, served as float32 batches.

x = byte / 255        computed for the images that are asked for, never for the whole set
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaem_train.devices import upload

_ROWS_TOGETHER = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A sequence of images; indexing converts, so `images[:]` is the whole set as one tensor.

    Attributes:
        stored: Shape (M, C, H, W), uint8 or float32 in [0, 1]; may be mapped from a file.
        rows: Shape (N,), int64: the rows of `stored` that belong to this set, in its order.
        device: Device that images are served on; the pixels stay where they are.
    """

    stored: NDArray[Any]
    rows: NDArray[np.int64]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def whole(cls, stored: NDArray[Any]) -> Images:
        """Return all rows of `stored` in their order."""
        return cls(stored, np.arange(len(stored)))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.stored.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def num_distinct(self, most: int) -> int:
        """Return how many images differ among `most` of them, evenly spread."""
        rows = self.rows[:: max(1, len(self) // most)]
        return len({hashlib.sha256(np.ascontiguousarray(self.stored[row]).data).digest() for row in rows})

    def subset(self, chosen: Tensor) -> Images:
        """Return the images of these numbers, shape (S,), in this order; no pixel is copied."""
        return Images(self.stored, self.rows[chosen.numpy()], self.device)

    def serve_on(self, device: torch.device) -> Images:
        """Return the same images, served on another device."""
        return Images(self.stored, self.rows, device)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Return the chosen images as float32 in [0, 1]: shape (n, C, H, W), or (C, H, W) for one number."""
        return self.serve(self.read(index))

    def read(self, index: int | slice | Tensor) -> Tensor:
        """Return the chosen images as they are stored, on the CPU."""
        rows = self.rows[index.numpy() if isinstance(index, Tensor) else index]
        return torch.from_numpy(np.array(self.stored[rows]))

    def serve(self, pixels: Tensor) -> Tensor:
        """Return stored pixels as float32 in [0, 1] on the device; 8 bits travel there, and not 32."""
        there = upload(pixels, self.device)
        if there.dtype != torch.uint8:
            return there.float()
        # By a tensor: by a number a GPU multiplies with its reciprocal, which is not the same in the last bit.
        return there.float() / torch.full((), 255.0, device=there.device)


def convert_exact_bytes(images: NDArray[np.float32]) -> NDArray[Any]:
    """Return floats in [0, 1] that are whole 255ths as uint8, others as they are; nothing is rounded."""
    pixels = np.rint(images * np.float32(255.0)).astype(np.uint8)
    return pixels if np.array_equal(pixels / np.float32(255.0), images) else images


def digest_pixels(stored: NDArray[Any]) -> str:
    """Return the SHA-256 of shape, type and pixels, in hexadecimal; reads a few thousand images at a time."""
    digest = hashlib.sha256(repr((stored.shape, stored.dtype.str)).encode())
    for start in range(0, len(stored), _ROWS_TOGETHER):
        digest.update(np.ascontiguousarray(stored[start : start + _ROWS_TOGETHER]).data)
    return digest.hexdigest()
