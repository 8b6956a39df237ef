"""The factor of estimates: it finds the one that answers keep, stays within bounds, and is forgotten."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.scheduling.punctuality import LEAST, MOST, Punctuality

notes = st.lists(
    st.tuples(st.floats(1e-6, 10.0), st.floats(0.0, 100.0) | st.just(math.inf), st.floats(0.0, 5.0)), max_size=50
)


@given(notes)
def test_the_factor_stays_within_its_bounds_and_falls_back_with_time(notes):
    punctuality, now = Punctuality(), 0.0
    for estimated_s, taken_s, passed_s in notes:
        now += passed_s
        punctuality.note(estimated_s, taken_s, now)
        assert LEAST <= punctuality.factor(now) <= MOST
    factors = [punctuality.factor(now + later) for later in (0.0, 1.0, 10.0, 100.0, 1000.0)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(LEAST)


@pytest.mark.parametrize("true_factor", [1.0, 1.8, 2.7])
def test_few_answers_take_longer_than_the_factor_says(true_factor):
    # Times around the estimate times something that no table knows: after a while few of them exceed the estimate.
    rng, punctuality, late = np.random.default_rng(0), Punctuality(), []
    for number in range(8000):
        now = 0.005 * number
        taken = 0.1 * true_factor * rng.lognormal(0.0, 0.1)
        late.append(taken > 0.1 * punctuality.factor(now))
        punctuality.note(0.1, taken, now)
    assert np.mean(late[2000:]) < 0.03
    assert punctuality.factor(40.0) < 1.6 * max(true_factor, LEAST)


def test_a_server_that_lets_nobody_in_forgets():
    punctuality = Punctuality()
    for number in range(1000):
        punctuality.note(0.1, math.inf, 0.001 * number)
    assert punctuality.factor(1.0) > 3.9
    assert punctuality.factor(61.0) < LEAST + 0.05
