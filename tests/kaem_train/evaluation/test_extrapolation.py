"""The line in 1/n."""

import numpy as np
import pytest
from scipy.stats import linregress

from kaem.errors import RequestError
from kaem_train.evaluation.distances import FrechetDistance
from kaem_train.evaluation.extrapolation import choose_sizes, extrapolated, subset


def test_a_distance_that_falls_as_one_over_n_is_recovered_exactly():
    sizes = range(2000, 20001, 2000)
    fit = extrapolated(sizes, [12.5 + 3000.0 / n for n in sizes])
    assert fit.intercept == pytest.approx(12.5, rel=1e-12)
    assert fit.standard_error == pytest.approx(0.0, abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0)


def test_the_standard_error_covers_the_truth_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    sizes = np.arange(1000, 3001, 200)
    fits = [extrapolated(sizes, 5.0 + 800.0 / sizes + 0.1 * rng.standard_normal(len(sizes))) for _ in range(600)]
    inside = np.mean([abs(fit.intercept - 5.0) < 2.262 * fit.standard_error for fit in fits])  # t, 9 degrees
    assert 0.92 < inside < 0.98
    assert linregress(1 / sizes, fits[0].distances).intercept == fits[0].intercept


def test_extrapolation_removes_the_bias_of_a_finite_sample():
    rng = np.random.default_rng(1)
    real = rng.standard_normal((200_000, 16)).astype(np.float32)
    generated = rng.standard_normal((20_000, 16)).astype(np.float32)
    distance, sizes = FrechetDistance(real), choose_sizes(2000)
    fits = extrapolated(
        sizes, [np.mean([distance.to(generated[subset(20_000, n, s)]) for s in range(5)]) for n in sizes]
    )
    assert fits.distances[0] > 0.2
    assert abs(fits.intercept) < 0.02
    assert fits.r_squared > 0.98


def test_subsets_are_drawn_without_replacement_and_follow_the_seed():
    assert sorted(subset(50, 50, 0)) == list(range(50))
    assert len(set(subset(1000, 200, 0))) == 200
    assert (subset(1000, 200, 0) == subset(1000, 200, 0)).all()
    assert (subset(1000, 200, 0) != subset(1000, 200, 1)).any()


def test_default_sizes_are_those_of_the_paper():
    assert choose_sizes(20_000) == tuple(range(2000, 20_001, 2000))


@pytest.mark.parametrize("sizes", [(100, 200), (5, 5, 5, 10), (1, 2, 3)])
def test_sizes_that_determine_no_line_are_refused(sizes):
    with pytest.raises(RequestError, match="line in 1/n"):
        extrapolated(sizes, [1.0] * len(sizes))
