"""Streams of the Open Inference Protocol, asked by an unmodified tritonclient over real sockets."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from live_server import Backend, LiveServer
from triton_client import DIM, SERVICE, Infer, Stream, expected, is_last, uniform_input

from kaem import noise
from kaem.protocol import inference_pb2


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend(image_shape=(3, 8, 8), noise_dim=DIM)) as live:
        yield live


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def test_a_stream_sends_one_request_in_several_answers_of_which_the_last_says_so(server):
    limits = server.server.models.get("").info.limits
    count = 3 * limits.max_sample_rows + 1
    with Stream(server.address) as stream:
        stream.ask(seed=5, start=2, count=count, request_id="job")
        results = [stream.result()]
        while not is_last(results[-1]):
            results.append(stream.result())
    assert len(results) > 3
    assert {result.get_response().id for result in results} == {"job"}
    assert max(len(result.get_response().raw_output_contents[0]) for result in results) <= 1 << 20
    starts = [result.get_response().parameters["start"].uint64_param for result in results]
    sizes = [len(result.as_numpy("image")) for result in results]
    assert starts == [2 + sum(sizes[:k]) for k in range(len(sizes))]
    images = np.concatenate([result.as_numpy("image") for result in results])
    np.testing.assert_array_equal(images, expected(server.backend, 5, 2, count))


def test_a_failed_request_leaves_the_stream_open(server):
    uniform = noise.uniforms(3, 0, 4, DIM)
    with Stream(server.address) as stream:
        stream.ask(model="other", seed=1)
        result, error = stream.get()
        assert result is None
        assert error.message() == "[NOT_FOUND] no model named 'other'"
        stream.ask(count=1)
        assert stream.get()[1].message() == "[INVALID_ARGUMENT] no seed"
        stream.ask(inputs=[uniform_input(uniform)], request_id="then")
        result = stream.result()
        assert is_last(result)
        assert result.get_response().id == "then"
        np.testing.assert_array_equal(result.as_numpy("image"), server.backend.decode(uniform))
    assert server.server.observer.ended[-3:] == [
        (f"{SERVICE}/ModelStreamInfer", code) for code in ("NOT_FOUND", "INVALID_ARGUMENT", "OK")
    ]


def test_a_failed_answer_names_its_request(channel):
    call = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        lambda message: message.SerializeToString(),
        inference_pb2.ModelStreamInferResponse.FromString,
    )
    (answer,) = call(iter([Infer(model_name="other", id="mine")]), timeout=10)
    assert answer.infer_response.id == "mine"
    assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_a_client_that_wants_real_statuses_gets_them(server):
    with Stream(server.address, headers={"triton_grpc_error": "true"}) as stream:
        stream.ask(model="other", seed=1)
        _, error = stream.get()
        assert error.status() == "StatusCode.NOT_FOUND"
        assert error.message() == "no model named 'other'"


def test_requests_of_one_stream_are_answered_at_the_same_time():
    backend = Backend()
    with LiveServer(backend) as live, Stream(live.address) as stream:
        backend.may_run.clear()
        for seed in range(200):
            stream.ask(seed=seed, request_id=str(seed))
        live.run(_until_inside(live.server.gate, 64))  # further ones are not read before these are answered
        backend.may_run.set()
        results = [stream.result() for _ in range(200)]
        for result in results:
            seed = int(result.get_response().id)
            np.testing.assert_array_equal(result.as_numpy("image"), expected(backend, seed, 0, 1))
        assert sorted(int(result.get_response().id) for result in results) == list(range(200))


async def _until_inside(gate, num):
    async with asyncio.timeout(20):
        while gate.num_inside < num:
            await asyncio.sleep(0.005)
    assert gate.num_inside == num


def test_cancelling_a_stream_ends_the_work_of_all_its_requests():
    backend = Backend()
    with LiveServer(backend) as live:
        with Stream(live.address) as stream:
            stream.ask(seed=1, count=1 << 40)
            stream.ask(seed=2, count=1 << 40)
            stream.result()
            stream.client.stop_stream(cancel_requests=True)
        assert live.run(live.server.gate.wait_empty(10))
        assert live.scheduler.num_jobs == 0


def test_shutting_down_completes_requests_and_ends_the_stream_with_unavailable():
    backend = Backend()
    with LiveServer(backend, grace=20.0) as live, Stream(live.address) as stream:
        stream.ask(seed=9)
        stream.result()
        assert live.run(live.server.gate.wait_empty(20))
        backend.may_run.clear()
        stream.ask(seed=7)
        live.run(_until_inside(live.server.gate, 1))
        draining = live.start(live.server.drain())
        live.run(live.server.gate.wait_closed())
        backend.may_run.set()
        np.testing.assert_array_equal(stream.result().as_numpy("image"), expected(backend, 7, 0, 1))
        _, error = stream.get()
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert error.message() == "the server is shutting down"
        draining.result(20)
