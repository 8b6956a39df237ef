"""A real gRPC server around a scripted servicer: what a well-behaved server cannot be asked to do."""

from __future__ import annotations

from concurrent import futures

import grpc
import numpy as np
from live_server import Backend

from kaem import noise
from kaem.client import Patience, connect
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from kaem.protocol.messages import Limits, Model, chunk_from_images, message_from_model

QUICK = Patience(call_timeout_s=10, attempts=3, first_delay_s=0.001, max_delay_s=0.002)
BACKEND = Backend(image_shape=(1, 3, 4), noise_dim=5)


class Scripted(kaem_pb2_grpc.SamplerServicer):
    """A server whose n-th data call does what the n-th step of its script says, and then the right thing."""

    def __init__(self, *script):
        self.script = iter(script)
        self.requests = []
        self.model = Model(
            name="fake",
            manifest=BACKEND.manifest,
            numerics_id=BACKEND.numerics_id,
            provider="cpu",
            limits=Limits(max_chunk_bytes=4800, max_sample_rows=100, max_decode_rows=100),
        )

    def GetModel(self, request, context):  # noqa: N802
        return message_from_model(self.model)

    def Sample(self, request, context):  # noqa: N802
        return next(self._answers(request, context, rows=request.count))

    def Decode(self, request, context):  # noqa: N802
        return chunk_from_images(
            BACKEND.decode(np.frombuffer(request.uniform, "<f4").reshape(request.count, -1)),
            start=0,
            encoding=kaem_pb2.ENCODING_FLOAT32,
            numerics_id=BACKEND.numerics_id,
        )

    def StreamSamples(self, request, context):  # noqa: N802
        yield from self._answers(request, context, rows=10)

    def _answers(self, request, context, *, rows):
        self.requests.append(request)
        step = next(self.script, None)
        last = request.start_index + request.count
        for number, start in enumerate(range(request.start_index, last, rows)):
            images = BACKEND.decode(noise.uniforms(request.seed, start, min(rows, last - start), 5))
            chunk = chunk_from_images(
                images, start=start, encoding=kaem_pb2.ENCODING_FLOAT32, numerics_id=BACKEND.numerics_id
            )
            if step is not None and step(number, chunk, context) == "end":
                return
            yield chunk


def fail(code, after=0, trailers=()):
    def step(number, chunk, context):
        if number == after:
            context.set_trailing_metadata(trailers)
            context.abort(code, "scripted")

    return step


def spoil(**fields):
    def step(number, chunk, context):
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(chunk, name)[:]
                getattr(chunk, name).extend(value)
            else:
                setattr(chunk, name, value)

    return step


def end(number, chunk, context):
    return "end" if number == 2 else None


class Script:
    def __init__(self, *script, servicer=None, patience=QUICK):
        self.patience = patience
        self.servicer = servicer or Scripted(*script)

    def __enter__(self):
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        kaem_pb2_grpc.add_SamplerServicer_to_server(self.servicer, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.sampler = connect(f"127.0.0.1:{port}", patience=self.patience)
        return self.sampler, self.servicer

    def __exit__(self, *_):
        self.sampler.close()
        self.server.stop(0).wait()


def right(num, seed=7, start=0):
    return BACKEND.decode(noise.uniforms(seed, start, num, 5))
