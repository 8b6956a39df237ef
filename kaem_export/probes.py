"""Uniforms at which a graph is measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kaem.noise import uniforms

_SEED = 2506_14167


def probe_uniforms(dim: int, num: int) -> NDArray[np.float32]:
    """Signed uniforms, shape (2 num, D): half of them random, half spread evenly over log |v| in both tails."""
    depth = np.geomspace(2.0**-33, 0.5, num // 2)[:, None] * np.ones(dim)
    tails = np.concatenate([depth, -depth]).astype(np.float32)
    return np.concatenate([uniforms(_SEED, 0, num, dim), tails])


def tail_uniforms(dim: int, num: int, seed: int = _SEED) -> NDArray[np.float32]:
    """Signed uniforms, shape (num, D): random, but one of every row is in a tail, from 2^-7 down to 2^-33.

    What really occurs, in contrast to rows whose uniforms all are extreme at once.
    """
    rows = uniforms(seed, 0, num, dim)
    depth = np.geomspace(2.0**-33, 2.0**-7, num)
    index = np.arange(num)
    rows[index, index % dim] = np.where(index // dim % 2, depth, -depth)
    return rows
