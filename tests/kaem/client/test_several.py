"""Several real servers: shared work, hedges, and what happens when one of them dies, stalls or never was there."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from live_server import Backend, LiveServer, free_port, server_process
from scripted_server import BACKEND, QUICK, Script, Scripted, fail, right
from typer.testing import CliRunner

import kaem
from cli.main import app
from kaem import noise
from kaem.client import Hedging, Patience
from kaem.errors import ConfigError, RemoteError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def images_of(backend, num, seed=7, start=0):
    return backend.decode(noise.uniforms(seed, start, num, backend.manifest.noise_dim))


def test_a_killed_server_leaves_its_share_to_the_other_and_no_bit_changes(artifact_path, tmp_path):
    num, seed = 120_000, 11
    with kaem.load(artifact_path) as local:
        expected = b"".join(chunk.images.tobytes() for chunk in local.stream(num, seed))
    with server_process(artifact_path, "--port", "0") as first, server_process(artifact_path, "--port", "0") as second:
        both = f"{first.target},{second.target}"
        command = ["sample", both, "-n", "20000", "--seed", str(seed), "-o", str(tmp_path / "all.npy")]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
        assert np.load(tmp_path / "all.npy").tobytes() == expected[: 20_000 * 256]
        with kaem.connect(both) as sampler:
            stream = sampler.stream(num, seed)
            parts = [next(stream) for _ in range(3)]
            second.kill()
            parts.extend(stream)
            assert [part.start for part in parts] == [sum(len(p.images) for p in parts[:i]) for i in range(len(parts))]
            assert b"".join(part.images.tobytes() for part in parts) == expected
            assert sampler.sample(5000, seed).tobytes() == expected[: 5000 * 256]


def test_all_servers_work_on_one_job_and_none_does_anothers_rows():
    backends = [Backend(), Backend(), Backend()]
    with (
        LiveServer(backends[0]) as one,
        LiveServer(backends[1]) as two,
        LiveServer(backends[2]) as three,
        kaem.connect([one.target, two.target, three.target]) as sampler,
    ):
        warm = [backend.rows for backend in backends]
        seen = []
        images = sampler.sample(3000, 7, 5, on_progress=lambda done, total: seen.append((done, total)))
        np.testing.assert_array_equal(images, images_of(Backend(), 3000, start=5))
        rows = [backend.rows - before for backend, before in zip(backends, warm, strict=True)]
        assert 3000 <= sum(rows) < 4500  # batches are padded, but no row is made by two
        assert min(rows) > 0
        uniform = noise.uniforms(3, 0, 1000, 3)
        np.testing.assert_array_equal(sampler.decode(uniform), Backend().decode(uniform))
    assert seen == sorted(seen)
    assert seen[-1] == (3000, 3000)


def test_small_requests_take_turns():
    backends = [Backend(), Backend()]
    with LiveServer(backends[0]) as one, LiveServer(backends[1]) as two, kaem.connect([one.target, two.target]) as both:
        warm = [backend.rows for backend in backends]
        for seed in range(10):
            np.testing.assert_array_equal(both.sample(4, seed), images_of(Backend(), 4, seed))
        assert [backend.rows - before for backend, before in zip(backends, warm, strict=True)] == [20, 20]


@pytest.mark.parametrize("num", [4, 500])
def test_a_hedge_takes_the_first_answer_and_cancels_the_other(num):
    slow, quick = Backend(), Backend()
    with (
        LiveServer(slow) as one,
        LiveServer(quick) as two,
        kaem.connect([one.target, two.target], hedging=Hedging(after_s=0.02)) as sampler,
    ):
        slow.may_run.clear()
        for _ in range(4):  # whichever of the two is asked first
            np.testing.assert_array_equal(sampler.sample(num, 7), images_of(Backend(), num))
        slow.may_run.set()
        assert one.run(one.server.gate.wait_empty(10))


def test_a_hedge_is_measured_once_there_is_something_to_measure():
    slow, quick = Backend(), Backend()
    with (
        LiveServer(slow) as one,
        LiveServer(quick) as two,
        kaem.connect([one.target, two.target], hedging=Hedging(percentile=90)) as sampler,
    ):
        for seed in range(20):
            sampler.sample(1, seed)
        slow.may_run.clear()
        for seed in range(4):
            np.testing.assert_array_equal(sampler.sample(2, seed), images_of(Backend(), 2, seed))


def test_a_server_that_stalls_is_noticed_and_left():
    slow, quick = Backend(), Backend()
    with (
        LiveServer(slow) as one,
        LiveServer(quick) as two,
        kaem.connect([one.target, two.target], patience=Patience(call_timeout_s=0.3)) as sampler,
    ):
        slow.may_run.clear()
        for num in (3, 3, 2000):
            np.testing.assert_array_equal(sampler.sample(num, 7), images_of(Backend(), num))
        quick.may_run.clear()
        with pytest.raises(RemoteError, match="did not answer in time"):
            sampler.sample(3, 7)
        quick.may_run.set()


def test_a_deadline_of_ones_own_is_kept():
    backend = Backend()
    with LiveServer(backend) as live, kaem.connect(live.target) as sampler:
        backend.may_run.clear()
        for call in (
            lambda: sampler.sample(3, 7, timeout_s=0.2),
            lambda: list(sampler.stream(3, 7, timeout_s=0.2)),
            lambda: sampler.decode(noise.uniforms(0, 0, 2, 3), timeout_s=0.2),
        ):
            began = time.monotonic()
            with pytest.raises(RemoteError, match="did not answer in time"):
                call()
            assert time.monotonic() - began < 5
        backend.may_run.set()
        with pytest.raises(ConfigError, match="timeout_s is 0; give more than 0 seconds"):
            sampler.stream(3, 7, timeout_s=0)


def test_servers_that_compute_different_bits_are_refused():
    with LiveServer(Backend(name="one")) as one, LiveServer(Backend(name="two")) as two:
        with pytest.raises(ConfigError, match="do not compute the same bits: their numerics ids are sha256:") as caught:
            kaem.connect([one.target, two.target])
        assert one.address in caught.value.message
        assert two.address in caught.value.message


def test_a_server_that_comes_later_joins_in(caplog):
    port = free_port()
    late = f"grpc://127.0.0.1:{port}"
    with LiveServer(Backend()) as live, kaem.connect(f"{live.target}, {late}") as sampler:
        assert f"127.0.0.1:{port} does not answer; others do its part" in caplog.text
        np.testing.assert_array_equal(sampler.sample(700, 7), images_of(Backend(), 700))
        backend = Backend()
        with LiveServer(backend, port=port):
            warm, deadline = backend.rows, time.monotonic() + 20
            while backend.rows == warm:
                assert time.monotonic() < deadline
                np.testing.assert_array_equal(sampler.sample(700, 7), images_of(Backend(), 700))
        np.testing.assert_array_equal(sampler.sample(700, 7), images_of(Backend(), 700))


def test_where_none_of_several_is_there_that_is_said():
    targets = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    with pytest.raises(RemoteError, match=r"no kaem server answered at 127\.0\.0\.1"):
        kaem.connect(targets, timeout_s=0.3)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("a:1,b:2,a:1", "a server is named twice: a:1, b:2, a:1"),
        (["grpc://a:1", "grpcs://b:1"], "some servers are to be reached by TLS and some not"),
        ("a:1,,b:1", "cannot read '' as the address"),
        ([], r"cannot read \[\] as the address"),
        (["a:1", 3], "cannot read 3 as the address"),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        kaem.connect(targets)


def exhausted(pushback_ms, *, with_retry_info=True):
    def step(number, chunk, context):
        if number:
            return
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="queue full")
        if with_retry_info:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=10_000_000)))
            status.details.append(packed)
        answer = rpc_status.to_status(status)
        trailers = (*answer.trailing_metadata, *((("grpc-retry-pushback-ms", pushback_ms),) if pushback_ms else ()))
        context.set_trailing_metadata(trailers)
        context.abort(answer.code, answer.details)

    return step


@pytest.mark.parametrize("num", [50, 500])
def test_a_busy_server_is_asked_again_when_it_said(num):
    with Script(exhausted("150"), exhausted("")) as (sampler, servicer):
        began = time.monotonic()
        np.testing.assert_array_equal(sampler.sample(num, 7), right(num))
        assert time.monotonic() - began >= 0.16  # at least what was asked for; how much more is the machine's affair
    assert len(servicer.requests) == 3


@pytest.mark.parametrize("step", [exhausted("-1"), exhausted("10", with_retry_info=False)], ids=["stop", "too large"])
def test_a_server_that_forbids_it_is_not_asked_again(step):
    with Script(step) as (sampler, servicer):
        with pytest.raises(RemoteError, match="RESOURCE_EXHAUSTED: queue full"):
            sampler.sample(500, 7)
        assert len(servicer.requests) == 1


def test_what_one_server_breaks_off_another_completes():
    class Broken(Scripted):
        def StreamSamples(self, request, context):  # noqa: N802
            self.script = iter([fail(UNAVAILABLE, after=2)])
            yield from super().StreamSamples(request, context)

    with Script(servicer=Broken()) as (first, broken), Script() as (second, good):
        targets = [sampler._plan.targets[0].address for sampler in (first, second)]
        with kaem.connect(targets, patience=QUICK) as sampler:
            chunks = list(sampler.stream(1000, 7))
    np.testing.assert_array_equal(np.concatenate([chunk.images for chunk in chunks]), right(1000))
    assert broken.requests
    assert good.requests
    assert {r.expected_numerics_id for r in broken.requests + good.requests} == {BACKEND.numerics_id}


def test_leaving_a_shared_stream_ends_every_call_and_every_thread():
    with LiveServer(Backend()) as one, LiveServer(Backend()) as two, kaem.connect([one.target, two.target]) as sampler:
        stream = sampler.stream(10**12, 0)
        next(stream)
        stream.close()
        for live in (one, two):
            assert live.run(live.server.gate.wait_empty(10))
        assert not [thread for thread in threading.enumerate() if thread.name == "kaem-read"]
