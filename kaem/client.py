"""A sampler on a server: same methods and same bits as a local one; broken streams resume at the next index.

Every call is a pure function of its request, so whatever fails in transit is simply asked for again: a stream
from the index after the last image received, a single call as it was. The server must still compute with the
numerics id it had when we connected; otherwise old and new images would not belong together.
"""

from __future__ import annotations

import ipaddress
import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np

from kaem.artifact import Manifest
from kaem.errors import ConfigError, KaemError, RemoteError, RequestError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from kaem.protocol.messages import (
    Limits,
    Model,
    bytes_from_uniforms,
    images_from_chunk,
    model_from_message,
)
from kaem.protocol.status import error_from_status
from kaem.reading import messages_of
from kaem.requests import check_memory, check_range, check_uniforms
from kaem.sampler import Chunk, Images, Uniforms

Answer = TypeVar("Answer")

_TARGET = re.compile(
    r"(?:grpc://)?(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[^]]+\]):(?P<port>[0-9]{1,5})/?",
    re.ASCII | re.IGNORECASE,
)
_MAX_ROWS_PER_CALL = 1 << 63  # a count of 2^64 does not fit in the request
_CHANNEL_OPTIONS = (
    # Chunks stay below gRPC's default of 4 MiB; a manifest with many densities for plotting may not.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_retries", 0),  # repeated here instead, where a stream can resume in its middle
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh connection does not inherit another one's backoff
)
_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client puts up with a server.

    Attributes:
        call_timeout_s: Longest time without any answer; a stream that progresses may last for ever.
        attempts: Failures in a row, without progress between them, before giving up.
        first_delay_s: Wait before the second attempt; each further wait is twice as long, with jitter.
        max_delay_s: Longest such wait.
    """

    call_timeout_s: float = 120.0
    attempts: int = 10
    first_delay_s: float = 0.1
    max_delay_s: float = 4.0

    def delay_s(self, failures: int) -> float:
        """Return the wait after `failures` failures in a row, at least 1."""
        longest = min(self.max_delay_s, self.first_delay_s * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, so that clients do not return in step


def connect(target: str, *, timeout_s: float = 10.0, patience: Patience | None = None) -> RemoteSampler:
    """Connect to a server, waiting for one that is still starting.

    Args:
        target: `grpc://host:port` or `host:port`.
        timeout_s: How long to wait for the server to be ready.
        patience: How long later calls put up with failures.

    Raises:
        ConfigError: The target is not an address.
        RemoteError: No kaem server answered in time.
        ArtifactError: The server's model is of a format this kaem does not read.
    """
    address = _parse_target(target)
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s}; give more than 0 seconds")
    channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    try:
        stub = kaem_pb2_grpc.SamplerStub(channel)  # type: ignore[no-untyped-call]  # generated code
        message = _wait_for_model(stub, address, timeout_s)
        model = model_from_message(message, source=address)
        return RemoteSampler(channel, stub, model, address=address, patience=patience or Patience())
    except BaseException:
        channel.close()
        raise


class RemoteSampler:
    """A sampler on a server; see `kaem.sampler.Sampler` for the contract. Made by `connect`.

    Thread-safe: any number of threads may call its methods at once.

    Args:
        channel: Connection, closed with this object.
        stub: The generated stub on that channel.
        model: What the server said it samples from.
        address: The server's, for messages.
        patience: How long to put up with failures.
    """

    def __init__(self, channel: grpc.Channel, stub: Any, model: Model, *, address: str, patience: Patience) -> None:
        self._channel = channel
        self._stub = stub
        self._model = model
        self._address = address
        self._patience = patience
        self._is_closed = False

    @property
    def manifest(self) -> Manifest:
        """What the server's artifact says about itself."""
        return self._model.manifest

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, provider and runtime version: equal ids give equal bits."""
        return self._model.numerics_id

    @property
    def limits(self) -> Limits:
        """What fits in one message of this server."""
        return self._model.limits

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return samples `start .. start + num - 1` of `seed`.

        Args:
            num: Number of samples, at least 1; all are held in memory (use `stream` for more than fit).
            seed: In [0, 2^64).
            start: Index of the first sample; start + num must not pass 2^64.

        Returns:
            Shape (num, C, H, W), float32 in [0, 1] or uint8 as the manifest states.

        Raises:
            RequestError: A value is out of range, or the images would not fit in this machine's memory.
            RemoteError: The server gave up, or its numerics id has changed.
        """
        num, seed, start = check_range(num, seed, start)
        check_memory(num * self.manifest.image_bytes)
        images = np.empty((num, *self.manifest.image_shape), self.manifest.image_type)
        if num <= self._model.limits.max_sample_rows:
            request = self._request(num, seed, start)
            chunk = self._repeat(lambda: self._stub.Sample(request, timeout=self._patience.call_timeout_s))
            self._read(chunk, images, start)
            return images
        for first, part in self._parts(num, seed, start):
            images[first - start : first - start + len(part)] = part
        return images

    def stream(self, num: int, seed: int, start: int = 0) -> Iterator[Chunk]:
        """Yield the same samples in order, in chunks of about 1 MiB; the server computes only a little ahead.

        Raises:
            RequestError: A value is out of range (raised at the call, not at the first chunk).
            RemoteError: The server gave up, or its numerics id has changed (raised between chunks).
        """
        num, seed, start = check_range(num, seed, start)
        self._check_open()
        return self._chunks(num, seed, start)

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms to images.

        Args:
            uniform: Shape (N, D), signed in [-1/2, 1/2] or plain in [0, 1).

        Returns:
            Shape (N, C, H, W).

        Raises:
            RequestError: Wrong shape or a value out of range.
            RemoteError: The server gave up, or its numerics id has changed.
        """
        rows = check_uniforms(uniform, self.manifest.noise_dim)
        images = np.empty((len(rows), *self.manifest.image_shape), self.manifest.image_type)
        most = self._model.limits.max_decode_rows
        for first in range(0, len(rows), most):
            self._decode_into(images[first : first + most], rows[first : first + most])
        return images

    def close(self) -> None:
        """Close the connection; streams that are being read end with an error."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_into(self, images: Images, rows: Uniforms) -> None:
        request = kaem_pb2.DecodeRequest(
            model=self._model.name,
            count=len(rows),
            uniform=bytes_from_uniforms(rows),
            expected_numerics_id=self.numerics_id,
        )
        chunk = self._repeat(lambda: self._stub.Decode(request, timeout=self._patience.call_timeout_s))
        self._read(chunk, images, 0)

    def _chunks(self, num: int, seed: int, start: int) -> Iterator[Chunk]:
        with closing(self._parts(num, seed, start)) as parts:
            for first, part in parts:
                yield Chunk(start=first, images=part.copy())

    def _parts(self, num: int, seed: int, start: int) -> Generator[tuple[int, Images], None, None]:
        """Yield (index, images) in order, read-only, from as many calls as it takes."""
        index, end, failures = start, start + num, 0
        while index < end:
            self._check_open()
            rows = min(end - index, _MAX_ROWS_PER_CALL)
            call_end, began_at = index + rows, index
            call = self._stub.StreamSamples(self._request(rows, seed, index), timeout=self._patience.call_timeout_s)
            try:
                with closing(messages_of(call)) as messages:
                    for chunk in messages:
                        images = self._images(chunk, index, call_end - index)
                        yield index, images
                        index += len(images)
                        failures = 0
                if index < call_end:
                    raise RemoteError(f"{self._address} ended the stream {call_end - index} images early")
            except grpc.RpcError as error:
                if index < call_end:  # otherwise all is here, and what became of the call does not matter
                    failures += 1
                    self._wait_or_raise(error, failures, has_progressed=index > began_at)

    def _repeat(self, call: Callable[[], Answer]) -> Answer:
        """Make a single call, again after failures that may pass."""
        failures = 0
        while True:
            self._check_open()
            try:
                return call()
            except grpc.RpcError as error:
                failures += 1
                self._wait_or_raise(error, failures, has_progressed=False)

    def _wait_or_raise(self, error: grpc.RpcError, failures: int, *, has_progressed: bool) -> None:
        """Wait before the next attempt, or raise what the failure stands for if there is to be none."""
        self._check_open()
        code = error.code()
        if has_progressed and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return  # the deadline guards against silence; this call was only long
        if code not in _TRANSIENT or failures >= self._patience.attempts:
            raise _translate(error, self._address) from None
        time.sleep(self._patience.delay_s(failures))

    def _request(self, num: int, seed: int, start: int) -> kaem_pb2.SampleRequest:
        return kaem_pb2.SampleRequest(
            model=self._model.name,
            seed=seed,
            start_index=start,
            count=num,
            expected_numerics_id=self.numerics_id,
        )

    def _read(self, chunk: kaem_pb2.Chunk, images: Images, start: int) -> None:
        """Copy the one chunk that must hold all of `images`."""
        part = self._images(chunk, start, len(images))
        if len(part) != len(images):
            raise RemoteError(f"{self._address} sent {len(part)} images; expected {len(images)}")
        images[:] = part

    def _images(self, chunk: kaem_pb2.Chunk, start: int, max_rows: int) -> Images:
        return images_from_chunk(
            chunk, manifest=self.manifest, numerics_id=self.numerics_id, start=start, max_rows=max_rows
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError("this sampler is closed")


def _parse_target(target: str) -> str:
    """Return `host:port` of a target."""
    parts = _TARGET.fullmatch(target) if isinstance(target, str) else None
    if parts is None or not 1 <= int(parts["port"]) <= 65535 or not _is_host(parts["host"]):
        raise ConfigError(f"cannot read {target!r} as the address of a server", hint="write grpc://host:port")
    return f"{parts['host']}:{parts['port']}"


def _is_host(text: str) -> bool:
    """Whether the brackets of a host, if it has any, hold an IPv6 address."""
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def _wait_for_model(stub: Any, address: str, timeout_s: float) -> kaem_pb2.Model:
    """Ask for the model until the server answers, however often it says that it is still loading."""
    deadline = time.monotonic() + timeout_s
    patience = Patience(max_delay_s=0.5)
    failures = 0
    while True:
        left = max(0.001, deadline - time.monotonic())
        try:
            message: kaem_pb2.Model = stub.GetModel(kaem_pb2.GetModelRequest(), timeout=left, wait_for_ready=True)
        except grpc.RpcError as error:
            failures += 1
            delay = patience.delay_s(failures)
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise RemoteError(
                    f"no kaem server answered at {address} within {timeout_s:g} s",
                    hint="start one with: kaem serve model.onnx",
                ) from None
            if error.code() not in _TRANSIENT or time.monotonic() + delay > deadline:
                raise _translate(error, address) from None
            time.sleep(delay)
        else:
            return message


def _translate(error: grpc.RpcError, address: str) -> KaemError:
    metadata = [(entry.key, entry.value) for entry in error.trailing_metadata() or ()]
    return error_from_status(error.code().name, error.details() or "", metadata, source=address)
