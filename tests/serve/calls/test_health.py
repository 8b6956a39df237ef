from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import Backend, LiveServer, free_port, stub_of

import kaem
from kaem.errors import RemoteError
from kaem.protocol import kaem_pb2

Status = health_pb2.HealthCheckResponse
NAMES = ["", "kaem.v1.Sampler", "inference.GRPCInferenceService", "kaem.model/fake"]


def health_of(channel):
    return health_pb2_grpc.HealthStub(channel)


def ask(name):
    return health_pb2.HealthCheckRequest(service=name)


def test_check_knows_the_server_its_service_and_its_model_and_nothing_else():
    with LiveServer(Backend()) as live, grpc.insecure_channel(live.address) as channel:
        for name in NAMES:
            assert health_of(channel).Check(ask(name), timeout=10).status == Status.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health_of(channel).Check(ask("kaem.model/other"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert next(iter(health_of(channel).Watch(ask("x"), timeout=10))).status == Status.SERVICE_UNKNOWN


@pytest.mark.parametrize("name", ["x" * 20_000, "\U0001f600" * 10_000])
def test_a_name_of_any_length_is_not_found(name):
    with LiveServer(Backend()) as live, grpc.insecure_channel(live.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_of(channel).Check(ask(name), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details().startswith("no service or model named")


def test_nothing_is_served_before_the_largest_batch_has_run():
    backend, port = Backend(), free_port()
    backend.may_run.clear()
    holder = {}
    starting = threading.Thread(target=lambda: holder.update(live=LiveServer(backend, port=port, max_batch=5)))
    starting.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_of(channel).Watch(ask(""), timeout=30, wait_for_ready=True)
        assert next(watch).status == Status.NOT_SERVING
        with stub_of(f"127.0.0.1:{port}") as stub, pytest.raises(grpc.RpcError) as caught:
            stub.Sample(kaem_pb2.SampleRequest(count=1), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "500") in [(e.key, e.value) for e in caught.value.trailing_metadata()]
        with pytest.raises(RemoteError, match="loading its model"):
            kaem.connect(f"127.0.0.1:{port}", timeout_s=0.3)
        connected = []
        waiting = threading.Thread(target=lambda: connected.append(kaem.connect(f"127.0.0.1:{port}")))
        waiting.start()
        backend.may_run.set()
        starting.join()
        with holder["live"]:
            assert next(watch).status == Status.SERVING
            waiting.join()
            with connected[0] as sampler:
                assert sampler.sample(2, 0).shape == (2, 1, 2, 2)
            watch.cancel()
    assert list(dict.fromkeys(backend.batches)) == [1, 2, 4, 5]
