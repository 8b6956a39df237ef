"""TLS, mTLS and tokens against a real gRPC server, and words that say what was wrong."""

from __future__ import annotations

import asyncio
from concurrent import futures

import grpc
import numpy as np
import pytest
from certificates import Pair
from scripted_server import Script, Scripted, right

import kaem
from kaem.client import Credentials
from kaem.client.addresses import parse_targets
from kaem.errors import ConfigError, KaemError, RemoteError
from kaem.protocol import kaem_pb2_grpc

TOKEN = "s3cret.token"  # noqa: S105  # only of this test


class Doorkeeper(grpc.ServerInterceptor):
    """Lets calls with the right token in."""

    def intercept_service(self, continuation, details):
        if ("authorization", f"Bearer {TOKEN}") in details.invocation_metadata:
            return continuation(details)

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return grpc.unary_unary_rpc_method_handler(refuse)


class Files:
    def __init__(self, folder):
        authority, other = Pair("authority"), Pair("other")
        self.folder = folder
        self.authority, _ = authority.write(folder, "authority")
        self.other, _ = other.write(folder, "other")
        self.client = Pair("client", issuer=authority).write(folder, "client")
        self.stranger = Pair("client", issuer=other).write(folder, "stranger")
        self.pairs = {
            "good": Pair("server", issuer=authority, hosts=("127.0.0.1",)),
            "named": Pair("server", issuer=authority, hosts=("kaem.example",)),
            "expired": Pair("server", issuer=authority, hosts=("127.0.0.1",), days=-1),
        }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("pems"))


@pytest.fixture(scope="module")
def start(files):
    """Start one server of each kind, once; return its target."""
    running = {}

    def start_(kind, *, demands_certificate=False, demands_token=False):
        key = (kind, demands_certificate, demands_token)
        if key not in running:
            doors = [Doorkeeper()] if demands_token else []
            server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=doors)
            kaem_pb2_grpc.add_SamplerServicer_to_server(Scripted(), server)
            if kind == "plain":
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                pair = files.pairs[kind]
                authority = files.authority.read_bytes() if demands_certificate else None
                credentials = grpc.ssl_server_credentials(
                    [(pair.key_pem, pair.certificate_pem)], authority, demands_certificate
                )
                port = server.add_secure_port("127.0.0.1:0", credentials)
            server.start()
            running[key] = server, port
        return f"grpcs://127.0.0.1:{running[key][1]}"

    yield start_
    for server, _ in running.values():
        server.stop(0).wait()


def test_tls_changes_no_bit_for_threads_and_for_asyncio(files, start):
    target, credentials = start("good"), Credentials(ca_file=files.authority)
    with kaem.connect(target, credentials=credentials) as sampler:
        np.testing.assert_array_equal(sampler.sample(500, 7), right(500))

    async def ask():
        async with kaem.connect_async(target, credentials=credentials) as sampler:
            return await sampler.sample(500, 7)

    np.testing.assert_array_equal(asyncio.run(ask()), right(500))


def test_a_client_certificate_opens_a_server_that_demands_one(files, start):
    certificate, key = files.client
    credentials = Credentials(ca_file=str(files.authority), certificate_file=str(certificate), key_file=str(key))
    with kaem.connect(start("good", demands_certificate=True), credentials=credentials) as sampler:
        assert len(sampler.sample(3, 7)) == 3


def test_the_name_in_the_certificate_may_be_given(files, start):
    credentials = Credentials(ca_file=files.authority, server_name="kaem.example")
    with kaem.connect(start("named"), credentials=credentials) as sampler:
        assert len(sampler.sample(3, 7)) == 3


@pytest.mark.parametrize(
    ("kind", "ca", "message"),
    [
        ("good", "other", "has a certificate that none of our authorities vouches for"),
        ("good", None, "has a certificate that none of our authorities vouches for"),
        ("named", "authority", "has a certificate for another name"),
        ("expired", "authority", "has a certificate that has expired"),
        ("plain", "authority", "does not speak TLS"),
    ],
)
def test_a_failed_handshake_is_said_at_once_and_in_words(files, start, kind, ca, message):
    credentials = Credentials(ca_file=getattr(files, ca) if ca else None)
    with pytest.raises(RemoteError, match=message) as caught:
        kaem.connect(start(kind), timeout_s=60, credentials=credentials)  # far longer than any test may take
    assert caught.value.hint


