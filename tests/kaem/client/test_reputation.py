"""A server that keeps silent is remembered by the jobs that follow, and forgiven at its first answer."""

import signal
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from live_server import server_process

import kaem
from kaem.client import Patience
from kaem.client.reputation import Reputation

events = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["silence", "answer"]), st.floats(0.0, 200.0)))


@given(events)
def test_somebody_may_always_be_asked_at_once_and_nobody_is_avoided_for_long(events):
    reputation, now = Reputation(3), 1000.0
    silences = [0, 0, 0]
    for target, what, passed in events:
        now += passed
        if what == "silence":
            reputation.note_silence(target, now)
            silences[target] += 1
            expected = now + min(120.0, 5.0 * 2.0 ** (silences[target] - 1))
            assert reputation.first_moments(now)[target] in (now, expected)
        else:
            reputation.note_answer(target)
            silences[target] = 0
        moments = reputation.first_moments(now)
        assert min(moments) == now
        assert max(moments) <= now + 120.0
        assert reputation.first_moments(now + 121.0) == [now + 121.0] * 3
        for number in range(3):
            limit = reputation.longest_silence_s(number, 60.0)
            assert limit == (5.0 if silences[number] and not all(silences) else 60.0)
            assert reputation.longest_silence_s(number, 2.0) == 2.0


def test_a_server_that_hangs_holds_up_one_job_and_not_every_other(artifact_path):
    with kaem.load(artifact_path) as local:
        expected = local.sample(4, 7)
    with (
        server_process(artifact_path, "--port", "0") as good,
        server_process(artifact_path, "--port", "0") as hung,
        kaem.connect([good.target, hung.target], patience=Patience(call_timeout_s=2.0)) as sampler,
    ):
        assert np.array_equal(sampler.sample(4, 7), expected)
        assert np.array_equal(sampler.sample(4, 7), expected)
        hung.process.send_signal(signal.SIGSTOP)
        try:
            taken = []
            for _ in range(10):
                began = time.monotonic()
                assert np.array_equal(sampler.sample(4, 7), expected)
                taken.append(time.monotonic() - began)
        finally:
            hung.process.send_signal(signal.SIGCONT)
    assert sum(seconds > 1.5 for seconds in taken) <= 3, taken  # every second one, if each job had to find it out
