"""A server with few descriptors and many silent connections goes on answering, and its log stays short."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from live_server import LAUNCH, free_port, stub_of

from kaem.protocol.kaem_pb2 import SampleRequest

DESCRIPTORS, CONNECTIONS = 64, 200


@contextlib.contextmanager
def small_server(path, tmp_path, *options):
    """A server that may have few descriptors, its HTTP port, and the file of its log."""
    port = free_port()
    log = tmp_path / "log"
    server = [*LAUNCH, str(path), "--port", "0", "--http-port", str(port), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *server],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    with process:
        try:
            target = process.stdout.readline().strip()
            assert target, log.read_text()
            yield target.removeprefix("grpc://"), port, log
        finally:
            process.kill()


def is_healthy(port, timeout=10):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=timeout) as answer:
        return answer.status == 200


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_silent_connections_take_no_descriptor_that_others_need(artifact_path, tmp_path, saw, which):
    with small_server(artifact_path, tmp_path) as (address, port, log), contextlib.ExitStack() as stack:
        before = len(log.read_text().splitlines())
        attacked = port if which == "http" else int(address.rpartition(":")[2])
        with stub_of(address) as stub:
            assert stub.Sample(SampleRequest(count=1), timeout=10).count == 1
            for _ in range(CONNECTIONS):
                silent = stack.enter_context(socket.socket())
                silent.settimeout(5)
                with contextlib.suppress(OSError):  # turned away
                    silent.connect(("127.0.0.1", attacked))
            until, rounds = time.monotonic() + 3, 0
            while time.monotonic() < until:
                assert is_healthy(port)
                assert stub.Sample(SampleRequest(count=1), timeout=10).count == 1  # on a connection that it had
                rounds += 1
            if which == "http":
                with stub_of(address) as newcomer:
                    assert newcomer.Sample(SampleRequest(count=1), timeout=10).count == 1
        lines = log.read_text().splitlines()[before:]
        assert len(lines) < 20, lines[:20]
        assert "Traceback" not in log.read_text()
        if which == "http":
            assert sum("its limit: silent ones are closed" in line for line in lines) == 1
    saw(
        f"{DESCRIPTORS} descriptors, {CONNECTIONS} silent connections on the {which} port: {rounds} rounds of /healthz "
        f"and a sample in 3 s, {len(lines)} lines in the log"
    )


def test_a_server_takes_all_descriptors_that_it_may_have(artifact_path):
    code = (
        "import pathlib, resource, sys; from serve.server import run; from serve.settings import ServeSettings\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))\n"
        "told = lambda address: print(resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)\n"
        "run(pathlib.Path(sys.argv[1]), ServeSettings(port=0), on_serving=told)"
    )
    with subprocess.Popen([sys.executable, "-c", code, artifact_path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().strip() == "(500, 500)"
        finally:
            process.kill()
