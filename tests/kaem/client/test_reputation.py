"""A server that keeps silent is remembered by the jobs that follow, and forgiven at its first answer."""

import asyncio
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import server_process

import kaem
from kaem.client import Patience
from kaem.client.retry import Reputation

events = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["silence", "answer"]), st.floats(0.0, 200.0), st.floats(0.01, 60.0))
)


@given(events)
def test_nobody_is_avoided_for_long_nor_beyond_its_first_answer(events):
    reputation, now = Reputation(3), 1000.0
    silences = [0, 0, 0]
    for target, what, passed, silent_s in events:
        now += passed
        if what == "silence":
            reputation.note_silence(target, now, silent_s)
            silences[target] += 1
            expected = now + min(120.0, min(5.0, silent_s) * 2.0 ** (silences[target] - 1))
            assert reputation.avoided_until(target) == pytest.approx(expected)
        else:
            reputation.note_answer(target)
            silences[target] = 0
            assert reputation.avoided_until(target) <= now
        for number in range(3):
            assert reputation.avoided_until(number) <= now + 120.0
            assert reputation.is_in_doubt(number) == bool(silences[number])
            assert reputation.longest_silence_s(number, 60.0) == (5.0 if silences[number] else 60.0)
            assert reputation.longest_silence_s(number, 2.0) == 2.0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_server_that_hangs_holds_up_one_job_and_not_every_other(artifact_path, is_async):
    with kaem.load(artifact_path) as local:
        expected = local.sample(4, 7)
    patience = Patience(call_timeout_s=2.0)
    taken = []

    def ask(sampler):
        began = time.monotonic()
        assert np.array_equal(sampler.sample(4, 7), expected)
        taken.append(time.monotonic() - began)

    async def ask_all(targets, stop):
        async with kaem.connect_async(targets, patience=patience) as sampler:
            for number in range(12):
                if number == 2:
                    stop()
                began = time.monotonic()
                assert np.array_equal(await sampler.sample(4, 7), expected)
                taken.append(time.monotonic() - began)

    with (
        server_process(artifact_path, "--port", "0") as good,
        server_process(artifact_path, "--port", "0") as hung,
    ):
        targets = [good.target, hung.target]
        try:
            if is_async:
                asyncio.run(ask_all(targets, lambda: hung.process.send_signal(signal.SIGSTOP)))
            else:
                with kaem.connect(targets, patience=patience) as sampler:
                    for number in range(12):
                        if number == 2:
                            hung.process.send_signal(signal.SIGSTOP)
                        ask(sampler)
        finally:
            hung.process.send_signal(signal.SIGCONT)
    # Once, and again after five seconds at the earliest, should the good one be slow enough for that.
    assert 1 <= sum(seconds > 1.9 for seconds in taken) <= 1 + sum(taken) / 5.0, taken
