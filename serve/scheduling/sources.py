"""Where the uniforms of a job's rows come from; all seeded rows of a batch are drawn by one call.

Images beside the latent vectors they were made from, as rows of one array: so both take the same way to a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem import noise
from kaem.sampler import Images, Uniforms

_PADDING = np.float32(0.25)  # an ordinary value; what padded rows give is thrown away


@dataclass(frozen=True, slots=True)
class Seeded:
    """Rows drawn from the noise: row k is sample `start + k` of `seed`."""

    seed: int
    start: int


@dataclass(frozen=True, slots=True)
class Given:
    """Rows of uniforms that a request brought along, shape (N, D)."""

    uniform: Uniforms


Source = Seeded | Given


def draw(parts: Sequence[tuple[Source, int, int]], size: int, noise_dim: int) -> Uniforms:
    """Return the uniforms of a batch.

    Args:
        parts: (source, first, rows): rows `first .. first + rows - 1` of each source, one after the other.
        size: Rows of the batch; those that no part fills are padding.
        noise_dim: D.

    Returns:
        Shape (size, D).
    """
    uniform = np.empty((size, noise_dim), np.float32)
    seeded: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
    places: list[slice] = []
    at = 0
    for source, first, rows in parts:
        place = slice(at, at + rows)
        if isinstance(source, Given):
            uniform[place] = source.uniform[first : first + rows]
        else:
            indices = np.uint64(source.start + first) + np.arange(rows, dtype=np.uint64)
            seeded.append((np.full(rows, source.seed, np.uint64), indices))
            places.append(place)
        at += rows
    uniform[at:] = _PADDING
    if seeded:
        seeds, indices = (np.concatenate(arrays) for arrays in zip(*seeded, strict=True))
        drawn = noise.uniforms_at(seeds, indices, noise_dim)
        start = 0
        for place in places:
            rows = place.stop - place.start
            uniform[place] = drawn[start : start + rows]
            start += rows
    return uniform


DecodeBoth = Callable[[Uniforms], tuple[Images, NDArray[np.float32]]]
"""Uniforms (N, D) -> images (N, C, H, W) and latent vectors (N, Q)."""


def joined(images: Images, latents: NDArray[np.float32]) -> NDArray[Any]:
    """Return N rows with the fields `image`, shape (C, H, W), and `latent`, shape (Q,)."""
    rows = np.empty(
        len(images), [("image", images.dtype, images.shape[1:]), ("latent", latents.dtype, latents.shape[1:])]
    )
    rows["image"], rows["latent"] = images, latents
    return rows


def decoder_of(engine: object) -> DecodeBoth | None:
    """Return what gives an engine's images and latent vectors; None for an engine that keeps the latter to itself."""
    return getattr(engine, "decode_with_latents", None)
