"""Rows of many requests -> full batches -> ordered chunks back; fair by rows, bounded in memory, cancellable.

The life of a row: a handler submits a job; `Rotation` puts the job's next rows into a batch beside rows of other
jobs; a lane, the thread of one engine, draws the batch's uniforms, decodes them and copies each row into its job's
chunk; a full chunk wakes the job's reader. A job's rows are planned only as far ahead of its reader as its window and
the memory shared by all allow, so slow readers together hold a bounded number of images and delay nobody.

This object is passive: it is told the time, and it computes when `run_next` is called. `serve.lanes` calls it from
threads; a test calls it step by step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import grpc

from kaem.errors import BackendError, RemoteError
from kaem.sampler import Images, Uniforms
from serve.admission import Estimate, Refusal, refuse_for_bytes, refuse_for_deadline, refuse_for_samples
from serve.backlog import Backlog
from serve.buckets import CostTable
from serve.job import Convert, Job
from serve.observer import Observer
from serve.rotation import Rotation, Span, Ticket
from serve.sources import Source, draw
from serve.statuses import RefusedError

Decode = Callable[[Uniforms], Images]
"""Uniforms (N, D) -> images (N, C, H, W), for N in the cost table."""

_TURNS_PER_BATCH = 16
_QUICK = 1 / 8  # of a full batch: the most that interactive rows may take from bulk by going alone
_CHUNKS_AHEAD = 2  # that a reader may always have: one on its way out, one being computed
_POOL_SHARES = 512  # a stream's chunk is at most this part of the bytes that are free when it comes
_LEAST_CHUNK_BYTES = 32 << 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may wait and be held.

    Attributes:
        max_queue_samples: Samples that may wait for a batch, of each request at most a full one; further requests are
            refused.
        max_held_bytes: Bytes of images that all requests together may hold for their readers.
        max_delay_s: How long a batch that is not full waits for more rows.
        interactive_turn: Rows an interactive request may have computed before the next one has its turn.
    """

    max_queue_samples: int = 1 << 20
    max_held_bytes: int = 1 << 30
    max_delay_s: float = 0.0
    interactive_turn: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request asks of the scheduler.

    Attributes:
        rows: Rows of the job, at least 1.
        row_bytes: What a row takes while it is held.
        chunk_rows: Most rows of a chunk.
        window: Most rows computed ahead of the reader; two chunks are always allowed.
        is_bulk: Whether it belongs to the second class.
        may_shrink: Whether chunks may become smaller when much is held; otherwise they have `chunk_rows` rows.
        timeout_s: Seconds until the deadline, None for no deadline.
        due_rows: Rows that must be ready by then for the request to make sense; None for all.
    """

    rows: int
    row_bytes: int
    chunk_rows: int
    window: int
    is_bulk: bool = False
    may_shrink: bool = False
    timeout_s: float | None = None
    due_rows: int | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Rows to be computed together."""

    parts: list[tuple[Job, Span]]
    size: int
    ends_at: float

    @property
    def rows(self) -> int:
        """Rows that somebody wants; the rest is padding."""
        return sum(span.rows for _, span in self.parts)


