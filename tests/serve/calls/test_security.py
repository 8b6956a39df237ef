"""TLS, mTLS, tokens and their limits, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import http.client
import logging
import os
import re
from functools import partial

import grpc
import numpy as np
import pytest
from certificates import Pair
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RichStatus
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from live_server import PARTIAL, Backend, LiveServer, stub_of

import kaem
from kaem import noise
from kaem.client import Credentials
from kaem.errors import ConfigError, RemoteError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from serve import reloaded_file
from serve.calls.limits import Allowance
from serve.calls.tls import Tls
from serve.calls.tokens import Tokens, read_tokens
from serve.calls.validity import validity_of
from serve.settings import ServeSettings
from serve.statuses import RefusedError

ALICE, BOB, CAROL = "alice-" + "a" * 26, "bob-" + "b" * 28, "carol-" + "c" * 26
Code = grpc.StatusCode


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """A folder with a server's and a client's pair of one authority, and pairs of another."""
    folder = tmp_path_factory.mktemp("pems")
    authority, other = Pair("authority"), Pair("other")
    authority.write(folder, "authority")
    other.write(folder, "other")
    Pair("server", issuer=authority, hosts=("127.0.0.1",)).write(folder, "server")
    Pair("client", issuer=authority).write(folder, "client")
    Pair("stranger", issuer=other).write(folder, "stranger")
    return folder


def tls(folder, **settings):
    return {"certificate_file": str(folder / "server.crt"), "key_file": str(folder / "server.key"), **settings}


def expected(backend, seed, count):
    return backend.decode(noise.uniforms(seed, 0, count, backend.manifest.noise_dim))


def test_tls_changes_no_bit_and_serves_other_machines_without_insecure(pems):
    with LiveServer(Backend(), host="0.0.0.0", **tls(pems)) as live:
        assert live.target.startswith("grpcs://0.0.0.0:")
        target = live.target.replace("0.0.0.0", "127.0.0.1")
        with kaem.connect(target, credentials=Credentials(ca_file=pems / "authority.crt")) as sampler:
            np.testing.assert_array_equal(sampler.sample(300, 7), expected(live.backend, 7, 300))


def test_plaintext_does_not_reach_a_server_with_tls(pems):
    with LiveServer(Backend(), **tls(pems)) as live, stub_of(live.target.removeprefix("grpcs://")) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(kaem_pb2.SampleRequest(count=1), timeout=5)
        assert caught.value.code() is Code.UNAVAILABLE


def test_mtls_lets_in_who_our_authorities_vouch_for_and_the_log_says_why_not_others(pems, capfd):
    authority = pems / "authority.crt"
    with LiveServer(Backend(), **tls(pems, client_ca_file=str(authority))) as live:

        def channel(name):
            certificate, key = (
                ((pems / f"{name}.crt").read_bytes(), (pems / f"{name}.key").read_bytes()) if name else (None, None)
            )
            credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key, certificate)
            return grpc.secure_channel(
                live.target.removeprefix("grpcs://"), credentials, [("grpc.use_local_subchannel_pool", 1)]
            )

        with channel("client") as known:
            assert kaem_pb2_grpc.SamplerStub(known).Sample(kaem_pb2.SampleRequest(count=3), timeout=5).count == 3
        for name in (None, "stranger"):
            with channel(name) as unknown, pytest.raises(grpc.RpcError) as caught:
                kaem_pb2_grpc.SamplerStub(unknown).Sample(kaem_pb2.SampleRequest(count=3), timeout=5)
            assert caught.value.code() is Code.UNAVAILABLE
    log = capfd.readouterr().err  # of gRPC itself, which says it nowhere else
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in log
    assert "CERTIFICATE_VERIFY_FAILED" in log


def test_a_certificate_is_renewed_for_new_connections_while_old_ones_go_on(tmp_path, caplog):
    first, second = Pair("first authority"), Pair("second authority")
    first.write(tmp_path, "first")
    second.write(tmp_path, "second")
    Pair("server", issuer=first, hosts=("127.0.0.1",)).write(tmp_path, "server")
    trusts_first, trusts_second = (Credentials(ca_file=tmp_path / f"{name}.crt") for name in ("first", "second"))
    caplog.set_level(logging.INFO)
    with LiveServer(Backend(), **tls(tmp_path)) as live, kaem.connect(live.target, credentials=trusts_first) as old:
        (tmp_path / "server.key").write_text("half written")  # as seen in the middle of a renewal
        with kaem.connect(live.target, credentials=trusts_first) as between:
            assert len(between.sample(2, 7)) == 2
        assert "certificates not replaced" in caplog.text
        Pair("server", issuer=second, hosts=("127.0.0.1",)).write(tmp_path, "server")
        with kaem.connect(live.target, credentials=trusts_second) as new:
            np.testing.assert_array_equal(new.sample(5, 7), old.sample(5, 7))
        with pytest.raises(RemoteError, match="none of our authorities"):
            kaem.connect(live.target, credentials=trusts_first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certificate_file": "absent.crt"}, "cannot read the certificate .*absent.crt: No such file"),
        ({"key_file": "absent.key"}, "cannot read the key .*absent.key: No such file"),
        ({"key_file": "client.key"}, "server.crt and key .*client.key cannot be used together"),
        ({"certificate_file": "client.key"}, "cannot be used together"),
        ({"client_ca_file": "server.key"}, "holds no PEM certificate"),
        ({"client_ca_file": "absent.crt"}, "cannot read the client CA file"),
    ],
)
def test_certificates_that_cannot_be_used_stop_the_start_in_words(pems, change, message):
    settings = {**tls(pems), **{key: str(pems / name) for key, name in change.items()}}
    with pytest.raises(ConfigError, match=message):
        LiveServer(Backend(), **settings)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with three tokens; its file may be rewritten."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# who may\nalice {ALICE}\nbob {BOB} models=faces\n\ncarol {CAROL} rate=1000 # slow\n")
    path.chmod(0o600)
    with LiveServer(Backend(), token_file=str(path), token_concurrency=3) as live, stub_of(live.address) as stub:
        live.path, live.stub = path, stub
        yield live


def refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        list(result) if hasattr(result := call(), "__next__") else None
    metadata = {entry.key: entry.value for entry in caught.value.trailing_metadata()}
    return caught.value, metadata


def retry_s(metadata):
    """What RetryInfo says, or None without one."""
    rich = RichStatus.FromString(metadata["grpc-status-details-bin"])
    for detail in rich.details:
        info = RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return None


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (("authorization", ALICE),),
        (("authorization", f"Basic {ALICE}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        bearer(ALICE[:-1]),
        bearer(ALICE + "a"),
        bearer(ALICE.upper()),
    ],
)
def test_no_token_or_a_wrong_one_is_unauthenticated_and_nothing_is_computed(guarded, metadata):
    before = guarded.backend.rows
    error, trailing = refusal(
        lambda: guarded.stub.Sample(kaem_pb2.SampleRequest(count=2), timeout=5, metadata=metadata)
    )
    assert error.code() is Code.UNAUTHENTICATED
    assert retry_s(trailing) is None
    assert "token" in error.details()
    assert ALICE not in error.details()
    assert guarded.backend.rows == before


def test_a_known_token_is_let_in_whatever_the_case_of_its_scheme(guarded):
    for metadata in (bearer(ALICE), (("authorization", f"bearer {ALICE}"),)):
        answer = guarded.stub.Sample(kaem_pb2.SampleRequest(count=2), timeout=5, metadata=metadata)
        assert answer.count == 2


@pytest.mark.parametrize("model", ["", "fake", "no such"])
def test_a_known_token_without_leave_for_a_model_is_denied_and_learns_nothing_of_others(guarded, model):
    request = kaem_pb2.SampleRequest(count=2, model=model)
    for call in (guarded.stub.Sample, guarded.stub.StreamSamples):
        error, _ = refusal(lambda call=call: call(request, timeout=5, metadata=bearer(BOB)))
        assert error.code() is Code.PERMISSION_DENIED
        assert "'bob' may not use model" in error.details()


def test_health_needs_no_token_and_reflection_does(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == health_pb2.HealthCheckResponse.SERVING
        describe = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        error, _ = refusal(lambda: describe(iter([request]), timeout=5))
        assert error.code() is Code.UNAUTHENTICATED
        assert list(describe(iter([request]), timeout=5, metadata=bearer(ALICE)))


def test_a_token_out_of_samples_is_told_when_to_come_back_and_others_are_not_bothered(guarded):
    ask = kaem_pb2.SampleRequest(count=4000)
    stream = list(guarded.stub.StreamSamples(ask, timeout=20, metadata=bearer(CAROL)))
    assert sum(chunk.count for chunk in stream) == 4000  # never cut in its middle
    error, trailing = refusal(lambda: guarded.stub.Sample(kaem_pb2.SampleRequest(count=1), metadata=bearer(CAROL)))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "'carol' has used its 1000 samples a second" in error.details()
    assert 0.5 < retry_s(trailing) <= 3.1  # 4000 less the 1000 it had, at 1000 a second
    assert int(trailing["grpc-retry-pushback-ms"]) == round(1000 * retry_s(trailing))
    assert guarded.stub.Sample(kaem_pb2.SampleRequest(count=1), timeout=5, metadata=bearer(ALICE)).count == 1


def test_a_token_has_so_many_requests_at_a_time_and_gets_each_back(guarded):
    guarded.backend.may_run.clear()
    ask = kaem_pb2.SampleRequest(count=10)
    running = [guarded.stub.Sample.future(ask, timeout=20, metadata=bearer(ALICE)) for _ in range(3)]
    guarded.run(_until(lambda: guarded.server.gate.num_inside == 3))
    error, trailing = refusal(lambda: guarded.stub.Sample(ask, timeout=5, metadata=bearer(ALICE)))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert retry_s(trailing) > 0
    running.pop().cancel()
    guarded.run(_until(lambda: guarded.server.gate.num_inside == 2))
    running.append(guarded.stub.Sample.future(ask, timeout=20, metadata=bearer(ALICE)))
    guarded.backend.may_run.set()
    assert [call.result().count for call in running] == [10, 10, 10]


async def _until(is_true):
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.005)


def test_a_server_that_drains_sends_everybody_elsewhere_whatever_their_token_has_left(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\n")
    ask = kaem_pb2.SampleRequest
    with LiveServer(Backend(), token_file=str(path), token_concurrency=1) as live, stub_of(live.address) as stub:
        held = stub.StreamSamples(ask(count=1 << 60), timeout=60, metadata=(*bearer(ALICE), *PARTIAL))
        next(held)
        draining = live.start(live.server.drain())
        live.run(_until(lambda: live.server.gate.closed_because))
        for metadata in (bearer(ALICE), bearer(ALICE + "b"), ()):
            error, trailing = refusal(lambda m=metadata: stub.Sample(ask(count=1), timeout=20, metadata=m))
            assert error.code() is Code.UNAVAILABLE
            assert retry_s(trailing) == 0.5
        held.cancel()
        draining.result(timeout=30)


def test_tokens_are_renewed_and_revoked_without_a_restart(tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\n")
    ask = kaem_pb2.SampleRequest(count=1)
    with LiveServer(Backend(), token_file=str(path)) as live, stub_of(live.address) as stub:
        assert stub.Sample(ask, timeout=5, metadata=bearer(ALICE)).count == 1
        path.write_text(f"bob {BOB}\n")
        assert stub.Sample(ask, timeout=5, metadata=bearer(BOB)).count == 1
        assert refusal(lambda: stub.Sample(ask, timeout=5, metadata=bearer(ALICE)))[0].code() is Code.UNAUTHENTICATED
        path.write_text("bob\n")  # broken: the last good file holds
        assert stub.Sample(ask, timeout=5, metadata=bearer(BOB)).count == 1
    assert "tokens not replaced: line 1" in caplog.text
    assert BOB not in caplog.text
    assert ALICE not in caplog.text


def test_a_file_that_could_not_be_read_for_a_moment_is_read_later_without_a_change(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reloaded_file, "_RETRY_S", 0.0)
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\n")
    tokens = Tokens(path)
    path.write_text(f"bob {BOB}\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _no_descriptor)
        for _ in range(3):
            assert tokens.find(f"Bearer {ALICE}").name == "alice"  # the last good ones
    assert tokens.find(f"Bearer {BOB}").name == "bob"
    assert tokens.find(f"Bearer {ALICE}") is None
    assert caplog.text.count("tokens not replaced") == 1


def _no_descriptor(*_args, **_options):
    raise OSError(errno.EMFILE, "Too many open files")


def test_the_client_of_this_project_sends_its_token(guarded, tmp_path):
    (tmp_path / "mine").write_text(ALICE)
    with kaem.connect(guarded.target, credentials=Credentials(token_file=tmp_path / "mine")) as sampler:
        np.testing.assert_array_equal(sampler.sample(50, 3), expected(guarded.backend, 3, 50))


def test_a_token_file_that_all_can_read_is_warned_of(tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\n")
    path.chmod(0o644)
    read_tokens(path)
    assert "run chmod 600 on it" in caplog.text
    caplog.clear()
    path.chmod(0o600)
    read_tokens(path)
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token"),
        ("# alice\n", "holds no token"),
        ("alice", "line 1 of the token file .*: one word only"),
        ("alice short", "line 1 .* is not 16 or more visible ASCII"),
        ("alice caféeeeeeeeeeeeeeeeee", "is not 16 or more visible ASCII"),
        (f"a {ALICE}\na {BOB}", "line 2 .*: a second token named 'a'"),
        (f"a {ALICE}\nb {ALICE}", "line 2 .*: the token has another name already"),
        (f"a {ALICE} speed=3", "what follows the token of 'a' is not rate, concurrency, models once each"),
        (f"a {ALICE} rate", "once each"),
        (f"a {ALICE} rate=1 rate=2", "once each"),
        (f"a {ALICE} rate=fast", "rate of 'a' is 'fast'"),
        (f"a {ALICE} rate=0", "rate of 'a' is '0'"),
        (f"a {ALICE} rate=inf", "rate of 'a' is 'inf'"),
        (f"a {ALICE} concurrency=0", "concurrency of 'a' is '0'"),
        (f"a {ALICE} concurrency=1.5", "concurrency of 'a' is '1.5'"),
        (f"a {ALICE} models=,", "may use no model"),
    ],
)
def test_a_token_file_that_cannot_be_understood_is_refused_without_its_secrets(tmp_path, content, message):
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Tokens(path)
    assert ALICE not in str(caught.value)


def test_a_sign_inside_a_token_belongs_to_it_and_before_a_word_begins_a_comment(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"\ufeff# all\na {ALICE}#1 rate=5 # hers\nb {BOB}\t#x\n", "utf-8")
    tokens = Tokens(path)
    assert tokens.find(f"Bearer {ALICE}#1").name == "a"
    assert tokens.find(f"Bearer {ALICE}") is None
    assert tokens.find(f"Bearer {BOB}").name == "b"
    path.write_text(f"c #{ALICE}")
    with pytest.raises(ConfigError, match=r"line 1 .*: one word only"):
        read_tokens(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("setting", ["token_file", "certificate_file", "key_file", "client_ca_file"])
def test_a_named_pipe_is_no_file_of_a_server(tmp_path, setting):
    certificate, key = Pair("server").write(tmp_path, "server")
    os.mkfifo(tmp_path / "pipe")
    files = {"certificate_file": str(certificate), "key_file": str(key), setting: str(tmp_path / "pipe")}
    with pytest.raises(ConfigError, match="it is no regular file"):
        LiveServer(Backend(), **files)


@pytest.mark.parametrize("rate", [1e-3, 1e-9, 1e-300])
def test_a_time_that_no_message_holds_is_told_as_the_longest_that_one_does(tmp_path, rate):
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE} rate={rate}\n")
    with (
        LiveServer(Backend(), token_file=str(path), http_port=0, http_samples=True) as live,
        stub_of(live.address) as stub,
    ):
        ask = partial(stub.Sample, kaem_pb2.SampleRequest(count=1000), timeout=20, metadata=bearer(ALICE))
        ask()
        error, trailing = refusal(ask)
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert 1e5 < retry_s(trailing) < 2**31 / 1e3
        assert int(trailing["grpc-retry-pushback-ms"]) < 2**31
        connection = http.client.HTTPConnection(live.server.http_address.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/sample.png?seed=1", headers=dict(bearer(ALICE)))
            answer = connection.getresponse()
            assert (answer.status, int(answer.headers["retry-after"]) > 1e5) == (429, True)


def test_a_token_file_that_is_absent_or_binary_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the token file .*absent: No such file"):
        Tokens(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read the token file .*binary: it is not text"):
        Tokens(tmp_path / "binary")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"certificate_file": "a"}, "certificate_file is given without key_file"),
        ({"key_file": "a"}, "key_file is given without certificate_file"),
        ({"client_ca_file": "a"}, "client_ca_file is given without certificate_file"),
        ({"certificate_file": "", "key_file": "a"}, "certificate_file is empty"),
        ({"token_file": ""}, "token_file is empty"),
        ({"token_rate": 5.0}, "token_rate is given without token_file"),
        ({"token_concurrency": 5}, "token_concurrency is given without token_file"),
        ({"token_rate": 0.0, "token_file": "a"}, "token_rate is 0.0"),
        ({"token_rate": float("nan"), "token_file": "a"}, "token_rate is nan"),
        ({"token_concurrency": 0, "token_file": "a"}, "token_concurrency is 0"),
    ],
)
def test_settings_of_security_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ServeSettings(**settings)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_over_time_a_token_gets_its_rate_whatever_the_sizes_of_its_requests():
    clock, sent = Clock(), 0
    allowance = Allowance("a", clock)
    for step in range(4000):  # tries every 10 ms for 40 s
        clock.now = 100.0 + 0.01 * step
        try:
            allowance.enter(rate=50.0, concurrency=None)
        except RefusedError:
            continue
        size = (1, 7, 300)[step % 3]
        allowance.charge(size)
        allowance.leave()
        sent += size
    assert 50 * 40 - 1 <= sent <= 50 * 41 + 300  # what was saved up at first, and the last request


def test_when_the_promised_time_has_passed_the_token_is_let_in():
    clock = Clock()
    allowance = Allowance("a", clock)
    allowance.enter(rate=10.0, concurrency=None)
    allowance.charge(500)
    with pytest.raises(RefusedError) as caught:
        allowance.enter(rate=10.0, concurrency=None)
    assert caught.value.retry_after_s == pytest.approx((500 - 10 + 1) / 10)
    clock.now += caught.value.retry_after_s
    allowance.enter(rate=10.0, concurrency=None)


def test_what_a_cancelled_request_did_not_send_is_not_owed(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE} rate=100000\n")
    with LiveServer(Backend(), token_file=str(path)) as live, stub_of(live.address) as stub:
        ask = kaem_pb2.SampleRequest(count=10**9, max_chunk_rows=10)
        stream = stub.StreamSamples(ask, timeout=60, metadata=(*PARTIAL, *bearer(ALICE)))
        next(stream)
        error, _ = refusal(lambda: stub.Sample(kaem_pb2.SampleRequest(count=1), metadata=bearer(ALICE)))
        assert error.code() is Code.RESOURCE_EXHAUSTED  # all of it is owed while it runs
        stream.cancel()
        live.run(_until(lambda: not live.server.gate.num_inside))
        live.run(_until(lambda: live.server.models.get("").scheduler.num_jobs == 0))
        with kaem.connect(live.target, timeout_s=20, credentials=Credentials(token=ALICE)) as sampler:
            assert len(sampler.sample(1, 0)) == 1


@pytest.mark.parametrize(
    ("days", "said"), [(-1, "has expired on"), (3, "expires on"), (30, None), (20_000, None)], ids=str
)
@pytest.mark.parametrize("which", ["certificate_file", "client_ca_file"])
def test_a_certificate_that_clients_will_not_take_is_warned_of_once(tmp_path, caplog, days, said, which):
    bad, good = Pair("bad", hosts=("127.0.0.1",), days=days), Pair("good", hosts=("127.0.0.1",))
    certificate, key = (bad if which == "certificate_file" else good).write(tmp_path, "server")
    authority, _ = (bad if which == "client_ca_file" else good).write(tmp_path, "ca")
    files = {"certificate_file": str(certificate), "key_file": str(key), "client_ca_file": str(authority)}
    with LiveServer(Backend(), **files, http_port=0):
        pass
    path = certificate if which == "certificate_file" else authority
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (said is not None)
    if said:
        day = (bad.certificate.not_valid_after_utc).strftime("%Y-%m-%d %H:%M")
        assert f"certificate {path} {said} {day} UTC" in warnings[0]


def test_a_certificate_that_expires_or_is_renewed_while_the_server_runs_is_noticed(tmp_path, caplog):
    certificate, key = Pair("a", days=1).write(tmp_path, "server")
    tls = Tls(ServeSettings(certificate_file=str(certificate), key_file=str(key)))
    tls.grpc_credentials()
    assert caplog.text.count("expires on") == 1
    Pair("a", days=400).write(tmp_path, "server")
    for _ in range(3):
        tls._renew()
    Pair("a", days=-3).write(tmp_path, "server")
    for _ in range(3):
        tls._renew()
    assert (caplog.text.count("expires on"), caplog.text.count("has expired on")) == (1, 1)


@of_hypothesis(max_examples=30, deadline=None)
@given(days=st.integers(-59, 30_000), name=st.text("abcXYZ", min_size=1, max_size=60))
def test_dates_are_those_that_an_independent_library_reads(days, name):
    pairs = [Pair(name, days=days), Pair("other", days=days + 1)]
    validity = validity_of(b"text\n" + b"".join(pair.certificate_pem for pair in pairs))
    assert validity.begin == max(pair.certificate.not_valid_before_utc for pair in pairs)
    assert validity.end == min(pair.certificate.not_valid_after_utc for pair in pairs)


@given(content=st.binary(max_size=400))
def test_dates_that_cannot_be_read_are_no_error(content):
    validity_of(content)
    text = base64.encodebytes(content).decode()
    assert validity_of(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n".encode()) is None
