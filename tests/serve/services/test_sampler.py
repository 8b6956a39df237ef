from __future__ import annotations

import asyncio
import io
import subprocess
import sys

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status as RichStatus
from live_server import PARTIAL, Backend, LiveServer, stub_of
from PIL import Image

import kaem
from kaem import noise
from kaem.client import Patience, connect
from kaem.errors import BackendError, ConfigError, DataError, KaemError
from kaem.images import to_uint8
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import model_from_message
from kaem.protocol.status import details_from_error, error_from_status, metadata_from_error
from kaem.validation import NUM_INDICES

SampleRequest, DecodeRequest = kaem_pb2.SampleRequest, kaem_pb2.DecodeRequest
FLOAT32, UINT8, PNG = kaem_pb2.ENCODING_FLOAT32, kaem_pb2.ENCODING_UINT8, kaem_pb2.ENCODING_PNG


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend(image_shape=(3, 8, 8), noise_dim=5)) as live:
        yield live


@pytest.fixture(scope="module")
def stub(server):
    with stub_of(server.address) as stub:
        yield stub


def expected(backend, seed, start, count):
    return Backend.decode(backend, noise.uniforms(seed, start, count, backend.manifest.noise_dim))


def refusal(call):
    """The error of a call that must fail, and its trailing metadata."""

    def complete():
        result = call()
        return result if hasattr(result, "SerializeToString") else list(result)

    with pytest.raises(grpc.RpcError) as caught:
        complete()
    return caught.value, {entry.key: entry.value for entry in caught.value.trailing_metadata()}


def test_get_model_says_everything_a_client_needs(server, stub):
    model = model_from_message(stub.GetModel(kaem_pb2.GetModelRequest(), timeout=10), source="x")
    assert model.manifest == server.backend.manifest
    assert (model.name, model.provider, model.numerics_id) == ("fake", "cpu", server.backend.numerics_id)
    assert model.limits.max_sample_rows == (1 << 20) // (4 * 3 * 8 * 8)


@pytest.mark.parametrize("encoding", [kaem_pb2.ENCODING_UNSPECIFIED, FLOAT32])
def test_sample_answers_the_floats_of_the_sampler(server, stub, encoding):
    chunk = stub.Sample(SampleRequest(seed=7, start_index=3, count=5, encoding=encoding), timeout=10)
    assert (chunk.start_index, chunk.count, chunk.encoding, list(chunk.shape)) == (3, 5, FLOAT32, [5, 3, 8, 8])
    images = np.frombuffer(chunk.data, "<f4").reshape(chunk.shape)
    np.testing.assert_array_equal(images, expected(server.backend, 7, 3, 5))
    assert chunk.numerics_id == server.backend.numerics_id


def test_uint8_is_the_rounded_float(server, stub):
    chunk = stub.Sample(SampleRequest(seed=7, count=5, encoding=UINT8), timeout=10)
    images = np.frombuffer(chunk.data, "u1").reshape(chunk.shape)
    np.testing.assert_array_equal(images, to_uint8(expected(server.backend, 7, 0, 5)))


def test_png_holds_the_uint8_pixels(server, stub):
    chunks = list(stub.StreamSamples(SampleRequest(seed=7, count=9, encoding=PNG, max_chunk_rows=4), timeout=10))
    files = [file for chunk in chunks for file in chunk.png]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1) for file in files])
    np.testing.assert_array_equal(pixels, to_uint8(expected(server.backend, 7, 0, 9)))
    assert [chunk.data for chunk in chunks] == [b""] * 3


def test_decode_answers_the_images_of_the_rows(server, stub):
    uniform = noise.uniforms(1, 0, 6, 5)
    chunk = stub.Decode(DecodeRequest(count=6, uniform=uniform.astype("<f4").tobytes()), timeout=10)
    images = np.frombuffer(chunk.data, "<f4").reshape(chunk.shape)
    np.testing.assert_array_equal(images, expected(server.backend, 1, 0, 6))


