"""One request's rows on their way to its reader: spans of batches come in, in any order; ordered chunks go out.

How a job ends that does not end well, in the words its client reads.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import grpc
import numpy as np

from kaem.errors import BackendError, RemoteError
from kaem.sampler import Images
from serve.scheduling.admission import Refusal
from serve.scheduling.fair_queue import Ticket
from serve.scheduling.sources import Source
from serve.statuses import RefusedError

Convert = Callable[[Images], Images]
"""Images of the sampler -> images as the job wants them, row by row; pure."""


class Owner(Protocol):
    """What a job tells its scheduler."""

    def take(self, job: Job, rows: int) -> None:
        """The reader is done with its next `rows` rows."""
        ...

    def remove(self, job: Job) -> None:
        """The reader has left."""
        ...

    def began_reading(self, job: Job) -> None:
        """The reader has got its first chunk."""
        ...


class Job:
    """Consecutive rows on their way to one reader: `async with` it, and iterate over its chunks.

    Leaving the block, for whatever reason, takes the job's remaining rows out of the rotation at once.

    Attributes:
        source: Where its uniforms come from.
        with_latents: Whether its rows are those of `serve.scheduling.sources`, images beside latent vectors.
        ticket: Its place in the rotation.
        chunk_rows: Rows of each chunk but the last.
        submitted_at: When it came, on the scheduler's clock.
        estimated_s: Seconds that it was to take, if it came to a busy server; else 0.
    """

    def __init__(
        self,
        owner: Owner,
        source: Source,
        ticket: Ticket,
        *,
        chunk_rows: int,
        convert: Convert,
        submitted_at: float,
        with_latents: bool = False,
    ) -> None:
        self.source = source
        self.with_latents = with_latents
        self.ticket = ticket
        self.chunk_rows = chunk_rows
        self.submitted_at = submitted_at
        self.context = contextvars.copy_context()  # of its call, for those who are told of it in other threads
        self.estimated_s = 0.0
        self._owner = owner
        self._num_rows = ticket.rows
        self._convert = convert
        self._filling = threading.Lock()  # batches computed at the same time may both hold rows of this job
        self._open: dict[int, tuple[Images, int]] = {}  # by number: the chunk, and the rows it still lacks
        self._next = 0  # number of the chunk that is to be ready next
        self._ready: deque[Images] = deque()
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._lent = 0  # rows of the chunk the reader holds now
        self._has_begun = False

    @property
    def is_complete(self) -> bool:
        """Whether the reader has got every row."""
        return self.ticket.taken + self._lent == self._num_rows

    @property
    def has_chunks(self) -> bool:
        """Whether the reader holds a chunk, or could have one at once."""
        return bool(self._ready) or bool(self._lent)

    @property
    def has_failed(self) -> bool:
        """Whether the job was ended by its scheduler."""
        return self._error is not None

    def fill(self, first: int, images: Images) -> None:
        """Copy computed rows into their chunks; runs in a thread that computes.

        A copy, because a view of one row would keep its whole batch alive for as long as a slow reader likes.
        """
        rows = self._convert(images)
        with self._filling:
            while len(rows):
                number, offset = divmod(first, self.chunk_rows)
                size = min(self.chunk_rows, self._num_rows - number * self.chunk_rows)
                chunk, lacking = self._open.get(number) or (np.empty((size, *rows.shape[1:]), rows.dtype), size)
                part = rows[: size - offset]
                chunk[offset : offset + len(part)] = part
                self._open[number] = chunk, lacking - len(part)
                first += len(part)
                rows = rows[len(part) :]
            while self._next in self._open and not self._open[self._next][1]:
                self._ready.append(self._open.pop(self._next)[0])
                self._next += 1

    def wake(self) -> None:
        """Let the reader look for chunks or for an error; to be called in its event loop."""
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """End the job; its reader still gets the chunks that are complete, then the error."""
        self._error = self._error or error
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Images:
        """Return the next chunk, shape (rows, C, H, W).

        Raises:
            BackendError: A batch with rows of this job failed.
            RefusedError: The deadline passed, or the scheduler was closed.
        """
        if self._lent:
            lent, self._lent = self._lent, 0
            self._owner.take(self, lent)
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self.ticket.taken == self._num_rows:
                raise StopAsyncIteration
            self._wake.clear()
            if not self._ready:  # otherwise it was filled just now
                await self._wake.wait()
        chunk = self._ready.popleft()
        self._lent = len(chunk)
        if not self._has_begun:
            self._has_begun = True
            self._owner.began_reading(self)
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.remove(self)
        self._ready.clear()


def refused(refusal: Refusal) -> RefusedError:
    """There is no room for it, or no time: it was not let in."""
    return RefusedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        RemoteError(refusal.message, hint=refusal.hint),
        retry_after_s=refusal.retry_after_s,
        quota=refusal.reason,
    )


def too_late() -> RefusedError:
    """Its deadline has passed."""
    error = RemoteError("the deadline passed before the samples were ready", hint="ask for fewer or allow more time")
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, error)


def failed() -> BackendError:
    """A batch of it failed: our own words, never those of the runtime below us."""
    return BackendError("the batch with these rows could not be computed", hint="the server's log says why")


def stopping() -> RefusedError:
    """The scheduler is closed."""
    error = RemoteError("the server is stopping", hint="try again; a restarted server continues at any index")
    return RefusedError(grpc.StatusCode.UNAVAILABLE, error)
