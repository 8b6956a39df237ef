"""The kaem.v1.Sampler service: requests become jobs of the scheduler, chunks of rows become messages."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Protocol

import grpc

from kaem import noise
from kaem.artifact import Manifest
from kaem.errors import ArtifactError, RemoteError, RequestError
from kaem.images import to_uint8
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import (
    MAX_MESSAGE_BYTES,
    MESSAGE_HEADROOM,
    Limits,
    Model,
    check_numerics,
    chunk_from_images,
    message_from_model,
    resolve_encoding,
    rows_per_chunk,
    uniforms_from_request,
)
from kaem.requests import NUM_INDICES, check_range, check_uniforms
from kaem.sampler import Images, Uniforms
from serve.calls import Context, Gate, RefusedError, admitted, tolerant
from serve.scheduler import Convert, Job, Scheduler, Source

SERVICE = kaem_pb2.DESCRIPTOR.services_by_name["Sampler"].full_name

_WINDOW_CHUNKS = 4  # computed ahead of a reader: enough to hide a batch's time behind the sending


class Backend(Protocol):
    """What the service needs of a sampler; `kaem.runtime.LocalSampler` satisfies it."""

    provider: str
    workers: int

    @property
    def manifest(self) -> Manifest:
        """What the model is."""
        ...

    @property
    def numerics_id(self) -> str:
        """Digest of all that fixes the bits of an image."""
        ...

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W)."""
        ...


