"""Rows of many requests -> full batches -> ordered chunks back; fair by rows, memory bounded per job, cancellable.

The life of a row: a handler submits a job; `Rotation` puts the job's next rows into a batch beside rows of
other jobs; the compute thread makes the batch's uniforms, decodes them and copies each row into its job's open
chunk; a full chunk wakes the job's reader. A job's rows are planned only as far ahead of its reader as its
window allows, so each slow reader holds a bounded number of images and delays nobody. Nothing bounds the number
of readers, and with it what they hold together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from kaem.errors import BackendError, RemoteError
from kaem.sampler import Images, Uniforms
from serve.rotation import Rotation, Span, Ticket

Source = Callable[[int, int], Uniforms]
"""(first, rows) -> uniforms of rows `first .. first + rows - 1` of a job, shape (rows, D); pure."""

Convert = Callable[[Images], Images]
"""Images of the sampler -> images as the job wants them, row by row; pure."""

_TURNS_PER_BATCH = 16
_log = logging.getLogger(__name__)


class Job:
    """Consecutive rows on their way to one reader: `async with` it, and iterate over its chunks.

    Leaving the block, for whatever reason, takes the job's remaining rows out of the rotation at once.
    """

    def __init__(
        self, scheduler: Scheduler, source: Source, ticket: Ticket, *, chunk_rows: int, convert: Convert
    ) -> None:
        self.source = source
        self.ticket = ticket
        self._scheduler = scheduler
        self._num_rows = ticket.rows
        self._chunk_rows = chunk_rows
        self._convert = convert
        self._open: Images | None = None
        self._ready: deque[Images] = deque()
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._lent = 0  # rows of the chunk the reader holds now

    def fill(self, first: int, images: Images) -> None:
        """Copy computed rows into the open chunk; runs in the compute thread, in row order.

        A copy, because a view of one row would keep its whole batch alive for as long as a slow reader likes.
        """
        rows = self._convert(images)
        while len(rows):
            offset = first % self._chunk_rows
            if self._open is None:
                size = min(self._chunk_rows, self._num_rows - first)
                self._open = np.empty((size, *rows.shape[1:]), rows.dtype)
            part = rows[: len(self._open) - offset]
            self._open[offset : offset + len(part)] = part
            if offset + len(part) == len(self._open):
                self._ready.append(self._open)
                self._open = None
            first += len(part)
            rows = rows[len(part) :]

    def wake(self) -> None:
        """Let the reader look for chunks or for an error."""
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """End the job; its reader still gets the chunks that are complete, then the error."""
        self._error = error
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Images:
        """Return the next chunk, shape (rows, C, H, W).

        Raises:
            BackendError: A batch with rows of this job failed.
            RemoteError: The scheduler was closed.
        """
        if self._lent:
            self._scheduler.take(self, self._lent)
            self._lent = 0
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self.ticket.taken == self._num_rows:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        chunk = self._ready.popleft()
        self._lent = len(chunk)
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.remove(self)


class Scheduler:
    """Runs the batches of one sampler, one after the other, in a thread of its own.

    The thread plans each batch itself, at the moment it can compute it: it never waits for the event loop, and a
    request that arrives or is cancelled meanwhile still counts for the next batch. Create and use this object
    inside one running event loop; `decode` and the jobs' sources and conversions run in the thread.

    Args:
        decode: Uniforms (N, D) -> images (N, C, H, W), N at most `max_batch`.
        max_batch: Rows of a full batch.
    """

    def __init__(self, decode: Callable[[Uniforms], Images], *, max_batch: int) -> None:
        self._decode = decode
        self._rotation = Rotation(max_rows=max_batch, quantum=max(1, max_batch // _TURNS_PER_BATCH))
        self._jobs: dict[Ticket, Job] = {}
        self._is_closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kaem-batch")
        self._thread.start()

    @property
    def num_jobs(self) -> int:
        """Jobs submitted and not yet left by their readers."""
        return len(self._jobs)

    def submit(self, source: Source, rows: int, *, chunk_rows: int, window: int, convert: Convert) -> Job:
        """Add a job.

        Args:
            source: Makes the uniforms of the job's rows.
            rows: Rows of the job, at least 1.
            chunk_rows: Rows of each chunk but the last.
            window: Most rows held for the job's reader; at least one chunk is always allowed.
            convert: Applied to the job's images as they are computed.

        Raises:
            RemoteError: The scheduler is closed.
        """
        ticket = Ticket(rows=rows, window=max(window, chunk_rows))
        job = Job(self, source, ticket, chunk_rows=chunk_rows, convert=convert)
        with self._changed:
            if self._is_closed:
                raise _stopping()
            self._jobs[ticket] = job
            self._rotation.add(ticket)
            self._changed.notify()
        return job

    def take(self, job: Job, rows: int) -> None:
        """Note that a job's reader is done with its next `rows` rows."""
        with self._changed:
            self._rotation.take(job.ticket, rows)
            self._changed.notify()

    def remove(self, job: Job) -> None:
        """Forget a job; rows of it that are being computed right now are dropped when they arrive."""
        with self._changed:
            self._rotation.remove(job.ticket)
            self._jobs.pop(job.ticket, None)

    async def close(self) -> None:
        """End every job with an error and stop, after the batch that is being computed."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs.values():
                job.fail(_stopping())
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while batch := self._next_batch():
            error: BackendError | None = None
            try:
                self._compute(batch)
            except Exception:  # whatever the backend raises, the jobs beside it must go on
                _log.exception("a batch of %d rows failed", sum(span.rows for _, span in batch))
                error = _failed()
                for job, _ in batch:  # before the next batch is planned: it must hold no row after the lost ones
                    self.remove(job)
            self._loop.call_soon_threadsafe(self._hand_over, [job for job, _ in batch], error)

    def _next_batch(self) -> list[tuple[Job, Span]]:
        """Wait until something waits, and plan a batch; empty once the scheduler is closed."""
        with self._changed:
            while not self._is_closed:
                spans = self._rotation.next_batch()
                if spans:
                    return [(self._jobs[span.ticket], span) for span in spans]
                self._changed.wait()
        return []

    def _compute(self, batch: list[tuple[Job, Span]]) -> None:
        """Decode one batch and copy each job's rows into its open chunk."""
        uniform = np.concatenate([job.source(span.first, span.rows) for job, span in batch])
        images = self._decode(uniform)
        if len(images) != len(uniform):
            raise BackendError(f"the model made {len(images)} images of {len(uniform)} rows")
        start = 0
        for job, span in batch:
            job.fill(span.first, images[start : start + span.rows])
            start += span.rows

    def _hand_over(self, jobs: list[Job], error: BackendError | None) -> None:
        """Tell the readers of a batch, in the event loop."""
        for job in jobs:
            if error is None:
                job.wake()
            else:
                job.fail(error)


def _failed() -> BackendError:
    """What the readers of a failed batch are told: our own words, never those of the runtime below us."""
    return BackendError("the batch with these rows could not be computed", hint="the server's log says why")


def _stopping() -> RemoteError:
    return RemoteError("the server is stopping", hint="try again; a restarted server continues at any index")