@pytest.mark.parametrize("shown", [None, "stranger"])
def test_a_server_that_wants_another_client_certificate_is_suspected_of_it(files, start, shown):
    certificate, key = getattr(files, shown) if shown else (None, None)
    credentials = Credentials(ca_file=files.authority, certificate_file=certificate, key_file=key)
    with pytest.raises(RemoteError, match="no kaem server answered") as caught:
        kaem.connect(start("good", demands_certificate=True), timeout_s=0.5, credentials=credentials)
    assert caught.value.hint == "does it demand a client certificate?"


def test_a_plain_client_is_told_of_tls(start):
    with pytest.raises(RemoteError, match="Socket closed") as caught:
        kaem.connect(start("good").replace("grpcs", "grpc"), timeout_s=0.5)
    assert "write grpcs://" in caught.value.hint


def test_a_token_comes_from_a_file_that_may_change_or_from_the_environment(files, start, monkeypatch):
    path = files.folder / "token"
    path.write_text(f"{TOKEN}\n")
    target = start("good", demands_token=True)
    with kaem.connect(target, credentials=Credentials(ca_file=files.authority, token_file=path)) as sampler:
        assert len(sampler.sample(3, 7)) == 3
        path.write_text("revoked")
        with pytest.raises(RemoteError, match="did not accept the token: who are you") as caught:
            sampler.sample(3, 7)
        assert "KAEM_TOKEN" in caught.value.hint
        path.write_text(TOKEN)
        assert len(sampler.sample(300, 7)) == 300
    monkeypatch.setenv("KAEM_CA_FILE", str(files.authority))
    monkeypatch.setenv("KAEM_TOKEN", TOKEN)
    with kaem.connect(target) as sampler:
        assert len(sampler.sample(3, 7)) == 3
    monkeypatch.setenv("KAEM_TOKEN", "wrong")
    with pytest.raises(RemoteError, match="did not accept the token"):
        kaem.connect(target, timeout_s=60)


def test_a_token_never_leaves_the_machine_in_the_clear():
    for target in ("grpc://example.org:1", "10.0.0.1:1", "grpc://[2001:db8::1]:1"):
        with pytest.raises(ConfigError, match="would travel unencrypted"):
            kaem.connect(target, credentials=Credentials(token=TOKEN))
    with Script() as (sampler, _):
        address = sampler._plan.targets[0].address
        with kaem.connect(address, credentials=Credentials(token=TOKEN)) as again:
            assert len(again.sample(3, 7)) == 3


def test_a_token_is_never_shown():
    assert TOKEN not in repr(Credentials(token=TOKEN))
    with pytest.raises(ConfigError) as caught:
        Credentials(token=f"{TOKEN} {TOKEN}")
    assert TOKEN not in str(caught.value)


def broken(files, name):
    certificate, key = files.client
    _, other_key = files.stranger
    empty = files.folder / "empty"
    empty.write_text("")
    return {
        "no such file": {"ca_file": files.folder / "nowhere.pem"},
        "a folder": {"ca_file": files.folder},
        "holds no PEM certificate": {"ca_file": key},
        "only a client certificate is given": {"certificate_file": certificate},
        "only a client key is given": {"key_file": key},
        "cannot be used together": {"certificate_file": certificate, "key_file": other_key},
        "a token and a token file are given": {"token": "a", "token_file": empty},
        "is no bearer token": {"token_file": empty},
        "cannot read the token file": {"token_file": files.folder / "nowhere"},
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such file", "cannot read the CA file .*nowhere.pem: No such file"),
        ("a folder", "cannot read the CA file .*: Is a directory"),
        ("holds no PEM certificate", None),
        ("only a client certificate is given", None),
        ("only a client key is given", None),
        ("cannot be used together", None),
        ("a token and a token file are given", None),
        ("is no bearer token", None),
        ("cannot read the token file", None),
    ],
)
def test_credentials_that_cannot_be_used_are_refused_before_anything_is_sent(files, name, message):
    with pytest.raises(KaemError, match=message or name) as caught:
        kaem.connect("grpcs://127.0.0.1:1", credentials=Credentials(**broken(files, name)))
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [
        ("grpc://localhost:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_what_stays_on_this_machine_is_known(text, is_loopback):
    assert parse_targets(text)[0].is_loopback is is_loopback
