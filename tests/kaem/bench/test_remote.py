"""Promises of the server scenario, against real servers on real sockets."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import Backend, LiveServer

from kaem.bench.scenarios.arrivals import parse_mix
from kaem.bench.scenarios.remote import (
    LatencyObjective,
    Load,
    ServerUnderLoad,
    is_late,
    lowest_judged,
    search_rate,
    search_target,
)
from kaem.errors import RemoteError, RequestError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from kaem.protocol.messages import Limits, Model, message_from_model

ONE = parse_mix("interactive")


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend()) as live:
        yield live


class Known(kaem_pb2_grpc.SamplerServicer):
    """Known delays: a stream's chunks come after 0.1 and 0.3 s; of Sample, every third call is refused, every
    third fails."""

    def __init__(self):
        self._calls = itertools.count()
        self._manifest = Backend().manifest

    def GetModel(self, request, context):  # noqa: N802
        limits = Limits(max_chunk_bytes=1 << 20, max_sample_rows=4, max_decode_rows=4)
        model = Model(name="known", manifest=self._manifest, numerics_id="sha256:0", provider="cpu", limits=limits)
        return message_from_model(model)

    def Sample(self, request, context):  # noqa: N802
        match next(self._calls) % 3:
            case 0:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            case 1:
                context.abort(grpc.StatusCode.INTERNAL, "broken")
        return kaem_pb2.Chunk(count=request.count)

    def StreamSamples(self, request, context):  # noqa: N802
        time.sleep(0.1)
        yield kaem_pb2.Chunk(count=request.count // 2)
        time.sleep(0.2)
        yield kaem_pb2.Chunk(count=request.count - request.count // 2)


@pytest.fixture(scope="module")
def known():
    with ThreadPoolExecutor(64) as pool:
        server = grpc.server(pool)
        kaem_pb2_grpc.add_SamplerServicer_to_server(Known(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"grpc://127.0.0.1:{port}"
        server.stop(0).wait()


def test_every_request_of_a_mix_is_answered_and_counted(server):
    load = Load(mix=parse_mix("interactive:0.8,16:0.2"), duration_s=1.0, deadline_s=20.0, seed=1)
    seen = []
    rows = ServerUnderLoad(server.target, seed=3).run(60.0, load, lambda rate, watch: seen.append(watch.sent))
    assert [row.kind for row in rows] == ["all", "interactive", "16"]
    whole, one, many = rows
    assert whole.completed == whole.arrivals == one.arrivals + many.arrivals
    assert whole.statuses == {"OK": whole.arrivals}
    assert whole.images_per_s * 0.9 == pytest.approx(one.completed + 16 * many.completed)
    assert whole.goodput_per_s * 0.9 == pytest.approx(whole.completed)
    assert whole.last_ms[2] is None  # 54 requests support no p99
    assert seen[-1] >= whole.arrivals


def test_first_and_last_chunk_are_timed_apart(known):
    load = Load(mix=parse_mix("8"), duration_s=1.0, deadline_s=20.0)
    row = ServerUnderLoad(known, seed=0).run(20.0, load)[0]
    assert row.completed == row.arrivals
    assert 100 <= row.first_ms[0].value <= row.last_ms[0].value - 100
    assert row.last_ms[0].value >= 300


def test_a_deadline_turns_waiting_into_a_failure_without_end(known):
    load = Load(mix=parse_mix("8"), duration_s=1.0, deadline_s=0.2)
    row = ServerUnderLoad(known, seed=0).run(20.0, load)[0]
    assert (row.completed, row.goodput_per_s) == (0, 0)
    assert row.timed_out == row.arrivals
    assert row.last_ms[0].value == float("inf")


def test_rejected_and_failed_are_counted_apart(known):
    row = ServerUnderLoad(known, seed=0).run(60.0, Load(mix=ONE, duration_s=1.0, deadline_s=20.0))[0]
    assert row.completed + row.rejected + row.failed == row.arrivals
    assert row.statuses["RESOURCE_EXHAUSTED"] == row.rejected
    assert row.statuses["INTERNAL"] == row.failed
    for count in (row.completed, row.rejected, row.failed):
        assert abs(count - row.arrivals / 3) <= 3


def test_a_server_that_stalls_is_charged_with_everybody_who_came_meanwhile():
    with LiveServer(Backend()) as live:
        target = ServerUnderLoad(live.target, seed=0)
        live.backend.may_run.clear()
        release = threading.Timer(0.8, live.backend.may_run.set)

        def on_watch(rate, watch):
            if not release.is_alive() and not live.backend.may_run.is_set():
                release.start()

        row = target.run(50.0, Load(mix=ONE, duration_s=1.0, deadline_s=20.0), on_watch)[0]
        release.join()
    assert row.completed == row.arrivals
    assert row.last_ms[0].value > 100  # closed-loop callers would have made one slow call
    assert row.most_in_flight > 20


def test_an_objective_counts_requests_without_an_answer_as_missed():
    times = np.array([10.0] * 98 + [np.inf] * 2)
    assert LatencyObjective(percent=98, limit_ms=50).is_met(times)
    assert not LatencyObjective(percent=99, limit_ms=50).is_met(times)


@given(st.floats(1.5, 5e4), st.lists(st.floats(1, 5e4), max_size=3))
def test_the_search_brackets_the_highest_rate_within_a_tenth(capacity, given_rates):
    probes = []

    def meets(rate):
        probes.append(rate)
        return rate <= capacity

    met, missed = search_rate(meets, [(rate, rate <= capacity) for rate in given_rates])
    assert met <= capacity < missed <= 1.11 * met
    assert len(probes) <= 30


def test_a_server_that_never_meets_the_objective_is_given_up():
    assert search_rate(lambda rate: False, []) == (None, 1.0)


def test_a_rate_with_too_few_requests_for_its_percentile_is_not_judged(server):
    load = Load(mix=ONE, duration_s=1.0, deadline_s=20.0, objective=LatencyObjective(percent=99, limit_ms=2000))
    assert ServerUnderLoad(server.target, seed=0).run(20.0, load)[0].meets is None
    assert lowest_judged(load.objective, 20.0) == 34.0  # 34/s for 18 counted seconds are the first 600 or more


def test_a_search_runs_on_the_server(known):
    load = Load(
        mix=parse_mix("8"), duration_s=0.5, deadline_s=1.0, objective=LatencyObjective(percent=50, limit_ms=200)
    )
    rows = []
    found = search_target(ServerUnderLoad(known, seed=0), rows, load)
    assert found.highest_met is None
    assert {row.meets for row in rows} == {False}


def test_lag_matters_only_beside_what_is_measured():
    assert not is_late(0.9, 1.0, cpu=0.1, sent_share=1.0)
    assert not is_late(2.0, 100.0, cpu=0.1, sent_share=1.0)
    assert is_late(2.0, 10.0, cpu=0.1, sent_share=1.0)
    assert is_late(0.1, 10.0, cpu=0.99, sent_share=0.9)


def test_no_server_is_an_error_of_one_line():
    with pytest.raises(RemoteError, match="no kaem server answered"):
        ServerUnderLoad("grpc://127.0.0.1:1", seed=0, timeout_s=0.3)


@pytest.mark.parametrize("load", [{"duration_s": 0.0}, {"deadline_s": -1.0}, {"deadline_s": float("inf")}])
def test_loads_that_make_no_sense_are_refused(load):
    with pytest.raises(RequestError):
        Load(mix=ONE, **load)
    with pytest.raises(RequestError, match="beyond the deadline"):
        Load(mix=ONE, deadline_s=0.01, objective=LatencyObjective(percent=99, limit_ms=50))
