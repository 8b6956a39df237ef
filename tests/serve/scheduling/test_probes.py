"""A machine that was busy while the server warmed up: what an idle server refuses for that, it finds out."""

from __future__ import annotations

import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Backend, LiveServer, stub_of
from stepped_scheduler import Stepped

from kaem.protocol import kaem_pb2
from serve.scheduling.probes import EVERY_S
from serve.statuses import RefusedError


def refused_for_ever(stepped, rows, timeout_s):
    with pytest.raises(RefusedError) as caught:
        stepped.submit(0, rows, timeout_s=timeout_s)
    return caught.value.retry_after_s is None


@given(st.integers(1, 40), st.floats(2.0, 80.0), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_price_that_was_too_high_from_the_start_is_found_out_by_an_idle_server(rows, times, lanes):
    true = Stepped(max_batch=8, seconds=lambda size: 0.002 * size, lanes=lanes)
    wrong = Stepped(max_batch=8, seconds=lambda size: 0.002 * size * times, lanes=lanes)
    wrong.seconds = true.seconds
    timeout_s = true.scheduler._estimate(0.0).alone_s(rows) * 1.001
    assert refused_for_ever(wrong, rows, timeout_s)
    assert wrong.step()
    for _ in range(4):
        wrong.clock.now += EVERY_S
        wrong.step()
    assert len(wrong.batches) <= 2  # of the largest size, and of what remains
    wrong.scheduler.remove(wrong.submit(0, rows, timeout_s=timeout_s))
    assert refused_for_ever(wrong, rows, 0.5 * timeout_s - 0.002)


def test_a_true_price_stays_and_refusals_by_the_thousand_cost_a_batch_every_two_seconds():
    stepped = Stepped(max_batch=8, seconds=lambda size: 0.01 * size)
    began = stepped.clock.now
    while stepped.clock.now < began + 10 * EVERY_S:
        assert refused_for_ever(stepped, 8, 0.05)
        stepped.step()
        stepped.clock.now += 0.01
    assert len(stepped.batches) <= 11
    assert stepped.scheduler.costs.seconds(8, is_idle=True) == pytest.approx(0.08)


def test_a_slow_probe_raises_no_price_and_nothing_is_tried_beside_work_or_without_a_refusal():
    stepped = Stepped(max_batch=8, seconds=lambda size: 0.01 * size)
    assert not stepped.step()
    stepped.seconds = lambda size: 1.0
    assert refused_for_ever(stepped, 8, 0.05)
    stepped.submit(5, 8)
    assert stepped.step()
    assert set(stepped.batches[0][:, 0]) == {5.0}  # what waits goes first
    assert stepped.step()
    assert len(stepped.batches) == 2
    assert stepped.scheduler.costs.seconds(8, is_idle=True) == pytest.approx(0.08)


def test_a_probe_that_fails_is_no_end_of_the_server():
    stepped = Stepped(max_batch=8, seconds=lambda size: 0.01 * size)
    assert refused_for_ever(stepped, 8, 0.05)

    def broken(uniform):
        raise ValueError("broken")

    assert stepped.step(broken)
    stepped.submit(5, 8)
    assert stepped.step()


class Recovering(Backend):
    """Takes a tenth of a second for each batch while something else runs on the machine."""

    is_disturbed = True

    def decode(self, uniform):
        if self.is_disturbed:
            time.sleep(0.1)
        return super().decode(uniform)


def test_a_server_that_warmed_up_on_a_busy_machine_takes_deadlines_again_once_it_is_quiet():
    backend = Recovering()
    with LiveServer(backend, max_batch=2) as live, stub_of(live.address) as stub:
        backend.is_disturbed = False
        request, until, refusals = kaem_pb2.SampleRequest(count=2), time.monotonic() + 30, 0
        while time.monotonic() < until:
            try:
                assert stub.Sample(request, timeout=0.1).count == 2
                break
            except grpc.RpcError as error:
                refusals += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                time.sleep(0.05)
        else:
            pytest.fail("it refuses for ever")
        assert refusals
