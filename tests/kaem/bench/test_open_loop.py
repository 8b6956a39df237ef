"""Promises of the load generator, on a virtual clock and against queues whose waiting times are known."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from scipy import stats
from virtual_clock import run_virtually

from kaem.bench.scenarios.arrivals import DEFAULT_MIX, Arrival, Kind, parse_mix, poisson_arrivals
from kaem.bench.scenarios.open_loop import CallError, Watch, drive, run_precisely
from kaem.errors import RequestError


def test_arrivals_are_a_poisson_process():
    arrivals = poisson_arrivals(200.0, 100.0, DEFAULT_MIX, seed=0)
    gaps = np.diff([0.0, *(arrival.at_s for arrival in arrivals)])
    assert stats.kstest(gaps, stats.expon(scale=1 / 200.0).cdf).pvalue > 0.01
    counts = np.histogram([arrival.at_s for arrival in arrivals], bins=1000, range=(0, 100))[0]
    assert 0.85 < counts.var() / counts.mean() < 1.15


def test_arrivals_are_a_function_of_their_seed():
    first, again = (poisson_arrivals(50.0, 2.0, parse_mix("1:0.5,8:0.5"), seed=3) for _ in range(2))
    assert first == again
    assert first != poisson_arrivals(50.0, 2.0, parse_mix("1:0.5,8:0.5"), seed=4)


def test_a_mix_keeps_its_shares_and_no_sample_is_asked_for_twice():
    arrivals = poisson_arrivals(1000.0, 20.0, parse_mix("interactive:0.9,bulk:0.1"), seed=1)
    bulk = sum(arrival.kind.name == "bulk" for arrival in arrivals) / len(arrivals)
    assert bulk == pytest.approx(0.1, abs=0.01)
    ends = [arrival.start + arrival.kind.images for arrival in arrivals]
    assert [arrival.start for arrival in arrivals[1:]] == ends[:-1]


@pytest.mark.parametrize("text", ["", "fast:1", "interactive:x", "interactive:0", "bulk:1,bulk:2", "0:1", "-3"])
def test_a_mix_that_cannot_be_read_is_refused(text):
    with pytest.raises(RequestError):
        parse_mix(text)


def one_server(service_s):
    """A queue of one server with constant service time, first come first served."""
    lock = asyncio.Lock()

    async def call(arrival, left_s):
        async with lock:
            await asyncio.sleep(service_s)
        yield 1

    return call


def latencies(outcomes):
    return np.array([outcome.last_s - outcome.arrival.at_s for outcome in outcomes])


def test_latencies_of_a_queue_are_those_of_lindleys_recursion_one_by_one():
    arrivals = poisson_arrivals(80.0, 20.0, DEFAULT_MIX, seed=5)
    outcomes = run_virtually(lambda: drive(arrivals, one_server(0.01), deadline_s=1e6))
    wait, expected = 0.0, []
    for gap in np.diff([arrival.at_s for arrival in arrivals], prepend=arrivals[0].at_s):
        wait = max(0.0, wait + 0.01 - gap) if expected else 0.0
        expected.append(wait + 0.01)
    np.testing.assert_allclose(latencies(outcomes), expected, atol=1e-6)


def test_the_mean_wait_of_a_queue_is_that_of_pollaczek_and_khinchine():
    service, load = 0.01, 0.7
    arrivals = poisson_arrivals(load / service, 100.0, DEFAULT_MIX, seed=6)
    outcomes = run_virtually(lambda: drive(arrivals, one_server(service), deadline_s=1e6))
    expected = load * service / (2 * (1 - load))
    assert latencies(outcomes).mean() - service == pytest.approx(expected, rel=0.1)


def test_everybody_who_comes_during_a_stall_is_charged_the_rest_of_it():
    async def main():
        begin = asyncio.get_running_loop().time()

        async def call(arrival, left_s):
            now = asyncio.get_running_loop().time() - begin
            if 1.0 <= now < 2.0:
                await asyncio.sleep(2.0 - now)
            yield 1

        return await drive(poisson_arrivals(100.0, 4.0, DEFAULT_MIX, seed=7), call, deadline_s=10.0)

    outcomes = run_virtually(main)
    expected = [2.0 - one.arrival.at_s if 1.0 <= one.arrival.at_s < 2.0 else 0.0 for one in outcomes]
    np.testing.assert_allclose(latencies(outcomes), expected, atol=1e-6)
    assert np.quantile(latencies(outcomes), 0.9) > 0.3  # a caller who waits would see one slow call


def test_requests_go_out_when_due_although_none_is_answered():
    async def call(arrival, left_s):
        await asyncio.sleep(3600)
        yield 1

    watch = Watch(0)
    arrivals = poisson_arrivals(500.0, 2.0, DEFAULT_MIX, seed=8)
    outcomes = run_virtually(lambda: drive(arrivals, call, deadline_s=5.0, watch=watch))
    assert max(abs(one.sent_s - one.arrival.at_s) for one in outcomes) < 1e-6
    assert {one.status for one in outcomes} == {"DEADLINE_EXCEEDED"}
    assert watch.most_in_flight == len(arrivals)
    assert watch.in_flight == 0


def test_ends_are_counted_by_what_they_were():
    kind = Kind(name="two", images=2, share=1.0)

    async def call(arrival, left_s):
        match arrival.start:
            case 0:
                yield 1
                await asyncio.sleep(0.5)
                yield 1
            case 1:
                raise CallError("RESOURCE_EXHAUSTED")
            case 2:
                yield 1  # one image short
            case 3:
                yield 1
                await asyncio.sleep(2.0)
                yield 1
            case _:
                raise CallError("INTERNAL")

    arrivals = [Arrival(0.25 * index, kind, index) for index in range(5)]
    outcomes = run_virtually(lambda: drive(arrivals, call, deadline_s=1.0))
    expected = ["OK", "RESOURCE_EXHAUSTED", "DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL"]
    assert [one.status for one in outcomes] == expected
    assert outcomes[0].first_s == pytest.approx(0.0, abs=1e-6)
    assert outcomes[0].last_s == pytest.approx(0.5, abs=1e-6)
    assert outcomes[3].first_s == pytest.approx(0.75, abs=1e-6)
    assert outcomes[3].last_s is None


def test_a_generator_that_is_blocked_says_by_how_much():
    async def call(arrival, left_s):
        if arrival.start == 0:
            time.sleep(0.2)  # (what a slow deserialisation does to the loop)
        yield 1

    arrivals = [Arrival(0.0, DEFAULT_MIX[0], 0), Arrival(0.05, DEFAULT_MIX[0], 1)]
    outcomes, _ = run_precisely(lambda: drive(arrivals, call, deadline_s=5.0))
    assert outcomes[1].sent_s - outcomes[1].arrival.at_s >= 0.14
    assert outcomes[1].last_s - outcomes[1].arrival.at_s >= 0.14
