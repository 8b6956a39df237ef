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
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.validation import check_range

Words = NDArray[np.uint32]
Keys = tuple[tuple[Words, Words], ...]
"""The two words of every round's key, each without shape (for all counters) or of shape (n,)."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = 0xFFFFFFFF
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Where the halves of a uint64 stand when it is read as two uint32."""

_BLOCKS_AT_ONCE = 1 << 15
"""Counter blocks worked on together, so that the ten rounds stay in the processor's cache."""

_HALF, _SCALE = np.array(0.5), np.array(2.0**-32)


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
    indices = np.arange(count, dtype=np.uint64)
    indices += start
    return _drawn(_keys_of_seed(seed), indices, dim)


def uniforms_at(seeds: NDArray[np.uint64] | np.uint64, indices: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
    """Return the signed uniforms of any samples of any seeds, in one go.

    Args:
        seeds: Shape (N,), or one for all.
        indices: Shape (N,), the sample of each row.
        dim: D, uniforms per sample, at least 1.

    Returns:
        Shape (N, D): row k is `uniforms(seeds[k], indices[k], 1, D)`.
    """
    seeds = np.atleast_1d(seeds)
    is_one_seed = bool(len(seeds)) and bool((seeds == seeds[0]).all())
    return _drawn(_keys_of_seed(int(seeds[0])) if is_one_seed else seeds, indices, dim)


def philox4x32(counter: Words, key: NDArray[np.uint64] | tuple[int, int]) -> Words:
    """Apply the ten rounds of Philox4x32 to n counters.

    Args:
        counter: Shape (4, n), each counter's 32-bit words from least to most significant.
        key: The two 32-bit words of one key for all, shape (2, 1) or a pair, or of each counter's, shape (2, n).

    Returns:
        Shape (4, n): the output blocks' words.
    """
    low, high = np.array(key, np.uint64).reshape(2, -1)
    multiplied = counter[0::2].astype(np.uint64).reshape(-1)
    return np.stack(_rounds(multiplied, counter[1].copy(), counter[3].copy(), tuple(_schedule(low, high))))


def signed_uniforms(words: Words) -> NDArray[np.float32]:
    """Turn 32-bit words into signed uniforms of the same shape, rounded once from the exact value."""
    centred = words.view(np.int32).astype(np.float64)
    centred += _HALF
    centred *= _SCALE
    return centred.astype(np.float32)


def _drawn(keys: Keys | NDArray[np.uint64], indices: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
    """Return the uniforms of samples, shape (N, D), of the schedule of one seed or of N seeds."""
    count, blocks = len(indices), -(-dim // 4)
    rows = max(1, _BLOCKS_AT_ONCE // blocks)
    if count <= rows:
        return _one_pass(keys, indices, blocks, dim)
    drawn = np.empty((count, dim), np.float32)
    for first in range(0, count, rows):
        of_rows = keys if isinstance(keys, tuple) else keys[first : first + rows]
        drawn[first : first + rows] = _one_pass(of_rows, indices[first : first + rows], blocks, dim)
    return drawn


def _one_pass(
    keys: Keys | NDArray[np.uint64], indices: NDArray[np.uint64], blocks: int, dim: int
) -> NDArray[np.float32]:
    rows = len(indices)
    if not isinstance(keys, tuple):
        seeds = np.repeat(keys, blocks)
        keys = tuple(_schedule(seeds & np.uint64(_LOW_32), seeds >> np.uint64(32)))
    halves = indices.view(np.uint32)
    multiplied = np.empty((2, rows, blocks), np.uint64)
    multiplied[0] = _block_numbers(blocks)
    multiplied[1].T[:] = halves[_LOW::2]
    last = np.empty((rows, blocks), np.uint32)
    last.T[:] = halves[_HIGH::2]
    words = np.empty((rows * blocks, 4), np.uint32)
    for number, word in enumerate(
        _rounds(multiplied.reshape(-1), np.zeros(rows * blocks, np.uint32), last.reshape(-1), keys)
    ):
        words[:, number] = word
    return signed_uniforms(words.reshape(rows, 4 * blocks)[:, :dim])


def _rounds(multiplied: NDArray[np.uint64], first: Words, second: Words, keys: Keys) -> tuple[Words, ...]:
    """Apply the rounds to n counters.

    Each operation is on vectors of one type, without temporaries: for the few counters of one sample a call of NumPy
    costs several times as much with two axes, two types or a scalar of Python's.

    Args:
        multiplied: Words 0 of all counters, then words 2, shape (2 n,); overwritten.
        first: Words 1, shape (n,).
        second: Words 3, shape (n,).
        keys: Keys of every round.

    Returns:
        The four words, each of shape (n,).
    """
    num = len(first)
    multipliers = _multipliers(num)
    words = multiplied.view(np.uint32)[_LOW::2]  # the upper halves are 0 and stay so
    word_0, word_2 = words[:num], words[num:]
    sides = []
    for product in (np.empty_like(multiplied), np.empty_like(multiplied)):  # in turn: one is read while one is written
        halves = product.view(np.uint32)
        high, low = halves[_HIGH::2], halves[_LOW::2]
        sides.append((product, high[:num], high[num:], low[:num], low[num:]))
    for turn, (key_0, key_1) in enumerate(keys):
        product, high_0, high_2, low_0, low_2 = sides[turn % 2]
        np.multiply(multiplied, multipliers, product)
        np.bitwise_xor(high_2, first, word_0)
        np.bitwise_xor(word_0, key_0, word_0)
        np.bitwise_xor(high_0, second, word_2)
        np.bitwise_xor(word_2, key_1, word_2)
        first, second = low_2, low_0
    return word_0, first, word_2, second


def _schedule(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> Iterator[tuple[Words, Words]]:
    """Yield the key of every round, of keys whose words have shape (m,); one key's words lose their axis."""
    for turn in range(_ROUNDS):
        words = ((low + turn * _KEY_STEPS[0]), (high + turn * _KEY_STEPS[1]))
        first, second = (word.astype(np.uint32) for word in words)  # modulo 2^32
        yield (first, second) if len(low) != 1 else (first.reshape(()), second.reshape(()))


@lru_cache(maxsize=256)
def _keys_of_seed(seed: int) -> Keys:
    return tuple(_schedule(np.array([seed & _LOW_32], np.uint64), np.array([seed >> 32], np.uint64)))


@lru_cache(maxsize=16)
def _multipliers(num: int) -> NDArray[Any]:
    """Return the multipliers of `num` words 0 and `num` words 2."""
    return _constant(np.repeat(np.array(_MULTIPLIERS, np.uint64), num))


@lru_cache(maxsize=16)
def _block_numbers(blocks: int) -> NDArray[Any]:
    return _constant(np.arange(blocks, dtype=np.uint64))


def _constant(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False  # shared by all threads
    return array
