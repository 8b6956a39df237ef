"""The kaem.v1.Sampler service: requests become jobs of the scheduler, chunks of rows become messages."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

import grpc

from kaem.errors import RemoteError, RequestError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import (
    check_numerics,
    chunk_from_images,
    message_from_model,
    resolve_encoding,
    rows_per_chunk,
    uniforms_from_request,
)
from kaem.sampler import Images
from kaem.validation import NUM_INDICES, check_range, check_uniforms
from serve.calls.call_options import read_call_options
from serve.calls.interceptor import Context, Reception, tolerant
from serve.calls.submit import Submitter, converting
from serve.catalog.model import Models, ServedModel
from serve.events import Observer
from serve.scheduling.job import Convert
from serve.scheduling.sources import Given, Seeded, Source
from serve.settings import ServeSettings
from serve.statuses import RefusedError, blaming

SERVICE = kaem_pb2.DESCRIPTOR.services_by_name["Sampler"].full_name


class SamplerService:
    """Answers kaem.v1.Sampler.

    Args:
        models: What it samples from.
        settings: Which requests are bulk.
        observer: Told of every message sent.
    """

    def __init__(self, models: Models, settings: ServeSettings, observer: Observer) -> None:
        self._models = models
        self._submitter = Submitter(settings)
        self._observer = observer

    def handler(self, reception: Reception) -> grpc.GenericRpcHandler[object, object]:
        """Return the methods; built by hand so that requests are read tolerantly."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        sample, decode, model = (
            tolerant(cls) for cls in (kaem_pb2.SampleRequest, kaem_pb2.DecodeRequest, kaem_pb2.GetModelRequest)
        )
        admitted = reception.admitted
        methods = {
            "Sample": unary(admitted(f"/{SERVICE}/Sample", self.sample), sample, _write),
            "StreamSamples": stream(admitted(f"/{SERVICE}/StreamSamples", self.stream_samples), sample, _write),
            "Decode": unary(admitted(f"/{SERVICE}/Decode", self.decode), decode, _write),
            "GetModel": unary(admitted(f"/{SERVICE}/GetModel", self.get_model), model, _write),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def sample(self, request: kaem_pb2.SampleRequest, context: Context) -> kaem_pb2.Chunk:
        """Answer one message of samples."""
        model, encoding = self._check_samples(request)
        _check_fits(model, request.count, encoding, hint="call StreamSamples")
        source = Seeded(request.seed, request.start_index)
        return await self._one_chunk(model, source, request.count, encoding, context)

    async def stream_samples(self, request: kaem_pb2.SampleRequest, context: Context) -> None:
        """Send samples in chunks; each write waits until the transport has room for it."""
        model, encoding = self._check_samples(request)
        rows = rows_per_chunk(model.manifest, encoding, model.info.limits.max_chunk_bytes)
        if request.max_chunk_rows:
            rows = min(rows, request.max_chunk_rows)
        start = request.start_index
        submitted = self._submitter.stream(
            model,
            Seeded(request.seed, start),
            request.count,
            chunk_rows=rows,
            row_bytes=_row_bytes(model, encoding),
            convert=_convert(encoding),
            call_options=read_call_options(context),
        )
        async with submitted as job:
            async for images in job:
                message = await _chunk(model, images, start, encoding)
                began = time.monotonic()
                await context.write(message)
                seconds = time.monotonic() - began
                self._note_sent(model, len(images), seconds)
                start += len(images)

    async def decode(self, request: kaem_pb2.DecodeRequest, context: Context) -> kaem_pb2.Chunk:
        """Answer the images of given uniforms."""
        model, encoding = self._check_model(request)
        dim = model.manifest.noise_dim
        with blaming("uniform" if request.count else "count"):
            uniform = check_uniforms(uniforms_from_request(request, dim), dim)
        _check_fits(model, len(uniform), encoding, hint="send fewer rows at a time")
        return await self._one_chunk(model, Given(uniform), len(uniform), encoding, context)

    async def get_model(self, request: kaem_pb2.GetModelRequest, context: Context) -> kaem_pb2.Model:
        """Answer what the model is."""
        return message_from_model(self._models.get(request.model, request.version).info)

    def _check_model(
        self, request: kaem_pb2.SampleRequest | kaem_pb2.DecodeRequest
    ) -> tuple[ServedModel, kaem_pb2.Encoding]:
        """Check what all requests have in common; return the model and the resolved encoding."""
        model = self._models.get(request.model, request.version)
        if request.expected_numerics_id:
            try:
                check_numerics(model.info.numerics_id, request.expected_numerics_id)
            except RemoteError as error:
                raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, error, field="expected_numerics_id") from None
        with blaming("encoding"):
            return model, resolve_encoding(request.encoding, model.manifest)

    def _check_samples(self, request: kaem_pb2.SampleRequest) -> tuple[ServedModel, kaem_pb2.Encoding]:
        checked = self._check_model(request)
        try:
            check_range(request.count, request.seed, request.start_index)
        except RequestError as error:
            is_past = request.start_index + request.count > NUM_INDICES
            code = grpc.StatusCode.OUT_OF_RANGE if is_past else grpc.StatusCode[error.grpc_status]
            raise RefusedError(code, error, field="count") from None
        return checked

    async def _one_chunk(
        self, model: ServedModel, source: Source, rows: int, encoding: kaem_pb2.Encoding, context: Context
    ) -> kaem_pb2.Chunk:
        start = source.start if isinstance(source, Seeded) else 0
        submitted = self._submitter.whole(
            model,
            source,
            rows,
            row_bytes=_row_bytes(model, encoding),
            convert=_convert(encoding),
            call_options=read_call_options(context),
        )
        async with submitted as job:
            message = await _chunk(model, await anext(job), start, encoding)
        self._note_sent(model, rows, 0.0)
        return message

    def _note_sent(self, model: ServedModel, rows: int, seconds: float) -> None:
        self._observer.on_sent(model=model.info.name, version=model.info.version, rows=rows, seconds=seconds)


def _check_fits(model: ServedModel, rows: int, encoding: kaem_pb2.Encoding, *, hint: str) -> None:
    most = rows_per_chunk(model.manifest, encoding, model.info.limits.max_chunk_bytes)
    if rows > most:
        error = RequestError(f"{rows} images do not fit in one message; {most} do", hint=hint)
        raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, error)


def _row_bytes(model: ServedModel, encoding: kaem_pb2.Encoding) -> int:
    return math.prod(model.manifest.image_shape) * (4 if encoding == kaem_pb2.ENCODING_FLOAT32 else 1)


def _convert(encoding: kaem_pb2.Encoding) -> Convert:
    return converting(to_bytes=encoding != kaem_pb2.ENCODING_FLOAT32)


async def _chunk(model: ServedModel, images: Images, start: int, encoding: kaem_pb2.Encoding) -> kaem_pb2.Chunk:
    """Write a message, in a thread where that is slow."""
    make = partial(chunk_from_images, images, start=start, encoding=encoding, numerics_id=model.info.numerics_id)
    return await asyncio.to_thread(make) if encoding == kaem_pb2.ENCODING_PNG else make()


def _write(message: kaem_pb2.Chunk | kaem_pb2.Model) -> bytes:
    return message.SerializeToString()
