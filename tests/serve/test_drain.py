from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import PARTIAL, Backend, LiveServer, server_process, stub_of

import kaem
from kaem.engines.cpu import LocalSampler
from kaem.protocol import kaem_pb2
from serve.server import run
from serve.settings import ServeSettings

Status = health_pb2.HealthCheckResponse


def watch_of(channel):
    request = health_pb2.HealthCheckRequest(service="")
    return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60, wait_for_ready=True)


def test_draining_completes_what_runs_refuses_what_comes_and_ends_watches():
    backend = Backend()
    with (
        LiveServer(backend) as live,
        stub_of(live.address) as stub,
        grpc.insecure_channel(live.address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        watch = watch_of(channel)
        assert next(watch).status == Status.SERVING
        backend.may_run.clear()
        stream = stub.StreamSamples(kaem_pb2.SampleRequest(count=5000, max_chunk_rows=100), timeout=60)
        rows = pool.submit(lambda: sum(chunk.count for chunk in stream))
        live.run(_inside(live.server.gate, 1))
        drain = live.start(live.server.drain())
        assert next(watch).status == Status.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(kaem_pb2.SampleRequest(count=1), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in caught.value.details()
        backend.may_run.set()
        assert rows.result(timeout=30) == 5000
        drain.result(timeout=30)
        assert list(watch) == []
        assert watch.code() is grpc.StatusCode.OK


async def _inside(gate, num):
    async with asyncio.timeout(20):
        while gate.num_inside < num:
            await asyncio.sleep(0.01)


def test_calls_that_outlast_the_grace_are_cut_off(caplog):
    backend = Backend()
    with LiveServer(backend, grace=0.1) as live, stub_of(live.address) as stub:
        stream = stub.StreamSamples(kaem_pb2.SampleRequest(count=10**9), timeout=60, metadata=PARTIAL)
        next(iter(stream))
        live.run(live.server.drain())
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "1 calls did not complete in time" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_streams_complete_and_ends_the_process_despite_a_watch(artifact_path, number):
    with (
        server_process(artifact_path, "--port", "0", "--grace", "20") as server,
        grpc.insecure_channel(server.target.removeprefix("grpc://")) as channel,
        stub_of(server.target.removeprefix("grpc://")) as stub,
    ):
        watch = watch_of(channel)
        assert next(watch).status == Status.SERVING
        stream = stub.StreamSamples(kaem_pb2.SampleRequest(count=200_000), timeout=60, metadata=PARTIAL)
        rows = next(stream).count
        server.process.send_signal(number)
        began = time.monotonic()
        rows += sum(chunk.count for chunk in stream)
        assert rows == 200_000
        assert server.process.wait(timeout=15) == 0
        assert time.monotonic() - began < 15
        assert server.process.stdout.read() == ""  # the address was the only line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_server_warms_up_stops_it(artifact_path, monkeypatch, number):
    decode, sizes = LocalSampler.decode, []

    def interrupted(sampler, uniform):
        if not sizes:
            os.kill(os.getpid(), number)
        sizes.append(len(uniform))
        return decode(sampler, uniform)

    monkeypatch.setattr(LocalSampler, "decode", interrupted)
    with pytest.raises(SystemExit) as caught:
        run(artifact_path, ServeSettings(port=0), on_serving=pytest.fail)
    assert caught.value.code == 128 + number
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kaem")]


def test_a_hangup_ends_nothing_where_the_process_was_told_to_ignore_it(artifact_path):
    code = (
        "import pathlib, signal, sys; from serve.server import run; from serve.settings import ServeSettings\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        "run(pathlib.Path(sys.argv[1]), ServeSettings(port=0), on_serving=lambda address: print(address, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code, artifact_path], stdout=subprocess.PIPE, text=True) as process:
        with kaem.connect(process.stdout.readline().strip()) as sampler:
            process.send_signal(signal.SIGHUP)
            assert len(sampler.sample(2, 0)) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_a_server_whose_address_nobody_can_read_stops_itself(artifact_path):
    def fail(address):
        raise BrokenPipeError(address)

    with pytest.raises(BrokenPipeError):
        run(artifact_path, ServeSettings(port=0), on_serving=fail)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kaem")]


def _is_open(stub):
    try:
        stub.GetModel(kaem_pb2.GetModelRequest(), timeout=10)
    except grpc.RpcError:
        return False
    return True


def test_memory_of_streams_that_stalled_is_given_back(artifact_path):
    def resident_bytes():
        pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    with server_process(artifact_path, "--port", "0") as server, ExitStack() as stack:
        before = resident_bytes()
        address = server.target.removeprefix("grpc://")
        stubs = [stack.enter_context(stub_of(address)) for _ in range(40)]
        calls = [
            stub.StreamSamples(kaem_pb2.SampleRequest(count=10**12), timeout=60, metadata=PARTIAL) for stub in stubs
        ]
        for call in calls:
            next(call)
        _wait_until(lambda: resident_bytes() - before > 160 << 20)
        for call in calls:
            call.cancel()
        _wait_until(lambda: resident_bytes() - before < 80 << 20)


def _wait_until(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_signal_stops_at_once(artifact_path):
    with (
        server_process(artifact_path, "--port", "0", "--grace", "60") as server,
        stub_of(server.target.removeprefix("grpc://")) as stub,
    ):
        stream = stub.StreamSamples(kaem_pb2.SampleRequest(count=1 << 60), timeout=60, metadata=PARTIAL)
        next(stream)
        server.terminate()
        while _is_open(stub):  # until the first signal has been taken
            pass
        server.terminate()
        assert server.process.wait(timeout=10) == 0
        stream.cancel()
