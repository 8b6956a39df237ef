"""Callers without a certificate, and callers without a token, at a server process that wants both."""

from __future__ import annotations

import ssl
from contextlib import contextmanager

import grpc
from certificates import Pair
from live_server import free_port, server_process
from scraping import Scrape

from kaem.protocol import kaem_pb2, kaem_pb2_grpc

Code = grpc.StatusCode
TOKEN = "alice-" + "a" * 26


def test_no_certificate_is_unavailable_and_a_bad_token_unauthenticated(artifact_path, tmp_path, saw):
    authority = Pair("authority")
    authority.write(tmp_path, "authority")
    Pair("stranger", issuer=Pair("other")).write(tmp_path, "stranger")
    Pair("client", issuer=authority).write(tmp_path, "client")
    certificate, key = Pair("server", issuer=authority, hosts=("127.0.0.1",)).write(tmp_path, "server")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {TOKEN}\n")
    tokens.chmod(0o600)
    http_port = free_port()
    options = ["--port", "0", "--http-port", str(http_port), "--certificate-file", str(certificate)]
    options += ["--key-file", str(key), "--client-ca-file", str(tmp_path / "authority.crt")]
    options += ["--token-file", str(tokens)]
    with server_process(artifact_path, *options) as server:

        @contextmanager
        def stub(name):
            pem = [(tmp_path / f"{name}.{kind}").read_bytes() if name else None for kind in ("key", "crt")]
            credentials = grpc.ssl_channel_credentials(authority.certificate_pem, *pem)
            address, options = server.target.removeprefix("grpcs://"), [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(address, credentials, options) as channel:
                yield kaem_pb2_grpc.SamplerStub(channel)

        def outcome(name, *metadata):
            with stub(name) as asked:
                try:
                    asked.Sample(kaem_pb2.SampleRequest(count=2), timeout=20, metadata=metadata)
                except grpc.RpcError as error:
                    return error.code()
            return Code.OK

        right = ("authorization", f"Bearer {TOKEN}")
        refused = {
            "no certificate": outcome(None, right),
            "a stranger's certificate": outcome("stranger", right),
            "no token": outcome("client"),
            "a wrong token": outcome("client", ("authorization", f"Bearer {TOKEN}b")),
        }
        assert list(refused.values()) == [Code.UNAVAILABLE] * 2 + [Code.UNAUTHENTICATED] * 2
        trusting = ssl.create_default_context(cadata=authority.certificate_pem.decode())
        assert Scrape(f"https://127.0.0.1:{http_port}", trusting)("kaem_batches_total") == 0
        assert outcome("client", right) is Code.OK
    saw("; ".join(f"{who}: {code.name}" for who, code in refused.items()) + "; nothing computed; both right: OK")
