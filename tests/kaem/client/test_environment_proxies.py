"""Proxies that the environment names: never on the way to this machine, and named where they are on another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import numpy as np
import pytest
from live_server import Backend, LiveServer

import kaem
from kaem import noise
from kaem.bench.scenarios.arrivals import Kind
from kaem.bench.scenarios.remote import Load
from kaem.bench.scenarios.remote import ServerUnderLoad as Loaded
from kaem.client.addresses import Target
from kaem.client.admin import Admin
from kaem.errors import RemoteError

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy")


@contextlib.contextmanager
def refusing_proxy():
    """A proxy that lets nothing through; yields its URL and the first lines of what it was asked."""
    asked = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(4096).split(b"\r\n")[0].decode())
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def proxy(monkeypatch):
    """What the refusing proxy was asked; every variable that gRPC knows names it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with refusing_proxy() as (url, asked):
        for name in VARIABLES[:3]:
            monkeypatch.setenv(name, url)
        yield asked


def right(num, seed):
    return Backend().decode(noise.uniforms(seed, 0, num, 3))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::ffff:127.0.0.1]"])
def test_samplers_reach_this_machine_past_any_proxy(proxy, host):
    async def ask(target):
        async with kaem.connect_async(target) as sampler:
            return await sampler.sample(4, 7)

    with LiveServer(Backend()) as live:
        target = live.target.replace("127.0.0.1", host)
        with kaem.connect(target) as sampler:
            np.testing.assert_array_equal(sampler.sample(4, 7), right(4, 7))
        np.testing.assert_array_equal(asyncio.run(ask(target)), right(4, 7))
    assert proxy == []


@pytest.mark.parametrize("kind", ["unix", "port"])
def test_an_admin_socket_is_reached_past_any_proxy(proxy, kind, tmp_path):
    address = f"unix:{tmp_path}/admin.sock"
    if kind == "port":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
    with LiveServer(Backend(), admin=address), Admin(address) as admin:
        assert [model.name for model in admin.list()] == ["fake"]
    assert proxy == []


def test_a_benchmark_reaches_this_machine_past_any_proxy(proxy):
    with LiveServer(Backend()) as live:
        [row, *_] = Loaded(live.target, seed=0).run(
            50.0, Load(mix=(Kind(name="one", images=1, share=1.0),), duration_s=0.5)
        )
    assert row.completed == row.arrivals
    assert proxy == []


def test_elsewhere_the_proxy_is_used_and_an_error_names_its_variable(proxy):
    with pytest.raises(RemoteError, match="no kaem server answered") as caught:
        kaem.connect("sampler.invalid:50051", timeout_s=0.5)
    assert set(proxy) == {"CONNECT sampler.invalid:50051 HTTP/1.1"}
    assert "grpc_proxy is set" in caught.value.hint


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY", "no_grpc_proxy"])
@pytest.mark.parametrize("value", ["sampler.invalid", "a.example,.invalid", "*", "sampler.invalid:50051"])
def test_hosts_that_no_proxy_names_are_reached_without(proxy, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RemoteError) as caught:
        kaem.connect("sampler.invalid:50051", timeout_s=0.3)
    assert proxy == []
    assert "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("unix:/run/kaem.sock", True),
        ("128.0.0.1:1", False),
        ("[::2]:1", False),
        ("[::ffff:10.0.0.1]:1", False),
        ("localhost.example:1", False),
        ("notlocalhost:1", False),
    ],
)
def test_what_is_on_this_machine(address, is_loopback, proxy):
    assert Target(address).is_loopback == is_loopback
    assert (Target(address).proxy_variable is None) == is_loopback
