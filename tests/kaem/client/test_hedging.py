from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaem.client.retry import Hedging, Latencies, hedge_after_s
from kaem.errors import ConfigError


@given(st.lists(st.floats(0, 1e3), min_size=20, max_size=256), st.floats(1, 99))
def test_the_percentile_is_that_of_numpy(seconds, percent):
    latencies = Latencies()
    for value in seconds:
        latencies.record(value)
    assert latencies.percentile(percent) == np.percentile(seconds, percent, method="inverted_cdf")


def test_only_recent_answers_count():
    latencies = Latencies()
    for value in [100.0] * 300 + [1.0] * 256:
        latencies.record(value)
    assert latencies.percentile(99) == 1.0


def test_what_is_set_goes_before_what_is_measured_and_nothing_is_guessed():
    latencies = Latencies()
    assert hedge_after_s(None, latencies) is None
    assert hedge_after_s(Hedging(), latencies) is None
    assert hedge_after_s(Hedging(after_s=0.0), latencies) == 0.0
    for value in range(19):
        latencies.record(value)
    assert hedge_after_s(Hedging(), latencies) is None
    latencies.record(19)
    assert hedge_after_s(Hedging(percentile=50), latencies) == 9
    assert hedge_after_s(Hedging(after_s=0.25), latencies) == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"after_s": -1.0}, "after_s is -1.0; give at least 0 seconds"),
        ({"after_s": float("nan")}, "after_s is nan"),
        ({"percentile": 100.0}, "percentile is 100.0; choose one between 0 and 100"),
        ({"percentile": 0.0}, "percentile is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Hedging(**settings)
