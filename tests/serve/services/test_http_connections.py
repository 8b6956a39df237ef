"""Connections to the HTTP port: how many, for how long, and of which family."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time

import pytest
from certificates import Pair
from live_server import Backend, LiveServer, free_port

from kaem.errors import ConfigError
from serve import address, descriptors
from serve.services import http_connections


@contextlib.contextmanager
def listening(**settings):
    """A server's HTTP port, and how to connect to it."""
    with LiveServer(Backend(), http_port=0, **settings) as live:
        host, _, port = live.server.http_address.partition("//")[2].rpartition(":")

        def connect():
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=20)
            return contextlib.closing(connection)

        yield live, connect


def ask(connection, path="/healthz"):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection.recv(65536).split(b"\r\n")[0]


def seconds_until_closed(connection):
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    "words",
    [b"", b"GET /healthz HTTP/1.1\r\nHost:", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", b"\r\n\r\n"],
    ids=["silent", "slow head", "slow second head", "empty lines"],
)
def test_a_request_that_does_not_come_is_not_waited_for(monkeypatch, words):
    monkeypatch.setattr(http_connections, "REQUEST_S", 0.5)
    monkeypatch.setattr(http_connections, "_LOOK_S", 0.1)
    with listening() as (_, connect), connect() as connection:
        connection.sendall(words)
        assert seconds_until_closed(connection) < 20  # not its own timeout


def test_a_head_whose_bytes_come_one_by_one_has_no_more_time_than_another(monkeypatch):
    monkeypatch.setattr(http_connections, "REQUEST_S", 0.5)
    monkeypatch.setattr(http_connections, "_LOOK_S", 0.1)
    with listening() as (_, connect), connect() as connection, pytest.raises(ConnectionError):
        for letter in b"GET /healthz HTTP/1.1\r\nHost: " + 2000 * b"x":
            connection.sendall(bytes([letter]))
            time.sleep(0.02)


def test_a_client_that_speaks_no_tls_is_not_waited_for_either(tmp_path, monkeypatch):
    monkeypatch.setattr(http_connections, "REQUEST_S", 0.5)
    authority = Pair("authority")
    certificate, key = Pair("server", issuer=authority, hosts=("127.0.0.1",)).write(tmp_path, "server")
    with listening(certificate_file=str(certificate), key_file=str(key)) as (_, connect):
        with connect() as silent:
            assert seconds_until_closed(silent) < 20
        context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
        with connect() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            assert ask(encrypted) == b"HTTP/1.1 200 OK"


def test_beyond_the_limit_whoever_is_silent_longest_makes_room(monkeypatch, caplog):
    monkeypatch.setattr(descriptors, "_MOST_HTTP", 8)
    with listening() as (live, connect), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect()) for _ in range(40)]
        for _ in range(20):
            with connect() as newcomer:
                assert ask(newcomer) == b"HTTP/1.1 200 OK"
        closed = [seconds_until_closed(connection) for connection in silent[:32]]
        assert max(closed) < 20
        assert len(live.server._http._server.server_state.connections) <= 9
    assert caplog.text.count("the HTTP port has 8 connections, its limit") == 1


class _Exhausted(socket.socket):
    """A listening socket of a process without a descriptor left, as often as it is told."""

    left = 0

    def accept(self):
        if _Exhausted.left:
            _Exhausted.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_a_missing_descriptor_is_one_line_and_the_port_answers_when_there_is_one_again(monkeypatch, caplog):
    listen = address._listen

    def exhausted(*args):
        return [_Exhausted(fileno=listener.detach()) for listener in listen(*args)]

    monkeypatch.setattr(address, "_listen", exhausted)
    with listening() as (_, connect):
        _Exhausted.left = 5
        with connect() as connection:
            assert ask(connection) == b"HTTP/1.1 200 OK"
        assert _Exhausted.left == 0
    assert caplog.text.count("no descriptor is left for a connection to the HTTP port") == 1


HAS_IPV6 = any(found[4][0] == "::1" for found in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM))


def _can_bind_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _can_bind_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(("host", "insecure"), [("::", True), ("localhost", False)])
@pytest.mark.parametrize("port", ["free", "given"])
def test_names_and_wildcards_listen_on_both_families(host, insecure, port):
    if host == "localhost" and not HAS_IPV6:
        pytest.skip("localhost has no IPv6 address here")
    chosen = 0 if port == "free" else free_port()
    with LiveServer(Backend(), http_port=chosen, http_host=host, insecure=insecure) as live:
        number = int(live.server.http_address.rpartition(":")[2])
        for family in ("127.0.0.1", "::1"):
            with contextlib.closing(socket.create_connection((family, number), timeout=20)) as connection:
                assert ask(connection) == b"HTTP/1.1 200 OK"


def test_a_name_with_an_address_that_this_machine_lacks_is_listened_on_where_it_can_be(monkeypatch):
    real = socket.getaddrinfo

    def resolved(host, port, *args, **options):
        extra = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        absent = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0))
        return [absent, extra] if host == "both" else real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    [listener] = address.listen("both", 0, backlog=1, option="http-port")
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_on_one_address_is_not_listened_on():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="in use"):
        address.listen("localhost", taken.getsockname()[1], backlog=1, option="http-port")
