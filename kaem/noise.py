"""Noise as a pure function of (seed, index): counter-based uniforms from Philox4x32-10.

Word `j` of sample `i` of seed `s` is

    Philox4x32-10(counter = (j // 4, 0, i mod 2^32, i div 2^32), key = (s mod 2^32, s div 2^32))[j mod 4]

so a row never depends on how a request was split, on which machine computed it or in which order. Each 32-bit
word `w`, read as a signed integer, becomes one signed uniform

    v = float32((w + 1/2) / 2^32)      in [-1/2, 1/2], never 0, |v| >= 2^-33,      u = v mod 1

Signed, because float32 resolves both tails of u down to 2^-33 this way, where a plain u in (0, 1) has no
numbers between 1 - 2^-24 and 1. The generator is that of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (2011); it is portable to any language with 32-bit integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kaem.requests import check_range

Words = NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_BLOCK_WORDS = 1 << 16
"""Counter blocks worked on at a time, so that the ten rounds stay in the processor's cache."""


def uniforms(seed: int, start: int, count: int, dim: int) -> NDArray[np.float32]:
    """Return the signed uniforms of samples `start .. start + count - 1` of `seed`.

    Args:
        seed: In [0, 2^64).
        start: Index of the first sample, in [0, 2^64); start + count must not pass 2^64.
        count: Number of samples, at least 1.
        dim: D, uniforms per sample, at least 1.

    Returns:
        Shape (count, D), float32, in [-1/2, 1/2], never 0.

    Raises:
        RequestError: A value is outside its range.
    """
    check_range(count, seed, start)
    words = np.empty((count, dim), np.uint32)
    blocks_per_row = -(-dim // 4)
    rows_per_pass = max(1, _BLOCK_WORDS // blocks_per_row)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    block = np.arange(blocks_per_row, dtype=np.uint32)
    for first in range(0, count, rows_per_pass):
        rows = min(rows_per_pass, count - first)
        # Wraps modulo 2^64 like the counter itself; check_range keeps the last index below 2^64.
        index = np.uint64(start + first) + np.arange(rows, dtype=np.uint64)
        shape = (rows, blocks_per_row)
        counter = (
            np.broadcast_to(block, shape),
            np.zeros(shape, np.uint32),
            np.broadcast_to((index & _LOW).astype(np.uint32)[:, None], shape),
            np.broadcast_to((index >> _SHIFT).astype(np.uint32)[:, None], shape),
        )
        drawn = np.stack(philox4x32(counter, key), axis=-1)  # (rows, blocks_per_row, 4)
        words[first : first + rows] = drawn.reshape(rows, -1)[:, :dim]
    return signed_uniforms(words)


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Apply the ten rounds of Philox4x32 to many counters under one key.

    Args:
        counter: Four arrays of one shape, the counter's 32-bit words from least to most significant.
        key: The key's two 32-bit words.

    Returns:
        Four arrays of that shape: the output block's words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]  # uint32 * uint64 -> the full 64-bit product
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT).astype(np.uint32) ^ c1 ^ np.uint32(k0),
            product1.astype(np.uint32),
            (product0 >> _SHIFT).astype(np.uint32) ^ c3 ^ np.uint32(k1),
            product0.astype(np.uint32),
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def signed_uniforms(words: Words) -> NDArray[np.float32]:
    """Turn 32-bit words into signed uniforms of the same shape, rounded once from the exact value."""
    centred = words.view(np.int32).astype(np.float64)
    centred += 0.5
    centred *= 2.0**-32
    return centred.astype(np.float32)