def limits_of(manifest: Manifest, max_chunk_bytes: int) -> Limits:
    """Return what fits in one message for a model.

    Raises:
        ArtifactError: Not even one image fits.
    """
    largest = MAX_MESSAGE_BYTES - MESSAGE_HEADROOM
    if manifest.image_bytes > largest:
        raise ArtifactError(
            f"one image of model {manifest.name!r} takes {manifest.image_bytes} bytes; a message holds {largest}",
            hint="sample it without a server: kaem sample",
        )
    own = resolve_encoding(kaem_pb2.ENCODING_UNSPECIFIED, manifest)
    rows = rows_per_chunk(manifest, own, max_chunk_bytes)
    return Limits(
        max_chunk_bytes=max_chunk_bytes,
        max_sample_rows=rows,
        max_decode_rows=max(1, min(rows, max_chunk_bytes // (4 * manifest.noise_dim))),
    )


class SamplerService:
    """Answers kaem.v1.Sampler for one model.

    Args:
        backend: The sampler.
        scheduler: Runs the backend's batches.
        name: Name under which the model is offered.
        limits: What fits in one message.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, *, name: str, limits: Limits) -> None:
        self._manifest = backend.manifest
        self._scheduler = scheduler
        self._model = Model(
            name=name,
            manifest=backend.manifest,
            numerics_id=backend.numerics_id,
            provider=backend.provider,
            limits=limits,
        )

    def handler(self, gate: Gate) -> grpc.GenericRpcHandler[object, object]:
        """Return the methods, admitted by `gate`; built by hand so that requests are read tolerantly."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        sample, decode, model = (
            tolerant(cls) for cls in (kaem_pb2.SampleRequest, kaem_pb2.DecodeRequest, kaem_pb2.GetModelRequest)
        )
        methods = {
            "Sample": unary(admitted(self.sample, gate), sample, _write),
            "StreamSamples": stream(admitted(self.stream_samples, gate), sample, _write),
            "Decode": unary(admitted(self.decode, gate), decode, _write),
            "GetModel": unary(admitted(self.get_model, gate), model, _write),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def sample(self, request: kaem_pb2.SampleRequest, context: Context) -> kaem_pb2.Chunk:
        """Answer one message of samples."""
        encoding = self._check_samples(request)
        self._check_fits(request.count, encoding, hint="call StreamSamples")
        return await self._one_chunk(self._seeded(request), request.count, encoding, request.start_index)

    async def stream_samples(self, request: kaem_pb2.SampleRequest, context: Context) -> None:
        """Send samples in chunks; each write waits until the transport has room for it."""
        encoding = self._check_samples(request)
        rows = rows_per_chunk(self._manifest, encoding, self._model.limits.max_chunk_bytes)
        if request.max_chunk_rows:
            rows = min(rows, request.max_chunk_rows)
        start = request.start_index
        async with self._submit(self._seeded(request), request.count, rows, encoding) as job:
            async for images in job:
                await context.write(await self._chunk(images, start, encoding))
                start += len(images)

    async def decode(self, request: kaem_pb2.DecodeRequest, context: Context) -> kaem_pb2.Chunk:
        """Answer the images of given uniforms."""
        encoding = self._check_model(request.model, request.expected_numerics_id, request.encoding)
        uniform = check_uniforms(uniforms_from_request(request, self._manifest.noise_dim), self._manifest.noise_dim)
        self._check_fits(len(uniform), encoding, hint="send fewer rows at a time")
        return await self._one_chunk(lambda first, rows: uniform[first : first + rows], len(uniform), encoding, 0)

    async def get_model(self, request: kaem_pb2.GetModelRequest, context: Context) -> kaem_pb2.Model:
        """Answer what the model is."""
        self._check_model(request.model, "", kaem_pb2.ENCODING_UNSPECIFIED)
        return message_from_model(self._model)

    def _check_model(self, name: str, expected_numerics_id: str, encoding: kaem_pb2.Encoding) -> kaem_pb2.Encoding:
        """Check what all requests have in common and return the resolved encoding."""
        if name not in ("", self._model.name):
            error = RequestError(f"no model named {name!r}", hint=f"this server offers {self._model.name!r}")
            raise RefusedError(grpc.StatusCode.NOT_FOUND, error)
        if expected_numerics_id:
            try:
                check_numerics(self._model.numerics_id, expected_numerics_id)
            except RemoteError as error:
                raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, error) from None
        return resolve_encoding(encoding, self._manifest)

    def _check_samples(self, request: kaem_pb2.SampleRequest) -> kaem_pb2.Encoding:
        encoding = self._check_model(request.model, request.expected_numerics_id, request.encoding)
        try:
            check_range(request.count, request.seed, request.start_index)
        except RequestError as error:
            if request.start_index + request.count > NUM_INDICES:
                raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, error) from None
            raise
        return encoding

    def _check_fits(self, rows: int, encoding: kaem_pb2.Encoding, *, hint: str) -> None:
        most = rows_per_chunk(self._manifest, encoding, self._model.limits.max_chunk_bytes)
        if rows > most:
            error = RequestError(f"{rows} images do not fit in one message; {most} do", hint=hint)
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, error)

    def _seeded(self, request: kaem_pb2.SampleRequest) -> Source:
        seed, start, dim = request.seed, request.start_index, self._manifest.noise_dim
        return lambda first, rows: noise.uniforms(seed, start + first, rows, dim)

    def _submit(self, source: Source, rows: int, chunk_rows: int, encoding: kaem_pb2.Encoding) -> Job:
        is_float = encoding == kaem_pb2.ENCODING_FLOAT32
        row_bytes = math.prod(self._manifest.image_shape) * (4 if is_float else 1)
        window = _WINDOW_CHUNKS * self._model.limits.max_chunk_bytes // row_bytes
        convert: Convert = _unchanged if is_float else to_uint8
        return self._scheduler.submit(
            source, rows, chunk_rows=chunk_rows, window=max(window, 2 * chunk_rows), convert=convert
        )

    async def _one_chunk(self, source: Source, rows: int, encoding: kaem_pb2.Encoding, start: int) -> kaem_pb2.Chunk:
        async with self._submit(source, rows, rows, encoding) as job:
            return await self._chunk(await anext(job), start, encoding)

    async def _chunk(self, images: Images, start: int, encoding: kaem_pb2.Encoding) -> kaem_pb2.Chunk:
        """Write a message, in a thread where that is slow."""
        make = partial(chunk_from_images, images, start=start, encoding=encoding, numerics_id=self._model.numerics_id)
        return await asyncio.to_thread(make) if encoding == kaem_pb2.ENCODING_PNG else make()


def _unchanged(images: Images) -> Images:
    return images


def _write(message: kaem_pb2.Chunk | kaem_pb2.Model) -> bytes:
    return message.SerializeToString()
