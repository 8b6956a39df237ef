"""tritonclient as the tests use it, and what its answers should be."""

from __future__ import annotations

import queue

import grpc
import pytest
from live_server import Backend

from kaem import noise
from kaem.protocol import inference_pb2

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")

SERVICE = "/inference.GRPCInferenceService"
Code = grpc.StatusCode
Infer = inference_pb2.ModelInferRequest
DIM = 5


def connected(live):
    return triton.InferenceServerClient(live.address)


def expected(backend, seed, start, count):
    return Backend.decode(backend, noise.uniforms(seed, start, count, backend.manifest.noise_dim))


def uniform_input(rows, *, shape=None, datatype="FP32", name="uniform"):
    given = triton.InferInput(name, list(rows.shape if shape is None else shape), datatype)
    given.set_data_from_numpy(rows)
    return given


class Stream:
    """A stream of tritonclient whose answers wait in a queue."""

    def __init__(self, address, **options):
        self.client = triton.InferenceServerClient(address)
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **options)

    def ask(self, *, model="fake", inputs=(), outputs=None, request_id="", **parameters):
        self.client.async_stream_infer(
            model, list(inputs), outputs=outputs, request_id=request_id, parameters=parameters
        )

    def get(self):
        return self.answers.get(timeout=20)

    def result(self):
        result, error = self.get()
        assert error is None, error
        return result

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.client.stop_stream(cancel_requests=kind is not None)
        self.client.close()


def is_last(result):
    return result.get_response().parameters["triton_final_response"].bool_param


def target_of(channel):
    return channel._channel.target().decode().rpartition("/")[2]
