"""Refusals, classes and deadlines as a client sees them: real server, real sockets."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import QuotaFailure, RequestInfo, RetryInfo
from grpc_status import rpc_status
from live_server import PARTIAL, Backend, LiveServer, stub_of

from kaem import noise
from kaem.engines.cpu import LocalSampler
from kaem.errors import BackendError
from kaem.protocol import kaem_pb2
from serve.devices.engine import Warmth, agreed, warm_up
from serve.events import Observer
from serve.scheduling.batch_costs import CostTable, power_sizes

SampleRequest = kaem_pb2.SampleRequest


class SlowBackend(Backend):
    """Takes two milliseconds a row, by its own measure of time."""

    def decode(self, uniform):
        time.sleep(2e-3 * len(uniform))
        return super().decode(uniform)


def refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def details_of(error):
    """The packed details by their kind, and the pushback."""
    status = rpc_status.from_call(error)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found = {}
    for detail in status.details:
        for kind in (RetryInfo, QuotaFailure, RequestInfo):
            if detail.Is(kind.DESCRIPTOR):
                found[kind] = kind()
                detail.Unpack(found[kind])
    metadata = {entry.key: entry.value for entry in error.trailing_metadata()}
    return found, metadata.get("grpc-retry-pushback-ms")


def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_computed():
    with LiveServer(SlowBackend(), max_batch=8) as live, stub_of(live.address) as stub:
        before = live.backend.rows
        for deadline_s in (0.5, 0.02):
            request = SampleRequest(count=1_000_000)
            error = refusal(lambda s=deadline_s, r=request: next(stub.StreamSamples(r, timeout=s)))
            found, pushback = details_of(error)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1000000 samples take about" in error.details()
            assert found[QuotaFailure].violations[0].subject == "deadline"
            assert RetryInfo not in found  # it would be refused again
            assert pushback == "-1"
        assert live.backend.rows == before


def test_a_stream_whose_beginning_is_welcome_is_let_in_and_ends_at_its_deadline():
    with LiveServer(SlowBackend(), max_batch=8) as live, stub_of(live.address) as stub:
        request = SampleRequest(count=1_000_000, max_chunk_rows=4)
        call = stub.StreamSamples(request, timeout=1.0, metadata=PARTIAL)
        rows = 0
        error = None
        try:
            for chunk in call:
                rows += chunk.count
        except grpc.RpcError as caught:
            error = caught
        assert rows > 0
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert live.run(_is_idle(live.server))


async def _is_idle(server):
    return await server.gate.wait_empty(5.0) and server.models.get("").scheduler.num_jobs == 0


def fill(live, stub, num):
    """Hold the engine, then ask for a batch that is computed and `num - 1` that wait."""
    live.backend.may_run.clear()
    calls = []
    for waiting in range(num):
        calls.append(stub.Sample.future(SampleRequest(seed=waiting, count=4), timeout=30))
        live.run(_until(lambda n=waiting: live.scheduler.num_jobs == n + 1 and live.scheduler.queue_samples == 4 * n))
    return calls


def test_a_full_queue_is_said_at_once_with_the_time_to_try_again():
    backend = Backend()
    with LiveServer(backend, max_batch=4, max_queue=8) as live, stub_of(live.address) as stub:
        calls = fill(live, stub, 3)
        error = refusal(lambda: stub.Sample(SampleRequest(count=4), timeout=30))
        found, pushback = details_of(error)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "8 samples are waiting; at most 8 may"
        assert found[QuotaFailure].violations[0].subject == "samples"
        assert int(pushback) == found[RetryInfo].retry_delay.ToMilliseconds() >= 10
        assert len(found[RequestInfo].request_id) == 16
        backend.may_run.set()
        assert [call.result().count for call in calls] == [4, 4, 4]
        assert stub.Sample(SampleRequest(count=4), timeout=30).count == 4


async def _until(is_so):
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


def test_a_stock_client_with_a_retry_policy_waits_as_it_is_told_and_then_succeeds():
    backend = Backend()
    policy = (
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "30s", '
        '"maxBackoff": "30s", "backoffMultiplier": 2, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}'
    )
    with LiveServer(backend, max_batch=4, max_queue=4) as live, stub_of(live.address) as stub:
        options = [("grpc.service_config", policy), ("grpc.use_local_subchannel_pool", 1)]
        calls = fill(live, stub, 2)
        with grpc.insecure_channel(live.address, options=options) as channel:
            method = channel.unary_unary(
                "/kaem.v1.Sampler/Sample", SampleRequest.SerializeToString, kaem_pb2.Chunk.FromString
            )
            call = method.future(SampleRequest(count=4), timeout=20)
            observed = live.run(_rejections(live.server, 1))
            backend.may_run.set()
            assert call.result().count == 4  # after its own 30 s of backoff it would have been too late
        assert observed >= 1
        assert all(call.result().count == 4 for call in calls)


async def _rejections(server, num):
    rejected = server.observer.rejected
    await _until(lambda: len(rejected) >= num)
    return len(rejected)


def test_a_deadline_behind_a_long_queue_is_refused_with_the_time_after_which_it_can_be_met():
    with LiveServer(SlowBackend(), max_batch=8) as live, stub_of(live.address) as stub:
        calls = [stub.Sample.future(SampleRequest(seed=seed, count=32), timeout=30) for seed in range(40)]
        live.run(_until(lambda: live.scheduler.num_jobs > 35))
        error = refusal(lambda: stub.Sample(SampleRequest(count=8), timeout=0.3))
        found, _ = details_of(error)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found[QuotaFailure].violations[0].subject == "deadline"
        assert found[RetryInfo].retry_delay.ToMilliseconds() > 100
        for call in calls:
            assert call.result().count == 32
        assert stub.Sample(SampleRequest(count=8), timeout=0.3).count == 8


@pytest.mark.parametrize(
    ("key", "value"), [("kaem-priority", "urgent"), ("kaem-partial", "perhaps")], ids=["priority", "partial"]
)
def test_manners_that_nobody_knows_are_refused(key, value):
    with LiveServer(Backend()) as live, stub_of(live.address) as stub:
        error = refusal(lambda: stub.Sample(SampleRequest(count=1), timeout=10, metadata=((key, value),)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{key} is '{value}'" in error.details()


@pytest.mark.parametrize(
    ("count", "metadata", "is_bulk"),
    [
        (3, (), False),
        (4, (), True),
        (4, (("kaem-priority", "interactive"),), False),
        (3, (("kaem-priority", "bulk"),), True),
    ],
)
def test_the_class_follows_from_the_number_of_samples_unless_the_call_says_otherwise(count, metadata, is_bulk):
    with LiveServer(Backend(), interactive=3) as live, stub_of(live.address) as stub:
        stub.Sample(SampleRequest(count=count), timeout=10, metadata=metadata)
        assert live.server.observer.admitted == [(is_bulk, count)]


class ByShape(Backend):
    """Computes other last bits in batches of other sizes, as kernels chosen by shape do."""

    def __init__(self, place=0.0, **options):
        super().__init__(**options)
        self.place = place

    def decode(self, uniform):
        images = super().decode(uniform) + np.float32(1e-6 * len(uniform))
        images += np.arange(len(images), dtype=np.float32)[:, None, None, None] * np.float32(self.place)
        return images


def test_an_engine_whose_bits_depend_on_the_size_runs_one_size_which_is_part_of_the_id():
    warmths = {size: warm_up(ByShape(), power_sizes(size)) for size in (8, 16)}
    assert [warmth.costs.sizes for warmth in warmths.values()] == [(8,), (16,)]
    assert len({warmth.numerics_id for warmth in warmths.values()} | {ByShape().numerics_id}) == 3
    with LiveServer(ByShape(), max_batch=8) as live, stub_of(live.address) as stub:
        chunks = [stub.Sample(SampleRequest(count=count), timeout=10) for count in (1, 3, 8, 20)]
        assert {chunk.numerics_id for chunk in chunks} == {warmths[8].numerics_id}
        first = {np.frombuffer(chunk.data, "<f4")[:4].tobytes() for chunk in chunks}
        assert len(first) == 1
        request = SampleRequest(count=1, expected_numerics_id=live.backend.numerics_id)
        assert refusal(lambda: stub.Sample(request, timeout=10)).code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_form_for_large_batches_keeps_all_sizes_that_it_runs():
    class Branched(Backend):
        def decode(self, uniform):
            return super().decode(uniform) + np.float32(1e-6 * (len(uniform) >= 4))

    warmths = {size: warm_up(Branched(), power_sizes(size)) for size in (4, 8, 16)}
    assert [warmth.costs.sizes for warmth in warmths.values()] == [(4,), (4, 8), (4, 8, 16)]
    (numerics_id,) = {warmth.numerics_id for warmth in warmths.values()}
    assert numerics_id != Branched().numerics_id
    assert warm_up(Branched(), (1, 2)).numerics_id == Branched().numerics_id


def test_a_warm_up_that_is_not_wanted_any_more_runs_no_further_size():
    backend, left = Backend(), [True, True]
    with pytest.raises(BackendError, match="not wanted any more"):
        warm_up(backend, (2, 4, 8, 16), is_wanted=lambda: bool(left) and left.pop())
    assert max(backend.batches) == 4


def test_devices_share_the_sizes_that_all_of_them_reached_at_the_pace_of_the_slowest():
    quick = Warmth(CostTable({1: 0.1, 2: 0.2, 4: 0.3}), "sha256:1")
    slow = Warmth(CostTable({1: 0.5, 2: 0.1}), "sha256:1")
    together = agreed([Backend()] * 2, [quick, slow])
    assert together.numerics_id == "sha256:1"
    assert {size: together.costs.batch_seconds(size) for size in together.costs.sizes} == {1: 0.5, 2: 0.2}


def test_devices_of_different_bits_are_refused_with_both_ids():
    one, other = Warmth(CostTable({1: 0.1}), "sha256:1"), Warmth(CostTable({1: 0.1}), "sha256:2")
    with pytest.raises(BackendError, match="sha256:1 and, on cpu, sha256:2") as caught:
        agreed([Backend()] * 3, [one, one, other])
    assert "its own server" in caught.value.hint


def test_an_engine_whose_bits_depend_on_the_place_in_a_batch_promises_rounding_only(caplog):
    backend = ByShape(place=1e-6)
    warmth = warm_up(backend, power_sizes(16))
    assert warmth.costs.sizes == power_sizes(16)
    assert warmth.numerics_id.startswith("approx:")
    assert not warmth.is_exact
    assert warm_up(ByShape(place=1e-6), power_sizes(4)).numerics_id == warmth.numerics_id
    [line] = [record.getMessage() for record in caplog.records if "begins with approx:" in record.getMessage()][:1]
    assert "images differ by up to 2.1e-05" in line  # 15 rows more, and the place of the last probe
    with LiveServer(ByShape(place=1e-6), max_batch=16) as live, stub_of(live.address) as stub:
        assert stub.Sample(SampleRequest(count=3), timeout=10).numerics_id == warmth.numerics_id


def test_an_engine_whose_runs_differ_promises_rounding_only():
    class Unrepeatable(Backend):
        provider = "cuda"

        def decode(self, uniform):
            self.runs = getattr(self, "runs", 0) + 1
            return super().decode(uniform) + np.float32(1e-6 * (self.runs % 2))

    assert warm_up(Unrepeatable(), power_sizes(16)).numerics_id.startswith("approx:")


@pytest.mark.parametrize("place", [1e-3, np.nan])
def test_an_engine_that_makes_another_image_at_another_place_is_refused(place):
    with pytest.raises(BackendError, match="another image at another place"):
        LiveServer(ByShape(place=place), max_batch=16)


def test_what_was_tried_out_is_promised_even_where_the_engine_does_not_know():
    backend = Backend()
    backend.numerics_id = "approx:1"
    assert warm_up(backend, (1, 2)).numerics_id == "sha256:1"


def test_onnx_runtime_on_a_cpu_gives_equal_bits_in_every_size_so_the_id_names_none(rgb_artifact_path):
    with LocalSampler(rgb_artifact_path, workers=2) as sampler:
        warmth = warm_up(sampler, power_sizes(64))
        assert warmth.numerics_id == sampler.numerics_id
        assert warmth.costs.sizes == power_sizes(64)
        assert all(seconds > 0 for seconds in map(warmth.costs.batch_seconds, warmth.costs.sizes))


def test_every_way_of_asking_gives_the_same_bits_at_once(artifact_path):
    """Unary calls, streams and Decode share batches with each other and with a bulk job."""
    with (
        LocalSampler(artifact_path, workers=2) as local,
        LiveServer(local, max_batch=32) as live,
        stub_of(live.address) as stub,
    ):
        bulk = stub.StreamSamples(SampleRequest(seed=5, count=1 << 40))
        next(bulk)
        calls = []
        for seed in range(30):
            uniform = noise.uniforms(seed, 7, 3, 5)
            calls.append((seed, stub.Sample.future(SampleRequest(seed=seed, start_index=7, count=3), timeout=30)))
            decode = kaem_pb2.DecodeRequest(count=3, uniform=uniform.astype("<f4").tobytes())
            calls.append((seed, stub.Decode.future(decode, timeout=30)))
        for seed, call in calls:
            assert call.result().data == local.sample(3, seed, 7).tobytes()
        bulk.cancel()


def test_calls_and_messages_are_observed():
    with LiveServer(Backend()) as live, stub_of(live.address) as stub:
        stub.Sample(SampleRequest(count=2), timeout=10)
        refusal(lambda: stub.Sample(SampleRequest(count=0), timeout=10))
        live.run(_until(lambda: len(live.server.observer.ended) == 2))
        observer = live.server.observer
        assert observer.ended == [("/kaem.v1.Sampler/Sample", "OK"), ("/kaem.v1.Sampler/Sample", "INVALID_ARGUMENT")]
        assert observer.sent == [("fake", 2)]
        assert isinstance(observer, Observer)
