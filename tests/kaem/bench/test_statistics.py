"""Promises of what may be said of measured times, against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kaem.bench.statistics import (
    Ratio,
    gives_percentile,
    is_warm,
    median_estimate,
    median_interval,
    paired_ratio,
    quantile_estimates,
    separate_ratio,
)


@pytest.mark.parametrize("num", [1, 5, 6, 7, 9, 20, 53, 400])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_interval_of_the_median_is_scipys(num, confidence):
    values = np.random.default_rng(num).lognormal(size=num)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(confidence)
    found = median_interval(values, confidence)
    if np.isnan(expected.low) or np.isnan(expected.high):
        assert found is None
    else:
        assert found == (expected.low, expected.high)


def test_six_values_are_the_fewest_with_an_interval():
    assert median_interval(range(5)) is None
    assert median_interval(range(6)) == (0, 5)
    assert median_estimate([1.0, 2.0, 3.0]).low is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.1, 100), min_size=1, max_size=9), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_a_quantile_is_the_smallest_time_that_its_share_does_not_exceed(blocks, quantile):
    found = quantile_estimates([np.array(block) for block in blocks], [quantile])[0]
    times = np.concatenate([np.array(block) for block in blocks])
    assert found.value == np.quantile(times, quantile, method="inverted_cdf")
    assert (found.low is None) == (len(blocks) < 6)


def test_with_one_time_a_block_the_interval_is_that_of_the_plain_bootstrap():
    times = np.random.default_rng(0).lognormal(size=60)
    found = quantile_estimates([times[i : i + 1] for i in range(60)], [0.5])[0]
    expected = stats.bootstrap(
        (times,), lambda x, axis: np.quantile(x, 0.5, method="inverted_cdf", axis=axis), method="percentile", rng=1
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, rel=0.1)
    assert found.high == pytest.approx(expected.high, rel=0.1)


def test_where_launches_differ_the_interval_covers_and_that_of_independent_calls_would_not():
    random = np.random.default_rng(2)
    covered = naive = 0
    for _ in range(200):
        levels = random.normal(10.0, 1.0, 9)  # each launch has a level of its own; the truth is 10
        launches = [level + random.normal(0.0, 0.2, 100) for level in levels]
        medians = [float(np.median(launch)) for launch in launches]
        low, high = median_interval(medians)
        covered += low <= 10.0 <= high
        low, high = median_interval(np.concatenate(launches))
        naive += low <= 10.0 <= high
    assert covered >= 180
    assert naive <= 100


def test_quantiles_of_unanswered_requests_are_infinite():
    blocks = [np.array([1.0, np.inf])] * 8
    low, high = quantile_estimates(blocks, [0.4, 0.9])
    assert low.value == 1.0
    assert high.value == high.low == high.high == np.inf


def test_percentiles_need_five_calls_beyond_them():
    assert gives_percentile(50, 1)
    assert gives_percentile(99, 500)
    assert not gives_percentile(99, 499)
    assert gives_percentile(90, 50)
    assert not gives_percentile(90, 49)


def test_a_paired_ratio_sees_through_what_slows_both():
    random = np.random.default_rng(3)
    mood = random.lognormal(0.0, 1.0, 9)
    ratio = paired_ratio(list(1.1 * mood * random.normal(1, 0.01, 9)), list(mood))
    assert ratio.is_shown
    assert ratio.low < 1.1 < ratio.high
    assert not separate_ratio(list(1.1 * mood), list(random.permutation(mood))).is_shown


def test_a_difference_is_claimed_in_at_most_one_of_twenty_equal_comparisons():
    random = np.random.default_rng(4)
    claims = sum(paired_ratio(random.lognormal(0, 0.1, 9), random.lognormal(0, 0.1, 9)).is_shown for _ in range(1000))
    assert claims <= 0.05 * 1000 + 3 * (0.05 * 0.95 * 1000) ** 0.5
    claims = sum(separate_ratio(random.lognormal(0, 0.1, 9), random.lognormal(0, 0.1, 9)).is_shown for _ in range(1000))
    assert claims <= 50


def test_too_few_launches_claim_nothing():
    assert not paired_ratio([2.0] * 5, [1.0] * 5).is_shown
    assert not separate_ratio([2.0] * 6, [1.0] * 6).is_shown
    assert separate_ratio([2.0] * 7, [1.0] * 7) == Ratio(2.0, 2.0, 2.0)


def test_warming_up_ends_when_two_windows_in_a_row_gain_nothing():
    assert not is_warm([10.0, 5.0])
    assert not is_warm([10.0, 5.0, 5.0])
    assert is_warm([10.0, 5.0, 5.0, 5.0])
    assert is_warm([10.0, 10.1, 9.9])
    assert not is_warm([10.0, 9.0, 8.0, 7.0])
