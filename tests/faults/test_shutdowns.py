"""The whole shutdown has one budget, whatever hangs: a collector, a device's process, a log that nobody reads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import grpc
import psutil
import pytest
from live_server import LAUNCH, PARTIAL, server_process, stub_of

from kaem.protocol.kaem_pb2 import GetModelRequest, SampleRequest

SLACK_S = 10.0  # of a busy machine, far below what hung before


@contextmanager
def dead_collector():
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def traced(path, monkeypatch, *options):
    with dead_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        with server_process(path, "--port", "0", "--traces", *options) as server:
            yield server


def seconds_to_end(server, timeout=120):
    began = time.monotonic()
    assert server.process.wait(timeout=timeout) == 0
    return time.monotonic() - began


def workers_of(server):
    found = psutil.Process(server.process.pid).children()
    assert all("serve.devices.worker_main" in child.cmdline() for child in found)
    return found


def test_a_collector_that_never_answers_does_not_hold_up_the_end(artifact_path, monkeypatch, saw):
    with traced(artifact_path, monkeypatch, "--grace", "60") as server:
        with stub_of(server.target.removeprefix("grpc://")) as stub:
            for _ in range(5):
                stub.Sample(SampleRequest(count=1), timeout=30)
        server.terminate()
        took_s = seconds_to_end(server)
        assert took_s < SLACK_S
    saw(f"a collector that accepts and never answers: ended {took_s:.1f} s after SIGTERM (grace 60)")


@pytest.mark.parametrize("signals", [1, 2])
def test_stopped_workers_are_waited_for_no_longer_than_the_budget(artifact_path, saw, signals):
    grace_s = 4.0 if signals == 1 else 60.0
    options = ("--port", "0", "--device", "cpu,cpu", "--workers", "1", "--grace", str(grace_s))
    with server_process(artifact_path, *options) as server, stub_of(server.target.removeprefix("grpc://")) as stub:
        workers = workers_of(server)
        stream = stub.StreamSamples(SampleRequest(count=1 << 40), timeout=120, metadata=PARTIAL)
        next(stream)
        for worker in workers:
            worker.suspend()
        server.terminate()
        began = time.monotonic()
        if signals == 2:
            while _answers(stub):
                pass
            began = time.monotonic()
            server.terminate()
        took_s = seconds_to_end(server)
        assert took_s < (grace_s if signals == 1 else 0) + SLACK_S
        assert not psutil.wait_procs(workers, timeout=10)[1]
        stream.cancel()
    saw(f"two stopped workers, {signals} SIGTERM, grace {grace_s:g}: ended after {time.monotonic() - began:.1f} s")


def _answers(stub):
    try:
        stub.GetModel(GetModelRequest(), timeout=10)
    except grpc.RpcError:
        return False
    return True


HANGING = """
import pathlib, sys, threading, time
from kaem.engines.cpu import LocalSampler
from serve.server import run
from serve.settings import ServeSettings

decode, hangs = LocalSampler.decode, threading.Event()

def hang(sampler, uniform):
    if hangs.is_set():
        print("hangs", flush=True)
        time.sleep(600)
    return decode(sampler, uniform)

LocalSampler.decode = hang

def serving(address):
    print(address, flush=True)
    hangs.set()

run(pathlib.Path(sys.argv[1]), ServeSettings(port=0, grace=float(sys.argv[2])), on_serving=serving)
"""
"""A server whose batches never end, in a thread that nobody can interrupt."""


@pytest.mark.parametrize(("grace_s", "signals"), [(2.0, 1), (60.0, 2)])
def test_a_batch_that_never_ends_is_left_when_the_time_is_over(artifact_path, saw, grace_s, signals):
    command = [sys.executable, "-c", HANGING, str(artifact_path), str(grace_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with stub_of(process.stdout.readline().strip().removeprefix("grpc://")) as stub:
                call = stub.Sample.future(SampleRequest(count=1), timeout=60)
                assert process.stdout.readline() == "hangs\n"
                began = time.monotonic()
                for number in range(signals):
                    time.sleep(0.2 * number)
                    process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=60)
                took_s = time.monotonic() - began
                assert process.returncode == 0
                assert took_s < (grace_s if signals == 1 else 0.0) + SLACK_S
                assert "the shutdown is cut short" in log
                call.cancel()
        finally:
            process.kill()
    saw(f"a batch that never ends, {signals} SIGTERM, grace {grace_s:g}: ended after {took_s:.1f} s")


def test_a_server_that_is_blocked_by_its_log_stops_at_the_second_signal(artifact_path, saw):
    """A pipe that nobody reads stops the event loop itself; signals count all the same."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [*LAUNCH, str(artifact_path), "--port", "0", "--log-calls", "--grace", "60"],
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
        )
        with process, stub_of(process.stdout.readline().strip().removeprefix("grpc://")) as stub:
            try:
                with pytest.raises(grpc.RpcError):  # until the pipe is full
                    for _ in range(20_000):
                        stub.Sample(SampleRequest(count=1), timeout=3)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                assert process.wait(timeout=60) == 0
                took_s = time.monotonic() - began
                assert took_s < SLACK_S
            finally:
                process.kill()
    finally:
        os.close(reading)
        os.close(writing)
    saw(f"a log that nobody reads, two SIGTERM: ended after {took_s:.1f} s")


@pytest.mark.parametrize("grace", ["0", "0.001", "1e10", "1e300"])
def test_any_grace_is_a_time(artifact_path, grace):
    command = [*LAUNCH, str(artifact_path), "--port", "0", "--grace", grace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in log, "Error" in log) == (0, False, False)


def test_a_server_that_warms_up_a_model_which_hangs_ends_with_the_signal(artifact_path, saw):
    code = HANGING.replace("if hangs.is_set():", "if True:")
    command = [sys.executable, "-c", code, str(artifact_path), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout.readline() == "hangs\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
