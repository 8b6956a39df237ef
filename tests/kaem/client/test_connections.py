"""Connections that die without a word, that are tried by pings, and that servers end so that others get a share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import Backend, LiveServer

import kaem
from kaem import noise
from kaem.client import connection


class Relay:
    """Forwards TCP connections to a port, until it is told to swallow what those that are open say."""

    def __init__(self, port):
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open = []
        self._dead = set()
        self.num_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self):
        return f"grpc://127.0.0.1:{self._listening.getsockname()[1]}"

    def swallow(self):
        """From now on nothing passes on the connections that are open, and nobody is told."""
        self._dead.update(self._open)

    def _accept(self):
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self.num_connections += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            pair = (near, far)
            self._open.append(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(source, sink, pair), daemon=True).start()

    def _pump(self, source, sink, pair):
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if pair not in self._dead:
                    sink.sendall(content)
            if pair not in self._dead:
                sink.shutdown(socket.SHUT_WR)

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for pair in self._open:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


@pytest.fixture
def relayed(monkeypatch):
    """A server and a relay in front of it; clients try their connections more often than usual."""
    monkeypatch.setattr(connection, "PING_AFTER_S", 1.0)
    monkeypatch.setattr(connection, "PING_ANSWER_S", 1.0)
    with (
        LiveServer(Backend(), max_chunk_bytes=1 << 12) as live,
        contextlib.closing(Relay(int(live.address.rpartition(":")[2]))) as relay,
    ):
        yield live, relay


def right(num, seed):
    return Backend().decode(noise.uniforms(seed, 0, num, 3))


def test_a_connection_that_died_silently_is_left(relayed):
    _, relay = relayed
    with kaem.connect(relay.target) as sampler:
        np.testing.assert_array_equal(sampler.sample(4, 1), right(4, 1))
        stream = sampler.stream(30_000, 7)
        parts = [next(stream).images]
        relay.swallow()
        parts += [chunk.images for chunk in stream]
        np.testing.assert_array_equal(np.concatenate(parts), right(30_000, 7))
        np.testing.assert_array_equal(sampler.sample(4, 2), right(4, 2))
    assert relay.num_connections > 1


def test_a_connection_that_died_silently_is_left_in_an_event_loop_too(relayed):
    _, relay = relayed

    async def ask():
        async with kaem.connect_async(relay.target) as sampler:
            relay.swallow()
            return await sampler.sample(4, 1), await sampler.sample(500, 2)

    small, large = asyncio.run(ask())
    np.testing.assert_array_equal(small, right(4, 1))
    np.testing.assert_array_equal(large, right(500, 2))


def test_a_client_that_pings_often_is_not_sent_away():
    options = (
        ("grpc.keepalive_time_ms", 1200),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    with LiveServer(Backend()) as live, grpc.insecure_channel(live.address, options) as pinging:
        watch = health_pb2_grpc.HealthStub(pinging).Watch(health_pb2.HealthCheckRequest(), timeout=8)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # its own end, after six pings


@pytest.mark.parametrize("grace_s", [0.1, float("inf")])
def test_a_connection_that_is_old_is_ended_and_no_bit_changes(grace_s):
    backend = Backend(image_shape=(1, 64, 64))  # 16 KiB an image: far more than gRPC holds on its way
    with (
        LiveServer(backend, max_connection_age=0.3, max_connection_grace=grace_s) as live,
        kaem.connect(live.target) as sampler,
    ):
        parts = []
        for number, chunk in enumerate(sampler.stream(3000, 7)):
            parts.append(chunk.images)
            if number < 5:
                time.sleep(0.25)  # longer together than a connection lasts
        np.testing.assert_array_equal(np.concatenate(parts), backend.decode(noise.uniforms(7, 0, 3000, 3)))
        for seed in range(3):
            time.sleep(0.2)
            np.testing.assert_array_equal(sampler.sample(3, seed), backend.decode(noise.uniforms(seed, 0, 3, 3)))
        streams = [code for name, code in live.server.observer.ended if name.endswith("StreamSamples")]
    assert (len(streams) > 1) == (grace_s == 0.1)
