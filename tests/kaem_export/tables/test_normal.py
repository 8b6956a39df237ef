"""Normal draws in a graph follow scipy's normal quantile in the middle and in both tails."""

from __future__ import annotations

import numpy as np
import scipy.stats
from heads import run_written
from scipy.special import ndtr, ndtri

from kaem.noise import uniforms
from kaem_export.proof.rows import probe_uniforms
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, draw_normals


def _draw(uniform):
    return run_written(lambda op, source: [draw_normals(op, source).quantiles], {"uniform": uniform})[0]


def test_draws_are_quantiles_of_the_normal_down_to_both_ends():
    uniform = probe_uniforms(5, 4000)
    u = np.mod(uniform.astype(np.float64), 1.0)
    draws = _draw(uniform).astype(np.float64)
    assert np.abs(ndtr(draws) - u).max() < min(NORMAL_U_ERROR_BOUND, 1e-5)
    v = uniform.astype(np.float64)
    exact = np.where(v < 0, -ndtri(-v), ndtri(np.abs(v)))
    is_tail = (np.abs(v) < 1e-3) & (np.abs(v) > 1e-7)
    assert is_tail.sum() > 1000
    assert np.abs(draws - exact)[is_tail].max() < 1e-3  # where u says little of x


def test_a_million_draws_pass_a_kolmogorov_smirnov_test():
    draws = _draw(uniforms(3, 0, 100_000, 10)).astype(np.float64)
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(draws.T) - np.eye(10)).max() < 5 / np.sqrt(100_000)


def test_plain_and_signed_uniforms_give_one_draw():
    plain = (np.arange(1, 4096, dtype=np.float32) / 4096)[:, None]
    assert np.array_equal(_draw(plain), _draw(np.where(plain >= 0.5, plain - 1, plain)))


def test_two_lookups_live_in_one_graph():
    a, b = uniforms(1, 0, 7, 3), uniforms(2, 0, 7, 2)
    x, y = run_written(lambda op, *sources: [draw_normals(op, each).quantiles for each in sources], {"a": a, "b": b})
    assert np.array_equal(x, _draw(a))
    assert np.array_equal(y, _draw(b))