class Scheduler:
    """Decides what is computed next, and lets no more in than it can hold and finish in time.

    Thread-safe. Readers are woken in their event loop through `post`.

    Args:
        costs: Measured seconds of each batch; these sizes are the only ones run.
        noise_dim: D of the model.
        bounds: What may wait and be held.
        lanes: Batches that are computed at the same time.
        observer: Told what happens.
        clock: Seconds on a clock that never goes back.
        post: Runs a function in the readers' event loop, soon; by default at once.
    """

    def __init__(
        self,
        costs: CostTable,
        *,
        noise_dim: int,
        bounds: Bounds,
        lanes: int = 1,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        post: Callable[[Callable[[], None]], object] = lambda function: function(),
    ) -> None:
        self.costs = costs
        self._noise_dim = noise_dim
        self._bounds = bounds
        self._lanes = lanes
        self._observer = observer or Observer()
        self._clock = clock
        self._post = post
        self._base_bytes = bounds.max_held_bytes // 2  # for what each job may always hold; the rest is spare
        self._rotation = Rotation(
            quantum=max(1, bounds.interactive_turn),
            bulk_quantum=max(1, costs.largest // _TURNS_PER_BATCH),
            most_counted=costs.largest,
            spare_bytes=bounds.max_held_bytes - self._base_bytes,
        )
        self._backlogs = (Backlog(), Backlog())  # interactive, bulk
        self._jobs: dict[Ticket, Job] = {}
        self._reserved = 0
        self._running: set[Batch] = set()
        self._waiting_since = -math.inf
        self._went_alone = False
        self._is_closed = False
        self._changed = threading.Condition()  # guards all of the above

    @property
    def num_jobs(self) -> int:
        """Jobs submitted and not yet left by their readers."""
        return len(self._jobs)

    @property
    def queue_samples(self) -> int:
        """Rows that could go into a batch now, of each request at most a full batch."""
        return self._rotation.waiting

    @property
    def queue_bytes(self) -> int:
        """Bytes set aside for running requests."""
        return self._reserved

    def submit(self, source: Source, demand: Demand, *, convert: Convert) -> Job:
        """Let a job in.

        Args:
            source: Where the uniforms of its rows come from.
            demand: What it asks for.
            convert: Applied to its images as they are computed.

        Raises:
            RefusedError: RESOURCE_EXHAUSTED, there is no room or its deadline cannot be met; DEADLINE_EXCEEDED, the
                deadline has passed; UNAVAILABLE, the scheduler is closed.
        """
        if demand.timeout_s is not None and demand.timeout_s <= 0:
            self._observer.on_expired()
            raise _too_late()
        now = self._clock()
        with self._changed:
            if self._is_closed:
                raise _stopping()
            chunk_rows = self._chunk_rows(demand)
            ticket = Ticket(
                rows=demand.rows,
                window=max(demand.window * chunk_rows // demand.chunk_rows, _CHUNKS_AHEAD * chunk_rows),
                base=min(demand.rows, _CHUNKS_AHEAD * chunk_rows),
                row_bytes=demand.row_bytes,
                is_bulk=demand.is_bulk,
                deadline=math.inf if demand.timeout_s is None else now + demand.timeout_s,
            )
            job = Job(self, source, ticket, chunk_rows=chunk_rows, convert=convert, submitted_at=now)
            refusal = self._refusal(ticket, demand, now)
            if refusal is None:
                self._admit(job, now)
        if refusal is not None:
            self._observer.on_rejected(refusal.reason)
            raise _refused(refusal)
        self._observer.on_admitted(is_bulk=demand.is_bulk, rows=demand.rows)
        return job

    def take(self, job: Job, rows: int) -> None:
        """Note that a job's reader is done with its next `rows` rows."""
        with self._changed:
            self._rotation.take(job.ticket, rows)
            self._changed.notify()

    def remove(self, job: Job) -> None:
        """Forget a job; rows of it that are being computed right now are dropped when they arrive."""
        with self._changed:
            was_here = self._jobs.pop(job.ticket, None) is not None
            if was_here:
                self._stop(job)
                self._rotation.remove(job.ticket)
                self._reserved -= job.ticket.base * job.ticket.row_bytes
                self._changed.notify()  # others may have waited for its bytes
        if was_here and not job.is_complete and not job.has_failed:
            self._note_left(job)

    def began_reading(self, job: Job) -> None:
        """Note that a job's reader has got its first chunk."""
        self._observer.on_first_chunk(self._clock() - job.submitted_at)

    def run_next(self, decode: Decode, *, wait: bool = False) -> bool:
        """Compute one batch and hand its rows over.

        Args:
            decode: Of the engine whose turn it is.
            wait: Whether to wait until something may be computed.

        Returns:
            Whether there was a batch; with `wait` False means that the scheduler is closed.
        """
        batch = self._next_batch(wait=wait)
        if batch is None:
            return False
        try:
            self._compute(batch, decode)
        except RefusedError as error:  # nothing is wrong with the batch; there was nothing to compute it
            self._observer.on_batch_failed(size=batch.size, rows=batch.rows)
            self._fail([job for job, _ in batch.parts], error)
        except Exception:  # whatever the engine raises, the jobs beside these must go on
            _log.exception("a batch of %d rows failed", batch.rows)
            self._observer.on_batch_failed(size=batch.size, rows=batch.rows)
            self._fail([job for job, _ in batch.parts], _failed())
        else:
            jobs = [job for job, _ in batch.parts]
            self._post(partial(_wake_all, jobs))
        finally:
            with self._changed:
                self._running.discard(batch)
        return True

    def close(self) -> None:
        """End every job with an error and let the lanes stop, after the batches that are being computed."""
        with self._changed:
            self._is_closed = True
            jobs = list(self._jobs.values())
            self._changed.notify_all()
        self._post(partial(_fail_all, jobs, _stopping()))

    def _chunk_rows(self, demand: Demand) -> int:
        """Return the rows of a job's chunks: smaller ones when many readers have to share the memory."""
        if not demand.may_shrink:
            return demand.chunk_rows
        free = self._base_bytes - self._reserved
        chunk_bytes = max(_LEAST_CHUNK_BYTES, free // _POOL_SHARES)
        return max(1, min(demand.chunk_rows, chunk_bytes // demand.row_bytes))

    def _refusal(self, ticket: Ticket, demand: Demand, now: float) -> Refusal | None:
        estimate = self._estimate(now)
        if demand.timeout_s is not None:
            due = demand.rows if demand.due_rows is None else min(demand.due_rows, demand.rows)
            refusal = refuse_for_deadline(estimate, due, is_bulk=demand.is_bulk, timeout_s=demand.timeout_s)
            if refusal is not None:
                return refusal
        waiting, newcomer = self._rotation.waiting, min(ticket.waiting, self.costs.largest)
        refusal = refuse_for_samples(estimate, waiting=waiting, newcomer=newcomer, most=self._bounds.max_queue_samples)
        return refusal or refuse_for_bytes(
            estimate,
            reserved=self._reserved,
            newcomer=ticket.base * ticket.row_bytes,
            most=self._base_bytes,
            waiting=waiting,
        )

    def _estimate(self, now: float) -> Estimate:
        interactive, bulk = self._backlogs
        busy_s = next_s = 0.0
        if len(self._running) >= self._lanes:
            busy_s = max(0.0, min(batch.ends_at for batch in self._running) - now)
            next_s = max(self.costs.batch_seconds(batch.size) for batch in self._running)
        return Estimate(
            self.costs,
            interactive=interactive,
            bulk=bulk,
            quanta=self._rotation.quanta,
            lanes=self._lanes,
            busy_s=busy_s,
            next_s=next_s,
        )

    def _admit(self, job: Job, now: float) -> None:
        ticket = job.ticket
        if not self._rotation.waiting:
            self._waiting_since = now
        self._jobs[ticket] = job
        self._reserved += ticket.base * ticket.row_bytes
        self._backlogs[ticket.is_bulk].move(0, ticket.left)
        self._rotation.add(ticket)
        self._changed.notify()

    def _stop(self, job: Job) -> None:
        """Compute nothing more for a job; what was computed stays accounted for until its reader leaves."""
        ticket = job.ticket
        self._backlogs[ticket.is_bulk].move(ticket.left, 0)
        self._rotation.stop(ticket)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """End jobs before the next batch is planned: it must hold no row after a lost one."""
        with self._changed:
            for job in jobs:
                self._stop(job)
        self._post(partial(_fail_all, jobs, error))

    def _next_batch(self, *, wait: bool) -> Batch | None:
        """Plan a batch; None if there is nothing to compute now, or with `wait` once the scheduler is closed."""
        with self._changed:
            while not self._is_closed:
                now = self._clock()
                delay_s = self._delay_s(now)
                if delay_s <= 0:
                    batch = self._plan(now)
                    if batch is not None:
                        self._changed.notify()  # what is left may be for another lane
                        return batch
                    delay_s = math.inf
                if not wait:
                    break
                self._changed.wait(None if math.isinf(delay_s) else delay_s)
        return None

    def _delay_s(self, now: float) -> float:
        """Return how long it is still worth waiting for a fuller batch; infinity while nothing waits at all."""
        waiting = self._rotation.waiting
        if not waiting:
            return math.inf
        if waiting >= self.costs.largest or not self._bounds.max_delay_s:
            return 0.0
        return self._waiting_since + self._bounds.max_delay_s - now

    def _plan(self, now: float) -> Batch | None:
        """Plan a batch of the best size for what waits; None if only jobs waited whose deadline has passed."""
        size = self._size()
        spans, expired = self._rotation.next_batch(size, now)
        self._waiting_since = now
        if expired:
            late = [self._jobs[ticket] for ticket in expired]
            for job in late:
                self._stop(job)
                self._observer.on_expired()
            self._post(partial(_fail_all, late, _too_late()))
        if not spans:
            return None
        for span in spans:
            backlog = self._backlogs[span.ticket.is_bulk]
            backlog.move(span.ticket.left + span.rows, span.ticket.left)
            if not span.first:
                job = self._jobs[span.ticket]
                job.context.run(self._observer.on_queued, now - job.submitted_at)
        size = self.costs.fitting(sum(span.rows for span in spans))
        parts = [(self._jobs[span.ticket], span) for span in spans]
        batch = Batch(parts, size, now + self.costs.batch_seconds(size))
        self._running.add(batch)
        return batch

    def _size(self) -> int:
        """Return the size of the next batch.

        A few interactive rows do not wait for the bulk rows that could fill their batch: they go alone where that
        takes a small part of the full batch's time, though never twice running, so that bulk loses no more than that.
        """
        full = self.costs.best(self._rotation.waiting)
        interactive = self._rotation.waiting_interactive
        alone = self.costs.fitting(interactive)
        is_quick = self.costs.batch_seconds(alone) <= _QUICK * self.costs.batch_seconds(full)
        self._went_alone = bool(interactive) and alone < full and is_quick and not self._went_alone
        return alone if self._went_alone else full

    def _compute(self, batch: Batch, decode: Decode) -> None:
        """Decode one batch and copy each job's rows into its chunks."""
        began = self._clock()
        parts = [(job.source, span.first, span.rows) for job, span in batch.parts]
        uniform = draw(parts, batch.size, self._noise_dim)
        decoding = self._clock()
        images = decode(uniform)
        decoded = self._clock()
        if len(images) != batch.size:
            raise BackendError(f"the model made {len(images)} images of {batch.size} rows")
        start = 0
        for job, span in batch.parts:
            job.fill(span.first, images[start : start + span.rows])
            start += span.rows
        with self._changed:
            self.costs.observe(batch.size, self._clock() - began)
        self._observer.on_batch(size=batch.size, rows=batch.rows, seconds=decoded - decoding)

    def _note_left(self, job: Job) -> None:
        if job.ticket.deadline <= self._clock():
            self._observer.on_expired()
        elif not job.ticket.planned:
            self._observer.on_cancelled("queued")
        else:
            self._observer.on_cancelled("sending" if job.has_chunks else "computing")


def _wake_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.wake()


def _fail_all(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        job.fail(error)


def _refused(refusal: Refusal) -> RefusedError:
    return RefusedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        RemoteError(refusal.message, hint=refusal.hint),
        retry_after_s=refusal.retry_after_s,
        quota=refusal.reason,
    )


def _too_late() -> RefusedError:
    error = RemoteError("the deadline passed before the samples were ready", hint="ask for fewer or allow more time")
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, error)


def _failed() -> BackendError:
    """What the readers of a failed batch are told: our own words, never those of the runtime below us."""
    return BackendError("the batch with these rows could not be computed", hint="the server's log says why")


def _stopping() -> RefusedError:
    error = RemoteError("the server is stopping", hint="try again; a restarted server continues at any index")
    return RefusedError(grpc.StatusCode.UNAVAILABLE, error)
