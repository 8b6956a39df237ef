"""Hostile, hasty, dying and slow clients against one server process, which must come out of it as it went in."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from live_server import PARTIAL, server_process, stub_of

import kaem
from kaem.protocol import kaem_pb2

Code = grpc.StatusCode
SampleRequest = kaem_pb2.SampleRequest
SERVICES = {"kaem.v1.Sampler", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


@pytest.fixture(scope="module")
def stub(monitored):
    with stub_of(monitored.address) as stub:
        yield stub


@pytest.fixture(autouse=True)
def _is_well_afterwards(monitored, stub):
    yield
    assert monitored.server.process.poll() is None
    with grpc.insecure_channel(monitored.address) as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    _wait_until(lambda: monitored.metric("kaem_inflight_streams") == 0)


def _wait_until(is_so, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        answer = call()
        list(answer if hasattr(answer, "__next__") else [answer])
    return caught.value


def _methods(channel):
    """Yield (path, kind) of every method that reflection describes."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    for service in database.get_services():
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", KINDS[method.client_streaming, method.server_streaming]


def test_reflection_describes_every_service_and_garbage_is_internal_in_each_of_their_methods(monitored, saw):
    with grpc.insecure_channel(monitored.address) as channel:
        methods = dict(_methods(channel))
        assert {path.split("/")[1] for path in methods} >= SERVICES
        for path, kind in methods.items():
            garbage = b"\xff\xff\xff\xff"
            call = getattr(channel, kind)(path)
            error = _refusal(
                lambda c=call, k=kind, g=garbage: c(iter([g]) if k.startswith("stream") else g, timeout=20)
            )
            assert (error.code(), error.details()) == (
                Code.INTERNAL,
                "the request is not a valid protobuf message of this method",
            ), path
    saw(f"4 bytes of garbage to each of {len(methods)} methods of {len({p.split('/')[1] for p in methods})} services")


def test_a_request_of_5_mebibytes_is_refused_for_good(monitored, stub, saw):
    error = _refusal(lambda: stub.Decode(kaem_pb2.DecodeRequest(count=1, uniform=bytes(5 << 20)), timeout=20))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "grpc-status-details-bin" not in {entry.key for entry in error.trailing_metadata()}  # no RetryInfo
    saw(f"5 MiB in one message: {error.code().name}, {error.details()!r}")


def test_a_deadline_of_a_millisecond_on_a_million_samples_costs_no_batch(monitored, stub, saw):
    batches = monitored.metric("kaem_batches_total")
    took_ms, codes = [], set()
    for seed in range(20):
        began = time.perf_counter()
        error = _refusal(lambda s=seed: stub.StreamSamples(SampleRequest(seed=s, count=1_000_000), timeout=0.001))
        took_ms.append(1e3 * (time.perf_counter() - began))
        codes.add(error.code())
    assert codes <= {Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED}
    assert len(stub.Sample(SampleRequest(count=1), timeout=20).data)
    assert monitored.metric("kaem_batches_total") == batches + 1  # of the sample just now
    named = ", ".join(sorted(code.name for code in codes))
    saw(f"{named} after {np.median(took_ms):.1f} ms (median), {max(took_ms):.1f} ms at most; no batch")


def test_clients_that_are_killed_free_their_places(monitored, saw):
    code = (
        f"import kaem\nsampler = kaem.connect('grpc://{monitored.address}')\n"
        "for chunk in sampler.stream(10**12, 0): print(flush=True)"
    )
    clients = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    for client in clients:
        client.stdout.readline()
    assert monitored.metric("kaem_inflight_streams") == len(clients)
    began = time.perf_counter()
    for client in clients:
        client.kill()
    _wait_until(lambda: monitored.metric("kaem_inflight_streams") == 0)
    took_ms = 1e3 * (time.perf_counter() - began)
    for client in clients:
        client.communicate()
    saw(f"{len(clients)} clients killed in the middle of their streams; none in flight after {took_ms:.0f} ms")


@pytest.mark.parametrize("pause_s", [1.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_reader_that_pauses_holds_bounded_memory_and_others_go_on(monitored, stub, saw, pause_s):
    process = psutil.Process(monitored.server.process.pid)

    def one_sample_ms():
        began = time.perf_counter()
        stub.Sample(SampleRequest(count=1), timeout=60)
        return 1e3 * (time.perf_counter() - began)

    alone = [one_sample_ms() for _ in range(200)]
    with stub_of(monitored.address) as slow:
        paused = slow.StreamSamples(SampleRequest(count=1 << 60), timeout=600, metadata=PARTIAL)
        next(paused)
        settled = [one_sample_ms() for _ in range(50)]
        before = process.memory_info().rss
        beside, until = [], time.monotonic() + pause_s
        while time.monotonic() < until or len(beside) < 200:
            beside.append(one_sample_ms())
        grown = process.memory_info().rss - before
        paused.cancel()
    assert grown < 32 << 20  # without a bound it would be a chunk of 1 MiB every few milliseconds
    p99, alone_p99 = np.percentile(beside, 99), np.percentile(alone, 99)
    saw(
        f"reader paused {pause_s:g} s: {grown / 2**20:+.1f} MiB resident meanwhile; one sample of others p99 "
        f"{p99:.1f} ms in {len(beside)} calls, {alone_p99:.1f} ms before it ({len(settled)} calls while it filled up)"
    )


@pytest.mark.parametrize("num", [250, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_streams_at_once_are_complete_and_equal_to_a_serial_run(artifact_path, stub, saw, num):
    requests = [SampleRequest(seed=i, start_index=i * i, count=1 + i % 40, max_chunk_rows=3) for i in range(num)]
    began = time.perf_counter()
    calls = [stub.StreamSamples(request, timeout=240) for request in requests]
    results = [b""] * num

    def read(part):
        for i in part:
            results[i] = b"".join(chunk.data for chunk in calls[i])

    threads = [threading.Thread(target=read, args=(range(k, num, 8),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    with kaem.load(artifact_path) as local:
        for request, result in zip(requests, results, strict=True):
            assert result == local.sample(request.count, request.seed, request.start_index).tobytes()
    saw(f"{num} streams on one connection, {sum(map(len, results)) / 2**20:.1f} MiB, all equal, in {took_s:.2f} s")


def test_readers_of_tiny_chunks_that_never_read_hold_no_more_than_the_limit(artifact_path, saw):
    limit = 64 << 20
    options = ("--port", "0", "--max-memory", str(limit >> 20))
    with (
        server_process(artifact_path, *options) as server,
        stub_of(server.target.removeprefix("grpc://")) as stub,
    ):
        memory = psutil.Process(server.process.pid).memory_info
        stub.Sample(SampleRequest(count=4096, encoding=kaem_pb2.ENCODING_UINT8), timeout=60)
        before = memory().rss
        request = SampleRequest(count=1_000_000, max_chunk_rows=1, encoding=kaem_pb2.ENCODING_UINT8)
        streams = [stub.StreamSamples(request, timeout=120) for _ in range(24)]
        grown, calm = 0, 0
        for _ in range(60):
            time.sleep(0.25)
            now = memory().rss - before
            calm = calm + 1 if now <= grown + (1 << 20) else 0
            grown = max(grown, now)
            if calm == 8:
                break
        for stream in streams:
            stream.cancel()
    saw(f"24 streams of one image a message that nobody reads: +{grown / 2**20:.0f} MiB resident, limit 64")
    assert grown < limit
