"""Images beside the latent vectors they were made from, as rows of one array: so both take the same way to a reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.sampler import Images, Uniforms

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
