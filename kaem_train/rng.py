"""Noise of a run as a function of (seed, step, purpose): nothing to save, nothing to restore.

Each triple names its own generator, so what one part of an update draws never shifts what another part, or
another update, sees. A resumed run is the same run because it asks for the same names.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal[
    "posterior",
    "prior start",
    "grid refit",
    "prior refit",
    "sample grid",
    "held-out bound",
    "evaluation samples",
    "reconstruction",
    "latent fit",
    "held latents",
    "set aside",
]


def noise_stream(seed: int, step: int, purpose: Purpose) -> torch.Generator:
    """Return the generator of one purpose at one update, at its beginning.

    Args:
        seed: Seed of the run, in [0, 2^63).
        step: Update, from 0.
        purpose: What the noise is for.

    Returns:
        A CPU generator. It keeps 32 bits of a hash of the triple: of the streams of a long run a few
        may coincide (4 expected among 200,000), which correlates two distant updates and biases none.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
