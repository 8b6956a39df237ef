"""The streams of step noise: MRG32k3a as published, one per pixel, independent of everything around them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import scipy.stats
from heads import run_written

from kaem.noise import uniforms
from kaem_export.families.diffusion_certificate import stream_uniforms
from kaem_export.families.recursive_noise import MODULI, NUM_WORDS, advance_streams, seed_streams

STATES = [f"s{word}" for word in range(NUM_WORDS)]
PUBLISHED = [0.12701112204657714, 0.3185275653967945, 0.3091860155832701, 0.8258468629271136, 0.2216299157820229]
"""What RngStreams, L'Ecuyer's own package, draws from its default seed: all six words 12345."""


def _advance(states):
    def write(op, *values):
        advanced, uniform = advance_streams(op, list(values))
        return [*advanced, uniform]

    *states, uniform = run_written(write, dict(zip(STATES, states, strict=True)))
    return states, uniform


def _seed(uniform):
    count = uniform.shape[1] // NUM_WORDS
    return run_written(lambda op, source: seed_streams(op, source, count), {"source": uniform})


def test_the_nodes_draw_what_the_published_generator_draws():
    states, drawn = [np.full((1, 1), 12345, np.int64)] * NUM_WORDS, []
    for _ in PUBLISHED:
        states, uniform = _advance(states)
        drawn.append(float(uniform[0, 0]) % 1.0)
    assert drawn == pytest.approx(PUBLISHED, abs=2**-24)


def test_the_nodes_follow_the_recurrence_of_the_certificate_step_by_step():
    seeds = uniforms(1, 0, 40, NUM_WORDS * 30)
    states = _seed(seeds)
    for expected in islice(stream_uniforms(seeds), 50):
        states, uniform = _advance(states)
        assert np.abs(np.mod(uniform.astype(np.float64), 1.0) - expected).max() < 2**-24  # rounded twice
        assert np.all((uniform < 0) == (expected >= 0.5))


def test_no_uniform_seeds_a_forbidden_state_and_both_conventions_seed_the_same():
    ends = np.array([0.0, -0.0, 0.5, -0.5, 2.0**-33, -(2.0**-33), 0.25, -0.25], np.float32)
    states = _seed(np.repeat(ends[:, None], NUM_WORDS, axis=1))
    for word, state in enumerate(states):
        modulus = MODULI[word // 3]
        assert state.min() >= 1
        assert state.max() < modulus
    plain = (np.arange(1, 64, dtype=np.float32) / 64)[:, None] * np.ones((1, NUM_WORDS), np.float32)
    for one, other in zip(_seed(plain), _seed(np.where(plain >= 0.5, plain - 1, plain)), strict=True):
        assert np.array_equal(one, other)


def test_noise_is_uniform_and_unrelated_between_steps_pixels_and_rows():
    steps, rows, pixels = 100, 100, 50
    noise = np.stack(list(islice(stream_uniforms(uniforms(7, 0, rows, NUM_WORDS * pixels)), steps)))
    assert scipy.stats.kstest(noise.ravel(), "uniform").pvalue > 1e-3
    for power in (1, 2):  # the squares of centred values too, or variances could go together
        value = scipy.stats.zscore((noise - 0.5) ** power, axis=None)
        for axis in range(3):
            for lag in (1, 2, 3, 7):
                one = np.take(value, range(lag, value.shape[axis]), axis)
                other = np.take(value, range(value.shape[axis] - lag), axis)
                assert abs((one * other).mean()) < 4.5 / np.sqrt(one.size)


def test_the_seeding_uniforms_say_nothing_of_the_first_noise():
    seeds = uniforms(9, 0, 200_000, NUM_WORDS)
    first = next(stream_uniforms(seeds))[:, 0]
    value = np.mod(seeds.astype(np.float64), 1.0)
    for word in range(NUM_WORDS):
        counts, _, _ = np.histogram2d(first, value[:, word], bins=16, range=[(0, 1), (0, 1)])
        assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-4
