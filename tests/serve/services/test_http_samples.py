"""`GET /v1/sample.png` over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import io

import numpy as np
import pytest
from live_server import Backend, LiveServer, stub_of
from PIL import Image

from kaem import noise
from kaem.errors import ConfigError
from kaem.images import contact_sheet
from kaem.protocol import kaem_pb2
from kaem.validation import NUM_INDICES
from serve.settings import ServeSettings

ALICE, BOB = "alice-" + "a" * 26, "bob-" + "b" * 28
HTTP = {"http_port": 0, "http_samples": True}


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend(image_shape=(3, 8, 6)), **HTTP) as live:
        yield live


@pytest.fixture
def get(server):
    return getter(server)


def getter(live):
    address = live.server.http_address.removeprefix("http://")

    def get(query, path="/v1/sample.png", **headers):
        connection = http.client.HTTPConnection(address, timeout=20)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request("GET", f"{path}?{query}", headers=names)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    return get


def round_pixels(file):
    return np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1)


def test_the_sheet_shows_the_samples(server, get):
    status, headers, file = get(f"seed={NUM_INDICES - 1}&start=5&n=7&scale=2")
    assert (status, headers["content-type"]) == (200, "image/png")
    images = server.backend.decode(noise.uniforms(NUM_INDICES - 1, 5, 7, 3))
    np.testing.assert_array_equal(round_pixels(file), contact_sheet(images, scale=2))


def test_without_more_than_a_seed_there_are_sixteen_that_can_be_seen(server, get):
    _, _, file = get("seed=7&model=fake")
    images = server.backend.decode(noise.uniforms(7, 0, 16, 3))
    np.testing.assert_array_equal(round_pixels(file), contact_sheet(images))


def test_what_a_browser_has_already_is_not_computed_again(server, get):
    _, headers, file = get("seed=7&n=4")
    etag, before = headers["etag"], server.backend.rows
    for known in (etag, f'"other", W/{etag}', "*"):
        status, headers, body = get("seed=7&n=4", if_none_match=known)
        assert (status, headers["etag"], body) == (304, etag, b"")
    assert server.backend.rows == before
    assert get("seed=7&n=4", if_none_match='"other"')[2] == file
    others = [
        get(query)[1]["etag"] for query in ("seed=8&n=4", "seed=7&n=5", "seed=7&n=4&start=1", "seed=7&n=4&scale=3")
    ]
    assert len({etag, *others}) == 5


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("", 400, "no seed"),
        ("seed=x", 400, "seed is 'x'"),
        ("seed=-1", 400, "seed is '-1'"),
        (f"seed={NUM_INDICES}", 400, "outside"),
        ("seed=" + "9" * 5000, 400, "seed is '999"),
        ("seed=1&n=0", 400, "n is 0, outside 1 .. 256"),
        ("seed=1&n=257", 400, "n is 257"),
        ("seed=1&scale=0", 400, "scale is 0"),
        ("seed=1&scale=1000", 400, "the sheet at most 16 MiB"),
        ("seed=1&sede=1", 400, "unknown parameter 'sede'"),
        ("seed=1&seed=2", 400, "seed is given twice"),
        (f"seed=1&n=2&start={NUM_INDICES - 1}", 400, "passes 2^64"),
        ("seed=1&model=other", 404, "no model named 'other'"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(server, get, query, status, text):
    before = server.backend.rows
    got, headers, body = get(query)
    assert got == status
    assert text in body.decode()
    assert len(headers["kaem-request-id"]) == 16
    assert headers["cache-control"] == "no-store"
    assert server.backend.rows == before


def test_a_model_that_no_png_holds_is_refused():
    with LiveServer(Backend(image_shape=(2, 4, 4)), **HTTP) as live:
        status, _, body = getter(live)("seed=1")
    assert (status, body) == (400, b"PNG holds 1 or 3 channels; images of this model have 2\n")


def test_tokens_and_their_limits_hold(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"alice {ALICE} rate=10\nbob {BOB} models=other\n")
    file.chmod(0o600)
    with LiveServer(Backend(), token_file=str(file), **HTTP) as live:
        get = getter(live)
        status, headers, body = get("seed=1")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert b"asks for a token" in body
        assert get("seed=1", authorization="Bearer no-such-token-at-all")[0] == 401
        assert get("seed=1", authorization=f"Bearer {BOB}")[0] == 403
        assert get("seed=1&n=30", authorization=f"Bearer {ALICE}")[0] == 200
        status, headers, body = get("seed=1", authorization=f"Bearer {ALICE}")
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 4
        assert b"'alice' has used its 10 samples a second" in body
        assert get("", path="/healthz")[0] == 200


def test_a_server_that_shuts_down_says_so():
    with LiveServer(Backend(), **HTTP) as live:
        live.server.gate.close("is shutting down")
        status, headers, body = getter(live)("seed=1")
    assert (status, headers["retry-after"]) == (503, "1")
    assert body == b"the server is shutting down\nhint: try again in a moment\n"


def test_a_bug_leaks_nothing_but_a_request_id(get, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("secret of the handler")

    monkeypatch.setattr("serve.services.http_samples.contact_sheet", broken)
    status, headers, body = get("seed=1&n=9")
    assert status == 500
    assert body.decode().startswith(f"internal error, request {headers['kaem-request-id']}\n")
    assert "secret of the handler" in caplog.text


def test_a_client_that_leaves_takes_its_rows_along():
    backend = Backend()
    with LiveServer(backend, **HTTP) as live:
        backend.may_run.clear()
        connection = http.client.HTTPConnection(live.server.http_address.removeprefix("http://"), timeout=20)
        connection.request("GET", "/v1/sample.png?seed=1")
        with stub_of(live.address) as stub:
            waiting = stub.Sample.future(kaem_pb2.SampleRequest(count=1), timeout=20)
            live.run(until_inside(live.server.gate, 2))
            connection.close()
            live.run(until_inside(live.server.gate, 1))
            backend.may_run.set()
            waiting.result()
        assert ("/http/sample.png", "CANCELLED") in live.server.observer.ended


async def until_inside(gate, num):
    async with asyncio.timeout(20):
        while gate.num_inside != num:
            await asyncio.sleep(0.005)


def test_it_counts_as_a_request_of_samples_in_the_metrics(server, get):
    get("seed=1&n=3")
    _, _, page = get("", path="/metrics")
    text = page.decode()
    assert 'kaem_requests_total{code="OK",method="/http/sample.png"}' in text
    assert 'grpc_method="sample.png"' in text


def test_it_is_not_there_unless_asked_for():
    with LiveServer(Backend(), http_port=0) as live:
        assert getter(live)("seed=1")[0] == 404


def test_it_is_no_way_around_client_certificates():
    files = {"certificate_file": "c", "key_file": "k", "client_ca_file": "a"}
    with pytest.raises(ConfigError, match="asks for no certificates"):
        ServeSettings(**files, **HTTP)
    assert ServeSettings(**files, **HTTP, **{"token_file": "tokens"}).http_samples
    with pytest.raises(ConfigError, match="without http_port"):
        ServeSettings(http_samples=True)