@pytest.mark.parametrize(("encoding", "max_chunk_rows"), [(FLOAT32, 0), (FLOAT32, 10**12), (UINT8, 0), (PNG, 0)])
def test_no_chunk_is_larger_than_one_mebibyte_whatever_is_asked(stub, encoding, max_chunk_rows):
    request = SampleRequest(seed=1, count=5000, encoding=encoding, max_chunk_rows=max_chunk_rows)
    index = 0
    for chunk in stub.StreamSamples(request, timeout=30):
        assert chunk.start_index == index
        assert len(chunk.data) + sum(map(len, chunk.png)) <= 1 << 20
        assert chunk.ByteSize() <= (1 << 20) + (64 << 10)
        index += chunk.count
    assert index == 5000


def test_max_chunk_rows_is_kept(stub):
    chunks = list(stub.StreamSamples(SampleRequest(seed=1, count=10, max_chunk_rows=4), timeout=10))
    assert [(chunk.start_index, chunk.count) for chunk in chunks] == [(0, 4), (4, 4), (8, 2)]


def test_the_last_index_can_be_sampled(server, stub):
    chunk = stub.Sample(SampleRequest(seed=NUM_INDICES - 1, start_index=NUM_INDICES - 2, count=2), timeout=10)
    images = np.frombuffer(chunk.data, "<f4").reshape(chunk.shape)
    np.testing.assert_array_equal(images, expected(server.backend, NUM_INDICES - 1, NUM_INDICES - 2, 2))


@pytest.mark.parametrize(
    ("method", "request_", "code", "cls", "text"),
    [
        ("Sample", SampleRequest(), "INVALID_ARGUMENT", "RequestError", "num is 0"),
        ("StreamSamples", SampleRequest(), "INVALID_ARGUMENT", "RequestError", "num is 0"),
        ("Sample", SampleRequest(count=1, encoding=9), "INVALID_ARGUMENT", "RequestError", "encoding 9"),
        ("Sample", SampleRequest(count=1, model="other"), "NOT_FOUND", "RequestError", "no model named 'other'"),
        ("GetModel", kaem_pb2.GetModelRequest(model="x"), "NOT_FOUND", "RequestError", "no model named 'x'"),
        (
            "StreamSamples",
            SampleRequest(count=2, start_index=NUM_INDICES - 1),
            "OUT_OF_RANGE",
            "RequestError",
            "passes 2^64",
        ),
        ("Sample", SampleRequest(count=10**6), "RESOURCE_EXHAUSTED", "RequestError", "do not fit in one message"),
        (
            "Sample",
            SampleRequest(count=1, expected_numerics_id="sha256:0"),
            "FAILED_PRECONDITION",
            "RemoteError",
            "sha256:0 is expected",
        ),
        (
            "StreamSamples",
            SampleRequest(count=10**6, start_index=99, expected_numerics_id="sha256:0"),
            "FAILED_PRECONDITION",
            "RemoteError",
            "sha256:0 is expected",
        ),
        (
            "Decode",
            DecodeRequest(count=1, uniform=np.zeros(5, "<f4").tobytes(), expected_numerics_id="sha256:0"),
            "FAILED_PRECONDITION",
            "RemoteError",
            "sha256:0 is expected",
        ),
        ("Decode", DecodeRequest(), "INVALID_ARGUMENT", "RequestError", "count is 0"),
        ("Decode", DecodeRequest(count=1, uniform=b"123"), "INVALID_ARGUMENT", "RequestError", "has 3 bytes"),
        (
            "Decode",
            DecodeRequest(count=1, uniform=np.full(5, np.nan, "<f4").tobytes()),
            "INVALID_ARGUMENT",
            "RequestError",
            "a uniform is nan",
        ),
        (
            "Decode",
            DecodeRequest(count=1500, uniform=noise.uniforms(0, 0, 1500, 5).tobytes()),
            "RESOURCE_EXHAUSTED",
            "RequestError",
            "do not fit in one message",
        ),
        ("Decode", DecodeRequest(count=1, uniform=bytes(5 << 20)), "RESOURCE_EXHAUSTED", None, "larger than max"),
    ],
)
def test_a_wrong_request_gets_its_status_and_names_the_value(stub, method, request_, code, cls, text):
    error, metadata = refusal(lambda: getattr(stub, method)(request_, timeout=10))
    assert error.code().name == code
    assert text in error.details()
    assert metadata.get("kaem-error") == cls
    assert (cls is None) or len(metadata["kaem-request-id"]) == 16


