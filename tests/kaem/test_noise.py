from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kaem.errors import RequestError
from kaem.noise import philox4x32, signed_uniforms, uniforms, uniforms_at

# The known-answer vectors of the Random123 library for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

indices = st.integers(0, 2**64 - 1)


def _words(text):
    return [int(word, 16) for word in text.split()]


def _philox_in_plain_integers(counter, key):
    """The generator once more, one block at a time, in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_random123_known_answers(counter, key, expected):
    counters = np.repeat(np.array(_words(counter), np.uint32)[:, None], 3, axis=1)
    drawn = philox4x32(counters, tuple(_words(key)))
    assert drawn.shape == (4, 3)
    for word, answer in zip(drawn, _words(expected), strict=True):
        assert np.all(word == answer)


@given(seed=indices, index=st.integers(0, 2**64 - 1), dim=st.integers(1, 9))
def test_word_j_of_sample_i_is_the_documented_counter(seed, index, dim):
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for j in range(dim):
        block = _philox_in_plain_integers((j // 4, 0, index & 0xFFFFFFFF, index >> 32), key)
        signed = block[j % 4] - (1 << 32 if block[j % 4] >> 31 else 0)
        expected = np.float32((signed + 0.5) * 2.0**-32)
        assert uniforms(seed, index, 1, dim)[0, j] == expected


@given(seed=indices, start=st.integers(0, 2**64 - 60), cut=st.integers(1, 49), dim=st.integers(1, 33))
def test_any_split_of_a_request_gives_the_same_noise(seed, start, cut, dim):
    whole = uniforms(seed, start, 50, dim)
    parts = np.concatenate([uniforms(seed, start, cut, dim), uniforms(seed, start + cut, 50 - cut, dim)])
    assert np.array_equal(whole, parts)


@given(rows=st.lists(st.tuples(indices, indices), min_size=1, max_size=6), dim=st.integers(1, 9))
def test_rows_of_many_seeds_are_the_rows_of_each(rows, dim):
    seeds, starts = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    expected = np.concatenate([uniforms(seed, start, 1, dim) for seed, start in rows])
    assert np.array_equal(uniforms_at(seeds, starts, dim), expected)


def test_large_requests_are_worked_on_in_passes_without_a_seam():
    whole = uniforms(3, 2**32 - 40_000, 80_000, 5)
    assert np.array_equal(whole[39_990:40_010], uniforms(3, 2**32 - 10, 20, 5))
    assert len(np.unique(whole, axis=0)) == len(whole)


def test_extreme_words_stay_inside_the_signed_interval_and_never_reach_zero():
    v = signed_uniforms(np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32))
    assert v.tolist() == [2.0**-33, np.float32(1.5 * 2.0**-32), 0.5, -0.5, -(2.0**-33)]


def test_uniforms_are_uniform_and_independent_between_seeds_and_columns():
    u = np.mod(uniforms(11, 0, 200_000, 2).astype(np.float64), 1)
    other = np.mod(uniforms(12, 0, 200_000, 1).astype(np.float64), 1)
    assert scipy.stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.01
    assert abs(np.corrcoef(u[:, 0], other[:, 0])[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("seed", "start", "count"),
    [
        (-1, 0, 1),
        (2**64, 0, 1),
        (0, -1, 1),
        (0, 2**64, 1),
        (0, 2**64 - 1, 2),
        (0, 0, 0),
        (0, 0, -5),
        (1.5, 0, 1),
    ],
)
def test_values_out_of_range_are_refused(seed, start, count):
    with pytest.raises(RequestError):
        uniforms(seed, start, count, 4)


def test_the_last_index_of_all_exists():
    assert uniforms(2**64 - 1, 2**64 - 1, 1, 4).shape == (1, 4)
