"""Servers that start, are told to stop, are killed, and get files they cannot serve: each a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import onnx
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status.rpc_status import from_call
from live_server import LAUNCH, free_port, server_process, stub_of

import kaem
from kaem.protocol import kaem_pb2

Code = grpc.StatusCode
Status = health_pb2.HealthCheckResponse
SampleRequest = kaem_pb2.SampleRequest

GATED = """
import pathlib, sys
from kaem.engines.cpu import LocalSampler
from serve.server import run
from serve.settings import ServeSettings

decode = LocalSampler.decode

def gated(sampler, uniform):
    LocalSampler.decode = decode
    sys.stdin.readline()
    return decode(sampler, uniform)

LocalSampler.decode = gated
run(pathlib.Path(sys.argv[1]), ServeSettings(port=int(sys.argv[2])), on_serving=lambda address: None)
"""
"""A server that begins to warm up when it is told a line."""


def _check(channel, name=""):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status


def _watch(channel):
    request = health_pb2.HealthCheckRequest(service="")
    return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=120, wait_for_ready=True)


def _code(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def _may_retry(error):
    return any(detail.Is(RetryInfo.DESCRIPTOR) for detail in from_call(error).details)


def test_health_says_not_serving_before_the_warm_up_and_serving_after_it(artifact_path, saw):
    port = free_port()
    command = [sys.executable, "-W", "error", "-c", GATED, str(artifact_path), str(port)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        stub_of(f"127.0.0.1:{port}") as stub,
    ):
        try:
            watch = _watch(channel)
            assert next(watch).status == Status.NOT_SERVING
            assert _check(channel) == Status.NOT_SERVING
            assert _code(lambda: _check(channel, "nobody")) is Code.NOT_FOUND
            assert _code(lambda: stub.Sample(SampleRequest(count=1), timeout=20)) is Code.UNAVAILABLE
            began = time.perf_counter()
            process.stdin.write("go\n")
            process.stdin.flush()
            assert next(watch).status == Status.SERVING
            took_s = time.perf_counter() - began
            assert _check(channel) == Status.SERVING
            assert _code(lambda: _check(channel, "nobody")) is Code.NOT_FOUND
            assert stub.Sample(SampleRequest(count=3), timeout=20).count == 3
            watch.cancel()
        finally:
            process.kill()
    saw(f"NOT_SERVING, calls UNAVAILABLE; warm-up {took_s:.2f} s, then SERVING; an unknown name NOT_FOUND throughout")


class Caller:
    """Asks for one sample after the other until it is refused, then `more` times again."""

    def __init__(self, stub, more=5):
        self.stub, self.more = stub, more
        self.answered = threading.Event()
        self.errors = []
        self.num_answered = 0

    def run(self):
        while len(self.errors) < self.more:
            try:
                self.stub.Sample(SampleRequest(count=2), timeout=60)
            except grpc.RpcError as error:
                self.errors.append(error)
            else:
                assert not self.errors, "answered after a refusal"
                self.num_answered += 1
                self.answered.set()
        return self


@pytest.mark.parametrize(("num_streams", "num_callers"), [(3, 3), pytest.param(48, 16, marks=pytest.mark.soak)])
def test_sigterm_under_load_loses_no_admitted_stream(artifact_path, saw, num_streams, num_callers):
    grace_s, count = 120.0, 48_000  # 12 MB: more than the transport takes from a server whose reader waits
    with (
        server_process(artifact_path, "--port", "0", "--grace", str(grace_s)) as server,
        grpc.insecure_channel(server.target.removeprefix("grpc://")) as channel,
        stub_of(server.target.removeprefix("grpc://")) as stub,
        ThreadPoolExecutor(num_callers) as pool,
        kaem.load(artifact_path) as local,
    ):
        watch = _watch(channel)
        assert next(watch).status == Status.SERVING
        streams = [
            stub.StreamSamples(SampleRequest(seed=seed, count=count, max_chunk_rows=256), timeout=240)
            for seed in range(num_streams)
        ]
        received = [[next(stream).data] for stream in streams]
        callers = [Caller(stub) for _ in range(num_callers)]
        calling = [pool.submit(caller.run) for caller in callers]
        for caller in callers:
            assert caller.answered.wait(timeout=60)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == Status.NOT_SERVING
        refused = [error for caller in calling for error in caller.result(timeout=60).errors]
        assert {error.code() for error in refused} == {Code.UNAVAILABLE}
        assert all(_may_retry(error) for error in refused)
        for seed, (stream, parts) in enumerate(zip(streams, received, strict=True)):
            parts.extend(chunk.data for chunk in stream)
            assert b"".join(parts) == local.sample(count, seed).tobytes()
        assert list(watch) == []
        assert watch.code() is Code.OK
        assert server.process.wait(timeout=grace_s) == 0
        took_s = time.monotonic() - began
    assert took_s < grace_s
    answered = sum(caller.num_answered for caller in callers)
    saw(
        f"SIGTERM beside {num_streams} streams, {num_callers} callers and a watch: {num_streams} streams complete and "
        f"equal, {answered} calls answered before it, {len(refused)} of {len(refused)} after it UNAVAILABLE with "
        f"RetryInfo, the process ended by itself after {took_s:.2f} s (grace {grace_s:g})"
    )


def test_a_server_that_is_killed_and_started_again_continues_byte_for_byte(artifact_path, saw):
    num, seed = 40_000, 11
    with kaem.load(artifact_path) as local:
        expected = [chunk.images.tobytes() for chunk in local.stream(num, seed)]
    with server_process(artifact_path, "--port", "0") as first, kaem.connect(first.target) as sampler:
        stream = sampler.stream(num, seed)
        parts = [next(stream)]
        first.kill()
        began = time.perf_counter()
        port = first.target.rpartition(":")[2]
        with server_process(artifact_path, "--port", port) as second:
            assert second.target == first.target
            parts.extend(stream)
    took_s = time.perf_counter() - began
    assert [part.start for part in parts] == [sum(len(p.images) for p in parts[:i]) for i in range(len(parts))]
    assert b"".join(part.images.tobytes() for part in parts) == b"".join(expected)
    saw(f"kill -9 after {len(parts[0].images)} of {num} samples; resumed and byte-equal {took_s:.2f} s later")


def test_a_corrupt_model_is_refused_at_start_in_words(artifact_path, tmp_path, saw):
    whole = artifact_path.read_bytes()
    weights = next(t.raw_data for t in onnx.load(artifact_path).graph.initializer if t.name == "weight")
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "noise": bytes(range(256)) * 20,
        "weights": whole.replace(weights, weights[:500] + bytes([weights[500] ^ 64]) + weights[501:]),
        "manifest": whole.replace(b'"noise_dim":5', b'"noise_dim":6'),
        "json": whole.replace(b'"noise_dim"', b'"noise_dim!'),
    }
    running = {}
    for name, content in contents.items():
        assert content != whole
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        running[name] = subprocess.Popen(
            [*LAUNCH, str(path), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for name, process in running.items():
        out, log = process.communicate(timeout=60)
        assert process.returncode not in (0, None), name
        assert out == "", name
        assert "Traceback" not in log, name
        assert [line for line in log.splitlines() if line.startswith("error: ")], (name, log)
    saw(f"{len(contents)} damaged files ({', '.join(contents)}): each start refused with an exit status and one error")


def test_a_log_that_cannot_be_written_stops_no_call(artifact_path, saw):
    command = [*LAUNCH, str(artifact_path), "--port", "0", "--log-calls"]
    with Path("/dev/full").open("w") as full, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=full) as process:
        try:
            target = process.stdout.readline().decode().strip()
            with kaem.connect(target) as sampler, kaem.load(artifact_path) as local:
                assert sampler.sample(500, 3).tobytes() == local.sample(500, 3).tobytes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    saw("every write to the log failed (no space): started, answered 500 samples, drained with status 0")
