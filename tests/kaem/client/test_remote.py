from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from live_server import Backend, LiveServer, free_port
from scripted_server import BACKEND, QUICK, Script, Scripted, end, fail, right, spoil

import kaem
from kaem import noise
from kaem.client import Patience
from kaem.errors import ArtifactError, ConfigError, RemoteError, RequestError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import message_from_model

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
INTERNAL, UNKNOWN = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("code", [UNAVAILABLE, CANCELLED, INTERNAL, UNKNOWN])
def test_a_broken_stream_resumes_at_the_next_index(code):
    with Script(fail(code, after=3), fail(code, after=0), fail(code, after=1)) as (sampler, servicer):
        chunks = list(sampler.stream(100, 7, 5))
    np.testing.assert_array_equal(np.concatenate([chunk.images for chunk in chunks]), right(100, start=5))
    assert [(r.start_index, r.count) for r in servicer.requests] == [(5, 100), (35, 70), (35, 70), (45, 60)]
    assert {r.expected_numerics_id for r in servicer.requests} == {BACKEND.numerics_id}


def test_a_large_sample_resumes_too():
    with Script(fail(UNAVAILABLE, after=3)) as (sampler, servicer):
        np.testing.assert_array_equal(sampler.sample(500, 7), right(500))
    assert [r.start_index for r in servicer.requests] == [0, 30]


def test_a_single_call_is_repeated():
    with Script(fail(UNAVAILABLE), fail(CANCELLED)) as (sampler, servicer):
        np.testing.assert_array_equal(sampler.sample(50, 7), right(50))
    assert len(servicer.requests) == 3


@pytest.mark.parametrize("num", [50, 500])
def test_failures_in_a_row_are_bounded(num):
    with Script(*[fail(UNAVAILABLE)] * 9) as (sampler, servicer):
        with pytest.raises(RemoteError, match="cannot be reached or is restarting: scripted"):
            sampler.sample(num, 7)
        assert len(servicer.requests) == QUICK.attempts


def test_progress_makes_patience_new():
    script = itertools.chain.from_iterable([fail(UNAVAILABLE), fail(UNAVAILABLE, after=1)] for _ in range(9))
    with Script(*script) as (sampler, _):
        np.testing.assert_array_equal(sampler.sample(500, 7), right(500))


def test_a_deadline_ends_a_silent_call_but_not_a_long_stream():
    released = threading.Event()

    def stall(number, chunk, context):
        if number == 2:
            released.wait(30)

    patience = Patience(call_timeout_s=0.3, attempts=3, first_delay_s=0.001)
    with Script(stall, patience=patience) as (sampler, servicer):
        np.testing.assert_array_equal(sampler.sample(500, 7), right(500))
        assert [r.start_index for r in servicer.requests] == [0, 20]
        servicer.script = iter([lambda *_: released.wait(30)])
        with pytest.raises(RemoteError, match="did not answer in time"):
            sampler.sample(500, 7)
        released.set()


@pytest.mark.parametrize(
    ("code", "trailers"), [(INTERNAL, (("kaem-error", "RemoteError"),)), (grpc.StatusCode.DATA_LOSS, ())]
)
def test_other_failures_are_not_repeated(code, trailers):
    with Script(fail(code, trailers=trailers)) as (sampler, servicer):
        with pytest.raises(RemoteError, match="scripted"):
            sampler.sample(500, 7)
        assert len(servicer.requests) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (spoil(start_index=3), "from index 3"),
        (spoil(count=0), "sent 0 images"),
        (spoil(count=10**15), f"sent {10**15} images"),
        (spoil(shape=[10, 1, 4, 3]), r"shape \(10, 1, 4, 3\)"),
        (spoil(shape=[]), r"shape \(\)"),
        (spoil(data=b"short"), "sent 5 bytes"),
        (spoil(encoding=kaem_pb2.ENCODING_UINT8), "encoding 2"),
        (spoil(numerics_id="sha256:other"), "numerics id sha256:other"),
        (spoil(numerics_id=""), r"numerics id \(none\)"),
    ],
)
@pytest.mark.parametrize("num", [10, 500])
def test_an_answer_that_is_not_what_was_asked_is_refused(step, message, num):
    with Script(step) as (sampler, _), pytest.raises(RemoteError, match=message):
        sampler.sample(num, 7)


def test_a_stream_that_ends_early_is_an_error():
    with Script(end) as (sampler, _), pytest.raises(RemoteError, match="80 images early"):
        list(sampler.stream(100, 7))


def test_a_server_that_sends_too_much_is_an_error():
    class Generous(Scripted):
        def StreamSamples(self, request, context):  # noqa: N802
            request.count += 10
            yield from self._answers(request, context, rows=10)

    with Script(servicer=Generous()) as (sampler, _), pytest.raises(RemoteError, match="at most 0 from index 100"):
        list(sampler.stream(100, 7))


