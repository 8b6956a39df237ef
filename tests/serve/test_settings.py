from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest
from live_server import LAUNCH, Backend, LiveServer, ServerProcess, free_port

import kaem
from kaem.errors import ConfigError
from serve.address import check_address, format_address
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("host", ""),
        ("port", -1),
        ("port", 65536),
        ("name", ""),
        ("name", "two\nlines"),
        ("name", "\x1b[31mred"),
        ("name", "\udcff"),
        ("name", "x" * 129),
        ("provider", "tpu"),
        ("workers", 0),
        ("workers", 100_000),
        ("max_batch", 0),
        ("max_batch", 1 << 20),
        ("max_chunk_bytes", 10),
        ("max_chunk_bytes", 4 << 20),
        ("interactive", -1),
        ("max_queue", 0),
        ("max_pending_calls", 0),
        ("max_pending_calls", (1 << 20) + 1),
        ("max_memory", 23),
        ("queue_delay", -1),
        ("queue_delay", 2_000_000),
        ("keepalive", 0.0),
        ("max_connection_age", -1.0),
        ("max_connection_grace", float("nan")),
        ("grace", -1.0),
        ("grace", float("inf")),
        ("grace", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, value):
    with pytest.raises(ConfigError):
        ServeSettings(**{setting: value})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost"])
def test_loopback_needs_no_consent(host):
    check_address(host, 0, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8"])
def test_other_addresses_do(host):
    with pytest.raises(ConfigError, match="reachable by other machines") as caught:
        check_address(host, 0, insecure=False)
    assert "--insecure" in caught.value.hint


def test_an_insecure_server_may_listen_everywhere():
    with LiveServer(Backend(), host="0.0.0.0", insecure=True) as live:
        port = live.target.rpartition(":")[2]
        assert live.target == f"grpc://0.0.0.0:{port}"
        with kaem.connect(f"127.0.0.1:{port}") as sampler:
            assert len(sampler.sample(2, 0)) == 2


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"cannot resolve host 'no\.such\.host\.invalid'"):
        check_address("no.such.host.invalid", 0, insecure=False)


def test_an_address_that_grpc_cannot_read_is_not_called_a_port_in_use():
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.1:0") as caught:
        LiveServer(Backend(), host="127.1")
    assert "write the address in full" in caught.value.hint


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_have_its_brackets(host):
    with LiveServer(Backend(), host=host) as live, kaem.connect(live.target) as sampler:
        assert live.target.startswith("grpc://[::1]:")
        assert len(sampler.sample(2, 0)) == 2


def test_an_address_of_another_machine_is_named():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        check_address("192.0.2.1", 0, insecure=True)


def test_a_port_that_anything_else_holds_is_named():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            LiveServer(Backend(), port=port)
        assert "--port" in caught.value.hint
        # Not the status of a wrong setting, after which systemd tries no more: the port may be free in a moment.
        unit = (ROOT / "deploy" / "kaem.service").read_text()
        assert f"RestartPreventExitStatus={caught.value.exit_code}" not in unit
        assert "Restart=on-failure" in unit
        assert "StartLimitIntervalSec=0" in unit


def test_a_port_taken_at_the_last_moment_is_named_too(monkeypatch):
    monkeypatch.setattr("serve.server.check_address", lambda *_, **__: None)
    with LiveServer(Backend()) as live:
        port = int(live.target.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            LiveServer(Backend(), port=port)


def test_a_port_can_be_taken_again_right_after_its_server_stopped():
    port = free_port()
    for _ in range(3):
        with LiveServer(Backend(), port=port) as live, kaem.connect(live.target) as sampler:
            sampler.sample(1, 0)


def test_ipv6_addresses_get_their_brackets():
    assert format_address("::1", 5) == "[::1]:5"
    assert format_address("localhost", 5) == "localhost:5"


def test_the_model_may_be_given_another_name():
    with LiveServer(Backend(), name="digits") as live, kaem.connect(live.target) as sampler:
        assert sampler.manifest.name == "fake"
        assert len(sampler.sample(2, 0)) == 2


def test_a_model_whose_own_name_cannot_be_offered_needs_another():
    with pytest.raises(ConfigError, match="name") as caught:
        LiveServer(Backend(name="x" * 200))
    assert "--name" in caught.value.hint
    with LiveServer(Backend(name="x" * 200), name="one") as live, kaem.connect(live.target) as sampler:
        assert len(sampler.sample(2, 0)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "\udcff"), r"cannot offer a model under the name '\\udcff'"),
        (("--name", "x" * 200), r"cannot offer a model under the name 'x{128}'"),
        (("--host", "127.1"), r"gRPC cannot listen on 127\.1:0"),
        (("--host", "0.0.0.0"), r"0\.0\.0\.0 \(0\.0\.0\.0\) is reachable by other machines"),
    ],
)
def test_the_command_says_in_two_lines_what_is_wrong(artifact_path, options, message):
    result = subprocess.run(
        [*LAUNCH, str(artifact_path), "--port", "0", *options], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()[-2:]  # gRPC may have had its say before
    assert re.match(f"error: {message}", error)
    assert hint.startswith("hint: ")


def test_the_command_reports_a_missing_model(tmp_path):
    with pytest.raises(AssertionError, match="error: no model file at"):
        ServerProcess(tmp_path / "none.onnx", "--port", "0")
