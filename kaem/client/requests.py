"""What a job asks for: the method to call, the request for any range of its rows, and how an answer is read.

A job in blocks: consecutive ranges of indices, answered in any order by anyone, handed out in order.

Blocks are cut off the job as room for them appears, so a job of 2^64 samples takes no more memory than a small one:
at most `window` blocks are open, each with at most its own rows waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from kaem.protocol import kaem_pb2
from kaem.protocol.messages import Model, bytes_from_uniforms, images_from_chunk
from kaem.sampler import Images, Uniforms
from kaem.validation import check_version

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


@dataclass(eq=False, slots=True)
class Block:
    """Rows `first .. end - 1`; those below `next` have arrived, and `ready` holds what nobody has taken yet."""

    first: int
    end: int
    next: int
    ready: deque[tuple[int, Images]] = field(default_factory=deque)

    @property
    def is_complete(self) -> bool:
        """Whether all rows have arrived."""
        return self.next == self.end


class Blocks:
    """Rows `start .. start + num - 1`, cut and put together again.

    Args:
        start: First index.
        num: Number of rows, at least 1.
        block_rows: Rows of each block but the last.
        window: Most blocks open at a time.
    """

    def __init__(self, start: int, num: int, *, block_rows: int, window: int) -> None:
        self._uncut = start
        self._end = start + num
        self._block_rows = block_rows
        self._window = window
        self._open: deque[Block] = deque()

    def __iter__(self) -> Iterator[Block]:
        """Iterate over the open blocks, in order."""
        return iter(self._open)

    @property
    def head(self) -> Block | None:
        """The block whose rows are handed out next."""
        return self._open[0] if self._open else None

    @property
    def is_done(self) -> bool:
        """Whether everything has been handed out."""
        return not self._open and self._uncut == self._end

    def cut(self) -> None:
        """Open as many blocks as there is room for."""
        while len(self._open) < self._window and self._uncut < self._end:
            end = min(self._uncut + self._block_rows, self._end)
            self._open.append(Block(self._uncut, end, self._uncut))
            self._uncut = end

    def add(self, block: Block, images: Images) -> None:
        """Note the next rows of a block."""
        block.ready.append((block.next, images))
        block.next += len(images)

    def take(self) -> tuple[int, Images] | None:
        """Return the next rows in order and the index of the first, None while they have not arrived."""
        while self._open:
            head = self._open[0]
            if head.ready:
                piece = head.ready.popleft()
                if head.is_complete and not head.ready:
                    self._open.popleft()
                return piece
            if not head.is_complete:
                return None
            self._open.popleft()
        return None
