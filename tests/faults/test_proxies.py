"""Servers behind real proxies: the same images, and streams that survive the death of the server that sent them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest
from live_server import ServerProcess, free_port
from proxies import FILES, SOURCES, program_of, proxy_process
from scraping import Scrape

import kaem
from kaem import noise
from kaem.errors import RequestError

SEED, NUM = 11, 100_000


class Pair:
    """Two servers of one model on ports that stay theirs."""

    def __init__(self, path):
        self.path = path
        self.ports = (free_port(), free_port())
        self.http_ports = (free_port(), free_port())
        self.servers = [None, None]

    def start(self, which):
        ports = ("--port", str(self.ports[which]), "--http-port", str(self.http_ports[which]))
        self.servers[which] = ServerProcess(self.path, *ports, "--workers", "1", "--max-batch", "64")

    def kill(self, which):
        server, self.servers[which] = self.servers[which], None
        server.kill()
        server.process.stdout.close()
        server.process.stderr.close()

    def sender(self):
        """Which of the two sends a stream."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for which, port in enumerate(self.http_ports):
                if Scrape(f"http://127.0.0.1:{port}")("kaem_inflight_streams"):
                    return which
        raise AssertionError("no stream is being answered")


@pytest.fixture(scope="module")
def pair(artifact_path):
    both = Pair(artifact_path)
    try:
        for which in (0, 1):
            both.start(which)
        yield both
    finally:
        for which in (0, 1):
            if both.servers[which] is not None:
                both.kill(which)


@pytest.fixture(scope="module", params=FILES)
def address(request, pair, tmp_path_factory):
    """Of a proxy in front of the pair."""
    if program_of(request.param) is None:
        pytest.skip(f"{request.param} is not installed: {SOURCES[request.param]}")
    with proxy_process(request.param, pair.ports, tmp_path_factory.mktemp(request.param)) as target:
        yield target


@pytest.fixture(autouse=True)
def heal(pair):
    """Whatever a test leaves behind, the next one has both servers."""
    for which in (0, 1):
        if pair.servers[which] is None:
            pair.start(which)


@pytest.fixture(scope="module")
def expected(artifact_path):
    with kaem.load(artifact_path) as local:
        return local.sample(NUM, SEED)


def test_images_are_those_of_a_local_sampler(address, artifact_path, expected):
    uniform = noise.uniforms(3, 0, 300, 5)
    with kaem.load(artifact_path) as local, kaem.connect(address) as sampler:
        np.testing.assert_array_equal(sampler.sample(16, SEED), expected[:16])
        np.testing.assert_array_equal(sampler.sample(20_000, SEED), expected[:20_000])
        np.testing.assert_array_equal(sampler.decode(uniform), local.decode(uniform))


def test_errors_of_a_server_stay_its_own(address):
    with pytest.raises(RequestError, match="nobody"):
        kaem.connect(address, model="nobody", timeout_s=60)


def test_a_stream_survives_the_server_that_sent_it(address, pair, expected):
    with kaem.connect(address) as sampler:
        stream = sampler.stream(NUM, SEED)
        parts = [next(stream).images for _ in range(2)]
        lost = pair.sender()
        pair.kill(lost)
        parts += [chunk.images for chunk in stream]
        pair.start(lost)
    assert np.concatenate(parts).tobytes() == expected.tobytes()


def test_an_asynchronous_stream_survives_a_time_without_any_server(address, pair, expected):
    async def ask():
        async with kaem.connect_async(address) as sampler, contextlib.aclosing(sampler.stream(NUM, SEED)) as stream:
            parts = [(await anext(stream)).images for _ in range(2)]
            for which in (0, 1):
                pair.kill(which)
            rest = asyncio.create_task(gather(stream))
            for which in (0, 1):
                await asyncio.to_thread(pair.start, which)
            return np.concatenate([*parts, await rest])

    async def gather(stream):
        return np.concatenate([chunk.images async for chunk in stream])

    assert asyncio.run(ask()).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("envoy", {"timeout: 0s}": "timeout: 0.4s}"}),
        ("nginx", {"grpc_read_timeout 1h": "grpc_read_timeout 1s", "grpc_send_timeout 1h": "grpc_send_timeout 1s"}),
        ("haproxy", {"timeout client 1h": "timeout client 1s", "timeout server 1h": "timeout server 1s"}),
    ],
)
def test_a_proxy_with_less_patience_than_a_stream_needs_costs_time_and_no_bit(kind, changes, pair, expected, tmp_path):
    if program_of(kind) is None:
        pytest.skip(f"{kind} is not installed: {SOURCES[kind]}")
    with proxy_process(kind, pair.ports, tmp_path, changes) as target, kaem.connect(target) as sampler:
        parts = []
        for number, chunk in enumerate(sampler.stream(NUM, SEED)):
            if number == 3:
                time.sleep(2.5)  # longer than the proxy allows
            parts.append(chunk.images)
    assert np.concatenate(parts).tobytes() == expected.tobytes()