@pytest.mark.parametrize(
    ("method", "request_", "metadata", "field"),
    [
        ("Sample", SampleRequest(), (), "count"),
        ("StreamSamples", SampleRequest(), (), "count"),
        ("Sample", SampleRequest(count=1, encoding=9), (), "encoding"),
        ("Decode", DecodeRequest(count=1, encoding=9), (), "encoding"),
        ("Decode", DecodeRequest(), (), "count"),
        ("Decode", DecodeRequest(count=1, uniform=b"123"), (), "uniform"),
        ("Decode", DecodeRequest(count=1, uniform=np.full(5, 2, "<f4").tobytes()), (), "uniform"),
        ("Sample", SampleRequest(count=1), (("kaem-priority", "high"),), "kaem-priority"),
        ("StreamSamples", SampleRequest(count=1), (("kaem-partial", "maybe"),), "kaem-partial"),
        ("Sample", SampleRequest(count=1, model="other"), (), "model"),
        ("GetModel", kaem_pb2.GetModelRequest(model="other"), (), "model"),
        ("Sample", SampleRequest(count=2, start_index=NUM_INDICES - 1), (), "count"),
        ("Sample", SampleRequest(count=1, expected_numerics_id="sha256:0"), (), "expected_numerics_id"),
    ],
)
def test_a_wrong_request_names_the_field_to_blame(stub, method, request_, metadata, field):
    error, trailing = refusal(lambda: getattr(stub, method)(request_, timeout=10, metadata=metadata))
    violations = []
    for detail in RichStatus.FromString(trailing["grpc-status-details-bin"]).details:
        told = BadRequest()
        if detail.Unpack(told):
            violations += [(violation.field, violation.description) for violation in told.field_violations]
    assert violations == [(field, error.details())]


