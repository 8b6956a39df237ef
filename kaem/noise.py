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

import sys

import numpy as np
from numpy.typing import NDArray

from kaem.requests import check_range

Words = NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_LOW_32 = 0xFFFFFFFF
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Where the halves of a uint64 stand when it is read as two uint32."""

_BLOCKS_AT_ONCE = 1 << 15
"""Counter blocks worked on together, so that the ten rounds stay in the processor's cache."""


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
    count, seed, start = check_range(count, seed, start)
    return uniforms_at(np.uint64(seed), np.uint64(start) + np.arange(count, dtype=np.uint64), dim)


def uniforms_at(seeds: NDArray[np.uint64] | np.uint64, indices: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
    """Return the signed uniforms of any samples of any seeds, in one go.

    Args:
        seeds: Shape (N,), or one for all.
        indices: Shape (N,), the sample of each row.
        dim: D, uniforms per sample, at least 1.

    Returns:
        Shape (N, D): row k is `uniforms(seeds[k], indices[k], 1, D)`.
    """
    count = len(indices)
    keys = np.broadcast_to(np.stack((seeds & np.uint64(_LOW_32), seeds >> np.uint64(32))).reshape(2, -1), (2, count))
    is_one_seed = not count or bool((keys == keys[:, :1]).all())
    words = np.empty((count, dim), np.uint32)
    blocks_per_row = -(-dim // 4)
    rows_per_pass = max(1, _BLOCKS_AT_ONCE // blocks_per_row)
    for first in range(0, count, rows_per_pass):
        index, key = indices[first : first + rows_per_pass], keys[:, first : first + rows_per_pass]
        rows = len(index)
        counter = np.zeros((4, rows, blocks_per_row), np.uint32)
        counter[0] = np.arange(blocks_per_row)
        counter[2] = (index & np.uint64(_LOW_32))[:, None]
        counter[3] = (index >> np.uint64(32))[:, None]
        key = key[:, :1] if is_one_seed else np.repeat(key, blocks_per_row, axis=1)
        drawn = philox4x32(counter.reshape(4, -1), key).reshape(4, rows, blocks_per_row)
        words[first : first + rows] = drawn.transpose(1, 2, 0).reshape(rows, -1)[:, :dim]
    return signed_uniforms(words)


def philox4x32(counter: Words, key: NDArray[np.uint64] | tuple[int, int]) -> Words:
    """Apply the ten rounds of Philox4x32 to n counters.

    Args:
        counter: Shape (4, n), each counter's 32-bit words from least to most significant.
        key: The two 32-bit words of one key for all, shape (2, 1) or a pair, or of each counter's, shape (2, n).

    Returns:
        Shape (4, n): the output blocks' words.
    """
    # Words 0 and 2 are multiplied, 1 and 3 are not; each pair is handled as one array, for few calls on small n.
    multiplied, plain = counter[0::2], counter[1::2]
    words = np.array(key, np.uint64).reshape(2, -1)
    for turn in range(_ROUNDS):
        halves = (multiplied * _MULTIPLIERS).view(np.uint32).reshape(2, -1, 2)  # (2, n, low and high)
        multiplied = halves[::-1, :, _HIGH] ^ plain
        multiplied ^= (words + np.uint64(turn) * _KEY_STEPS).astype(np.uint32)  # modulo 2^32
        plain = halves[::-1, :, _LOW]
    drawn = np.empty_like(counter)
    drawn[0::2], drawn[1::2] = multiplied, plain
    return drawn


def signed_uniforms(words: Words) -> NDArray[np.float32]:
    """Turn 32-bit words into signed uniforms of the same shape, rounded once from the exact value."""
    centred = words.view(np.int32).astype(np.float64)
    centred += 0.5
    centred *= 2.0**-32
    return centred.astype(np.float32)
