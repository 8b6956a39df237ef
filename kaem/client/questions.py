"""What a job asks for: the method to call, the request for any range of its rows, and how an answer is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kaem.protocol import kaem_pb2
from kaem.protocol.messages import Model, bytes_from_uniforms, images_from_chunk
from kaem.requests import check_version
from kaem.sampler import Images, Uniforms

Request = kaem_pb2.SampleRequest | kaem_pb2.DecodeRequest


class Question(Protocol):
    """One of `Samples` and `Decoding`."""

    @property
    def method(self) -> str:
        """Name of the method of kaem.v1.Sampler."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the method answers with a stream, or with one message."""
        ...

    def request(self, first: int, rows: int, model: Model) -> Request:
        """Return the request for rows `first .. first + rows - 1`, demanding the numerics id of `model`."""
        ...

    def read(self, chunk: kaem_pb2.Chunk, first: int, max_rows: int, model: Model) -> Images:
        """Return the images of an answer that must begin with row `first`, shape (N, C, H, W), read-only.

        Raises:
            RemoteError: The answer is not what was asked for.
        """
        ...


def model_question(model: str, version: int) -> kaem_pb2.GetModelRequest:
    """Return the request for what a server says of a model.

    Args:
        model: Its name; "" for the only one.
        version: Version of the model; 0 for the newest one.

    Raises:
        RequestError: `version` is no whole number below 2^64.
    """
    return kaem_pb2.GetModelRequest(model=model, version=check_version(version))


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of a seed: rows are sample indices."""

    seed: int
    is_stream: bool

    @property
    def method(self) -> str:
        """Name of the method of kaem.v1.Sampler."""
        return "StreamSamples" if self.is_stream else "Sample"

    def request(self, first: int, rows: int, model: Model) -> Request:
        """Return the request for samples `first .. first + rows - 1`."""
        return kaem_pb2.SampleRequest(
            model=model.name,
            version=model.version,
            seed=self.seed,
            start_index=first,
            count=rows,
            expected_numerics_id=model.numerics_id,
        )

    def read(self, chunk: kaem_pb2.Chunk, first: int, max_rows: int, model: Model) -> Images:
        """Return the samples of an answer that must begin with index `first`."""
        return images_from_chunk(
            chunk, manifest=model.manifest, numerics_id=model.numerics_id, start=first, max_rows=max_rows
        )


@dataclass(frozen=True, slots=True)
class Decoding:
    """Images of given uniforms, shape (N, D): rows are theirs."""

    rows: Uniforms
    method: str = "Decode"
    is_stream: bool = False

    def request(self, first: int, rows: int, model: Model) -> Request:
        """Return the request for the images of rows `first .. first + rows - 1`."""
        return kaem_pb2.DecodeRequest(
            model=model.name,
            version=model.version,
            count=rows,
            uniform=bytes_from_uniforms(self.rows[first : first + rows]),
            expected_numerics_id=model.numerics_id,
        )

    def read(self, chunk: kaem_pb2.Chunk, first: int, max_rows: int, model: Model) -> Images:
        """Return the images of an answer, which counts its own rows from 0."""
        return images_from_chunk(
            chunk, manifest=model.manifest, numerics_id=model.numerics_id, start=0, max_rows=max_rows
        )