def test_a_stream_is_not_resumed_where_the_bits_are_others():
    """The same model in all but its numerics id, on the same port, in the middle of a stream."""
    port = free_port()
    with LiveServer(Backend(), port=port) as live:
        sampler = kaem.connect(live.target, patience=QUICK)
        stream = sampler.stream(10**9, 7)
        parts = [next(stream)]
    with LiveServer(Backend(name="other"), port=port, name="fake") as live, sampler:
        with pytest.raises(RemoteError, match="numerics id"):
            parts.extend(stream)
        streams = [code for name, code in live.server.observer.ended if name.endswith("StreamSamples")]
        assert set(streams) == {"FAILED_PRECONDITION"}
        images = np.concatenate([part.images for part in parts])
        np.testing.assert_array_equal(images, live.backend.decode(noise.uniforms(7, 0, len(images), 3)))


def test_a_model_that_changed_between_calls_is_refused(artifact_path, rgb_artifact_path):
    port = free_port()
    with kaem.load(artifact_path) as old, LiveServer(old, port=port) as live:
        sampler = kaem.connect(live.target)
    with kaem.load(rgb_artifact_path) as new, LiveServer(new, port=port, name="small"), sampler:
        with pytest.raises(RemoteError, match="numerics id") as caught:
            sampler.sample(3, 0)
        assert "connect again" in caught.value.hint


def test_leaving_a_stream_cancels_the_call():
    backend = Backend()
    with LiveServer(backend) as live, kaem.connect(live.target) as sampler:
        stream = sampler.stream(10**12, 0)
        next(stream)
        stream.close()
        assert live.run(live.server.gate.wait_empty(10))


def test_threads_may_share_a_connection():
    backend = Backend()
    with LiveServer(backend) as live, kaem.connect(live.target) as sampler, futures.ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda seed: sampler.sample(20, seed).tobytes(), range(64))
        expected = [backend.decode(noise.uniforms(seed, 0, 20, 3)).tobytes() for seed in range(64)]
        assert list(results) == expected


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "grpc://",
        "http://localhost:1",
        "localhost:port",
        "localhost:+1",
        "a:99999",
        "grpc://h:1/x",
        "grpc://h:1?x",
        "u@h:1",
        "grpc://127.0.0.1:0",
        "grpc://a b:1",
        "a..b:1",
        "a\n:1",
        "\udcff:1",
        "::1:1",
        "grpc://[::1:1",
        "grpc://[::g]:1",
        "grpc://[]:1",
        123,
        None,
        b"localhost:1",
    ],
)
def test_a_target_that_is_no_address_is_refused(target):
    with pytest.raises(ConfigError, match="as the address of a server") as caught:
        kaem.connect(target)
    assert caught.value.hint == "write grpc://host:port"


@pytest.mark.parametrize("target", ["grpc://{}", "GRPC://{}/", "{}"])
def test_the_spelling_of_a_target_does_not_matter(target):
    with LiveServer(Backend()) as live, kaem.connect(target.format(live.address)) as sampler:
        assert len(sampler.sample(2, 0)) == 2


def test_a_server_that_is_not_there_is_said_so_in_time():
    port, began = free_port(), time.monotonic()
    with pytest.raises(RemoteError, match=f"no kaem server answered at 127.0.0.1:{port} within 0.4 s") as caught:
        kaem.connect(f"grpc://127.0.0.1:{port}", timeout_s=0.4)
    assert time.monotonic() - began < 3
    assert "kaem serve" in caught.value.hint


def test_a_timeout_of_zero_is_refused():
    with pytest.raises(ConfigError, match="more than 0 seconds"):
        kaem.connect("127.0.0.1:1", timeout_s=0)


def test_a_server_of_another_kind_is_named():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(RemoteError, match="does not offer this call"):
        kaem.connect(f"127.0.0.1:{port}")
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("change", "cls", "message"),
    [
        ({"manifest": "{"}, ArtifactError, "is damaged"),
        ({"manifest": '{"format_version": 99}'}, ArtifactError, "artifact format 99"),
        ({"numerics_id": ""}, RemoteError, "no numerics id"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(change, cls, message):
    class Odd(Scripted):
        def GetModel(self, request, context):  # noqa: N802
            answer = message_from_model(self.model)
            for name, value in change.items():
                setattr(answer, name, value)
            return answer

    with pytest.raises(cls, match=message), Script(servicer=Odd()):
        pass  # connecting raises


def test_decode_is_split_to_what_one_message_holds():
    with Script() as (sampler, _):
        uniform = noise.uniforms(1, 0, 250, 5)
        np.testing.assert_array_equal(sampler.decode(uniform), BACKEND.decode(uniform))


def test_closing_in_the_middle_of_a_stream_ends_it():
    with Script() as (sampler, _):
        stream = sampler.stream(100, 7)
        next(stream)
        sampler.close()
        with pytest.raises(RequestError, match="closed"):
            list(stream)


def test_importing_kaem_does_not_import_grpc():
    code = "import sys, kaem, kaem.engines.cpu; assert not {'grpc', 'torch', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
