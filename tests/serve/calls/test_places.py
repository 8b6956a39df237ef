"""Calls that last for ever and hold no images: they have places, and what they hold is counted."""

from __future__ import annotations

import contextlib
import queue
import time

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from live_server import Backend, LiveServer

from kaem.protocol import inference_pb2, kaem_pb2, kaem_pb2_grpc
from serve.calls.places import Places
from serve.scheduling.demand import CALL_BYTES
from serve.settings import ServeSettings

LITTLE = 24  # MiB: room for 64 such calls, 16 of one connection
_ASK = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
KINDS = {
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest().SerializeToString(),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _ASK,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ASK,
    "/inference.GRPCInferenceService/ModelStreamInfer": inference_pb2.ModelInferRequest(
        model_name="other"
    ).SerializeToString(),
}


class Client:
    """One connection, and the calls on it; each is open once it has had an answer."""

    def __init__(self, address):
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.sample = kaem_pb2_grpc.SamplerStub(self._channel).Sample
        self._questions, self._calls = [], []

    def open(self, method):
        if method.endswith("Watch"):
            call = self._channel.unary_stream(method)(KINDS[method], timeout=60)
        else:
            questions = queue.SimpleQueue()
            questions.put(KINDS[method])
            self._questions.append(questions)
            call = self._channel.stream_stream(method)(iter(questions.get, None), timeout=60)
        self._calls.append(call)
        next(call)

    def cancel(self):
        for call in self._calls:
            call.cancel()
        for questions in self._questions:
            questions.put(None)
        self._calls.clear()
        self._questions.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cancel()
        self._channel.close()


def refusal(client, method):
    with pytest.raises(grpc.RpcError) as caught:
        client.open(method)
    error = caught.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(error)
    found = {}
    for detail in status.details:
        for kind in (RetryInfo, QuotaFailure):
            if detail.Is(kind.DESCRIPTOR):
                found[kind] = kind()
                detail.Unpack(found[kind])
    assert found[RetryInfo].retry_delay.ToMilliseconds() > 0
    assert [violation.subject for violation in found[QuotaFailure].violations] == ["streams"]
    return f"{error.details()} {error.trailing_metadata()}"


def sampled(client):
    return client.sample(kaem_pb2.SampleRequest(count=2), timeout=30).count


def wait_until(is_true):
    until = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("method", KINDS)
def test_one_connection_may_have_so_many_and_another_and_samples_do_not_suffer(method):
    with LiveServer(Backend(), max_memory=LITTLE) as live, Client(live.address) as one, Client(live.address) as two:
        places = live.server._reception._places
        for _ in range(places.most_of_one):
            one.open(method)
        for other in KINDS:
            assert f"this connection has {places.most_of_one} streams open" in refusal(one, other)
        two.open(method)
        assert sampled(one) == sampled(two) == 2
        assert live.server.observer.rejected == ["streams"] * len(KINDS)
        one.cancel()
        wait_until(lambda: places.num_taken == 1)
        one.open(method)


def test_all_connections_together_may_have_so_many():
    with LiveServer(Backend(), max_memory=LITTLE) as live, contextlib.ExitStack() as stack:
        places = live.server._reception._places
        clients = [stack.enter_context(Client(live.address)) for _ in range(places.most // places.most_of_one + 1)]
        for client in clients[:-1]:
            for _ in range(places.most_of_one):
                client.open("/grpc.health.v1.Health/Watch")
        said = refusal(clients[-1], "/grpc.health.v1.Health/Watch")
        assert f"{places.most} streams are open" in said
        assert "raise --max-memory" in said
        assert sampled(clients[-1]) == 2
        clients[0].cancel()
        wait_until(lambda: places.num_taken < places.most)
        clients[-1].open("/grpc.health.v1.Health/Watch")


@given(st.integers(LITTLE, 1 << 20))
def test_what_is_set_aside_for_all_kinds_of_calls_is_the_limit(max_memory):
    settings = ServeSettings(max_memory=max_memory)
    bounds = settings.bounds
    parts = (bounds.base_bytes, bounds.interactive_bytes, bounds.spare_bytes, bounds.stream_bytes)
    assert sum(parts) == max_memory << 20
    assert min(parts) > 0
    assert bounds.stream_bytes == settings.max_streams * CALL_BYTES
    assert Places(settings.max_streams).most_of_one <= settings.max_streams


def test_a_call_counts_although_its_images_are_small_and_so_do_uniforms_that_were_sent_along():
    dim, rows = 4096, 64
    with LiveServer(Backend(image_shape=(1, 2, 2), noise_dim=dim)) as live:
        live.backend.may_run.clear()
        with grpc.insecure_channel(live.address) as channel:
            stub = kaem_pb2_grpc.SamplerStub(channel)
            waiting = [stub.Sample.future(kaem_pb2.SampleRequest(seed=seed, count=1), timeout=60) for seed in range(8)]
            wait_until(lambda: live.scheduler.num_jobs == 8)
            before = live.scheduler.queue_bytes
            assert before >= 8 * CALL_BYTES
            uniform = np.full((rows, dim), 0.25, np.float32)
            asked = inference_pb2.ModelInferRequest(
                model_name="fake",
                inputs=[
                    inference_pb2.ModelInferRequest.InferInputTensor(
                        name="uniform", datatype="FP32", shape=uniform.shape
                    )
                ],
                raw_input_contents=[uniform.tobytes()],
            )
            method = "/inference.GRPCInferenceService/ModelStreamInfer"
            call = channel.stream_stream(method)(iter([asked.SerializeToString()]), timeout=60)
            wait_until(lambda: live.scheduler.num_jobs == 9)
            assert live.scheduler.queue_bytes - before >= uniform.nbytes
            live.backend.may_run.set()
            assert [one.result().count for one in waiting] == [1] * 8
            assert len(list(call)) >= 1
            wait_until(lambda: live.scheduler.num_jobs == 0)
            assert live.scheduler.queue_bytes == 0