def test_a_model_with_two_channels_has_no_png():
    with LiveServer(Backend(image_shape=(2, 4, 4))) as live, stub_of(live.address) as stub:
        error, _ = refusal(lambda: stub.Sample(SampleRequest(count=1, encoding=PNG), timeout=10))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_uint8_model_answers_uint8_and_refuses_floats():
    with LiveServer(Backend(image_type="uint8")) as live, stub_of(live.address) as stub:
        chunk = stub.Sample(SampleRequest(count=3), timeout=10)
        images = np.frombuffer(chunk.data, "u1").reshape(chunk.shape)
        np.testing.assert_array_equal(images, expected(live.backend, 0, 0, 3))
        error, _ = refusal(lambda: stub.Sample(SampleRequest(count=1, encoding=FLOAT32), timeout=10))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("/kaem.v1.Sampler/Sample", "unary_unary"),
        ("/kaem.v1.Sampler/StreamSamples", "unary_stream"),
        ("/kaem.v1.Sampler/Decode", "unary_unary"),
        ("/kaem.v1.Sampler/GetModel", "unary_unary"),
        ("/grpc.health.v1.Health/Check", "unary_unary"),
        ("/grpc.health.v1.Health/Watch", "unary_stream"),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "stream_stream"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream"),
    ],
)
def test_bytes_that_are_no_message_get_a_fixed_text(server, method, kind):
    garbage = b"\xff\xff\xff\xff"
    with grpc.insecure_channel(server.address) as channel:
        call = getattr(channel, kind)(method)
        error, _ = refusal(lambda: call(iter([garbage]) if kind == "stream_stream" else garbage, timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "the request is not a valid protobuf message of this method"


def test_an_unknown_method_is_unimplemented(server):
    with grpc.insecure_channel(server.address) as channel:
        error, _ = refusal(lambda: channel.unary_unary("/kaem.v1.Sampler/Nonsense")(b"", timeout=10))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_bug_leaks_nothing_but_a_request_id_that_the_log_knows(server, stub, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("secret of the handler")

    monkeypatch.setattr("serve.services.sampler.rows_per_chunk", broken)
    error, metadata = refusal(lambda: stub.Sample(SampleRequest(count=1), timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == f"internal error, request {metadata['kaem-request-id']}"
    assert "secret" not in str(metadata)
    assert "secret of the handler" in caplog.text
    assert metadata["kaem-request-id"] in caplog.text


def test_a_broken_backend_answers_internal_without_its_own_words(caplog):
    with LiveServer(Backend()) as live, stub_of(live.address) as stub:
        live.backend.error = ValueError("secret of the backend")
        error, metadata = refusal(lambda: stub.StreamSamples(SampleRequest(count=5), timeout=10))
        assert (error.code(), metadata["kaem-error"]) == (grpc.StatusCode.INTERNAL, "BackendError")
        assert "secret" not in error.details()
        live.backend.error = None
        assert stub.Sample(SampleRequest(count=2), timeout=10).count == 2
    assert "secret of the backend" in caplog.text


def _subclasses(cls):
    return {cls}.union(*(_subclasses(child) for child in cls.__subclasses__()))


@pytest.mark.parametrize("cls", sorted(_subclasses(KaemError), key=lambda cls: cls.__name__))
def test_every_error_class_survives_the_trip_with_its_hint(server, stub, monkeypatch, cls):
    def refuse(*_, **__):
        raise cls("Größe 7 ist falsch", hint="nimm 8 – oder 9")

    monkeypatch.setattr("serve.services.sampler.check_range", refuse)
    error, _ = refusal(lambda: stub.Sample(SampleRequest(count=1), timeout=10))
    assert error.code().name == cls.grpc_status
    with connect(server.target, patience=Patience(attempts=1)) as sampler, pytest.raises(KaemError) as caught:
        sampler.sample(1, 0)
    assert type(caught.value) is cls
    assert (caught.value.message, caught.value.hint) == ("Größe 7 ist falsch", "nimm 8 – oder 9")


def test_a_subclass_of_our_errors_travels_as_the_class_a_client_knows():
    class SpecialError(DataError):
        pass

    error = SpecialError("x" * 5000, hint="h")
    back = error_from_status("INTERNAL", details_from_error(error), metadata_from_error(error), source="s")
    assert type(back) is DataError
    assert len(back.message) == 1000


def test_an_image_of_more_than_a_chunk_travels_alone():
    with LiveServer(Backend(image_shape=(3, 400, 400))) as live, stub_of(live.address) as stub:
        chunks = list(stub.StreamSamples(SampleRequest(count=3), timeout=30))
        assert [chunk.count for chunk in chunks] == [1, 1, 1]
        assert len(chunks[0].data) == 3 * 400 * 400 * 4 > 1 << 20
        with kaem.connect(live.target) as sampler:
            np.testing.assert_array_equal(sampler.sample(3, 0), expected(live.backend, 0, 0, 3))


def test_an_image_that_no_message_holds_is_refused_at_start():
    with pytest.raises(KaemError, match="one image of model 'fake' takes 4194304 bytes") as caught:
        LiveServer(Backend(image_shape=(1, 1024, 1024)))
    assert "kaem sample" in caught.value.hint


def test_a_model_that_does_not_run_is_refused_at_start():
    backend = Backend()
    backend.error = BackendError("no such kernel")
    with pytest.raises(BackendError, match="no such kernel"):
        LiveServer(backend)


def test_a_row_of_uniforms_larger_than_a_default_message_can_be_decoded():
    backend = Backend(noise_dim=1 << 20)
    with LiveServer(backend, max_batch=2) as live, kaem.connect(live.target) as sampler:
        uniform = noise.uniforms(0, 0, 2, 1 << 20)
        np.testing.assert_array_equal(sampler.decode(uniform), Backend.decode(backend, uniform))


def test_a_deadline_ends_a_call_and_its_work():
    backend = Backend()
    with LiveServer(backend) as live, stub_of(live.address) as stub:
        backend.may_run.clear()
        error, _ = refusal(lambda: stub.Sample(SampleRequest(count=1), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert live.run(_is_idle(live.server))
        backend.may_run.set()


async def _is_idle(server):
    return await server.gate.wait_empty(5.0) and server.models.get("").scheduler.num_jobs == 0


def test_cancelling_a_stream_ends_its_work():
    backend = Backend()
    with LiveServer(backend) as live, stub_of(live.address) as stub:
        call = stub.StreamSamples(SampleRequest(count=10**12), timeout=60, metadata=PARTIAL)
        next(iter(call))
        call.cancel()
        assert live.run(_is_idle(live.server))
        before = stub.Sample(SampleRequest(count=1), timeout=10) and backend.rows
        stub.Sample(SampleRequest(count=1), timeout=10)
        assert backend.rows == before + 1


def test_a_client_that_is_killed_frees_its_place_and_is_no_error(caplog):
    with LiveServer(Backend()) as live:
        code = f"import kaem\nfor chunk in kaem.connect({live.target!r}).stream(10**12, 0): print(flush=True)"
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as client:
                client.stdout.readline()
                assert live.server.gate.num_inside == 1
                client.kill()
                assert live.run(_is_idle(live.server))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_a_reader_that_stops_holds_bounded_memory_and_slows_nobody():
    backend = Backend(image_shape=(1, 64, 64))
    with LiveServer(backend) as live, stub_of(live.address) as stub, stub_of(live.address) as other:
        warm = backend.rows
        stalled = stub.StreamSamples(SampleRequest(count=10**9), timeout=60, metadata=PARTIAL)
        next(iter(stalled))
        others = 2000
        rows = sum(chunk.count for chunk in other.StreamSamples(SampleRequest(count=others), timeout=30))
        assert rows == others
        held_bytes = (backend.rows - warm - others) * 4 * 64 * 64
        assert held_bytes < 64 << 20  # window, and what gRPC and the sockets hold; without a bound: gigabytes
        stalled.cancel()


def test_requests_of_different_callers_share_batches():
    backend = Backend()
    with LiveServer(backend) as live, stub_of(live.address) as stub:
        backend.may_run.clear()
        warm = len(backend.batches)
        calls = [stub.Sample.future(SampleRequest(seed=i, count=2), timeout=30) for i in range(60)]
        live.run(_all_inside(live.server.gate, 60))
        backend.may_run.set()
        for seed, call in enumerate(calls):
            assert call.result().data == expected(backend, seed, 0, 2).tobytes()
        assert len(backend.batches) - warm - 60 < 10  # 60 more are this test's own


async def _all_inside(gate, num):
    async with asyncio.timeout(20):
        while gate.num_inside < num:
            await asyncio.sleep(0.01)


def test_the_second_server_on_a_port_is_told_so():
    with LiveServer(Backend()) as live:
        port = int(live.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            LiveServer(Backend(), port=port)


def test_a_model_too_slow_to_warm_up_at_every_size_is_served_all_the_same(monkeypatch):
    monkeypatch.setattr("serve.devices.engine._WARM_UP_S", -1.0)  # passed after the first size
    backend = Backend()
    with LiveServer(backend) as live, stub_of(live.address) as stub:
        assert live.scheduler.costs.largest == 1
        assert set(backend.batches) == {1}
        assert stub.Sample(SampleRequest(seed=1, count=2), timeout=10).data == expected(backend, 1, 0, 2).tobytes()
