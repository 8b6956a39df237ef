"""Rows of many requests -> full batches -> ordered chunks back; fair by rows, bounded in memory, cancellable.

The life of a row: a handler submits a job; `Rotation` puts the job's next rows into a batch beside rows of other
jobs; a lane, the thread of one engine, draws the batch's uniforms, decodes them and copies each row into its job's
chunk; a full chunk wakes the job's reader. A job's rows are planned only as far ahead of its reader as its window and
the memory shared by all allow, so slow readers together hold a bounded number of images and delay nobody.

This object is passive: it is told the time, and it computes when `run_next` is called. `lanes.py` calls it from
threads; a test calls it step by step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial

from serve.events import Observer
from serve.scheduling.admission import ReadyTimes
from serve.scheduling.admitted_jobs import AdmittedJobs, Part
from serve.scheduling.batch import Batch, Decode, Sizing
from serve.scheduling.batch_costs import CostTable
from serve.scheduling.demand import Bounds, Demand
from serve.scheduling.job import Convert, Job, failed, refused, stopping, too_late
from serve.scheduling.probes import MOST_TIMES, Probes
from serve.scheduling.punctuality import Punctuality
from serve.scheduling.sources import DecodeBoth, Source
from serve.statuses import RefusedError

_log = logging.getLogger(__name__)


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
        self._max_delay_s = bounds.max_delay_s
        self._lanes = lanes
        self._observer = observer or Observer()
        self._clock = clock
        self._post = post
        self._admitted = AdmittedJobs(costs, bounds)
        self._sizing = Sizing(costs)
        self._punctuality = (Punctuality(), Punctuality())  # interactive, bulk
        self._probes = Probes()
        self._running: set[Batch] = set()
        self._waiting_since = -math.inf
        self._is_closed = False
        self._when_idle: list[Callable[[], None]] = []
        self._changed = threading.Condition()  # guards all of the above

    @property
    def num_jobs(self) -> int:
        """Jobs submitted and not yet left by their readers."""
        return len(self._admitted)

    @property
    def queue_samples(self) -> int:
        """Rows that could go into a batch now, of each request at most a full batch."""
        return self._admitted.waiting

    @property
    def queue_bytes(self) -> int:
        """Bytes set aside for running requests, and what they hold beyond that."""
        return self._admitted.held_bytes

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
            raise too_late()
        now = self._clock()
        with self._changed:
            if self._is_closed:
                raise stopping()
            chunk_rows = demand.fitting_chunk_rows(self._admitted.free_bytes)
            ticket = demand.ticket(chunk_rows, now)
            estimate = self._estimate(now)
            refusal = self._admitted.refusal(ticket, demand, estimate)
            if refusal is None:
                job = Job(
                    self,
                    source,
                    ticket,
                    chunk_rows=chunk_rows,
                    convert=convert,
                    submitted_at=now,
                    with_latents=demand.with_latents,
                )
                if not estimate.is_idle:
                    ready_s = estimate.ready_s(demand.rows, is_bulk=demand.is_bulk, is_whole=ticket.is_whole)
                    job.estimated_s = ready_s / self._punctuality[demand.is_bulk].factor(now)
                self._admit(job, now)
            elif refusal.retry_after_s is None:  # however idle the server is
                self._doubt_prices(demand, estimate)
        if refusal is not None:
            self._observer.on_rejected(refusal.reason)
            raise refused(refusal)
        self._observer.on_admitted(is_bulk=demand.is_bulk, rows=demand.rows)
        return job

    def take(self, job: Job, rows: int) -> None:
        """Note that a job's reader is done with its next `rows` rows."""
        with self._changed:
            self._admitted.take(job, rows)
            self._changed.notify()

    def remove(self, job: Job) -> None:
        """Forget a job; rows of it that are being computed right now are dropped when they arrive."""
        with self._changed:
            was_here = self._admitted.remove(job)
            if was_here:
                self._learn(job)
                self._changed.notify()  # others may have waited for its bytes
            callbacks = self._take_idle()
        for callback in callbacks:
            self._post(callback)
        if was_here and not job.is_complete and not job.has_failed:
            self._note_left(job)

    def _learn(self, job: Job) -> None:
        """Compare what a job that leaves took with its estimate, if all of it was asked for at once and waited for."""
        if not job.estimated_s or not job.ticket.is_whole:
            return
        now = self._clock()
        if job.is_complete or job.ticket.deadline <= now:
            taken_s = now - job.submitted_at if job.is_complete else math.inf
            self._punctuality[job.ticket.is_bulk].note(job.estimated_s, taken_s, now)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """Call a function once, in the readers' event loop, as soon as no job is left."""
        with self._changed:
            self._when_idle.append(callback)
            idle = self._take_idle()
        for waiting in idle:
            self._post(waiting)

    def began_reading(self, job: Job) -> None:
        """Note that a job's reader has got its first chunk."""
        self._observer.on_first_chunk(self._clock() - job.submitted_at)

    def run_next(self, decode: Decode, both: DecodeBoth | None = None, *, wait: bool = False) -> bool:
        """Compute one batch and hand its rows over.

        Args:
            decode: Decoding function of the engine whose turn it is.
            both: The same with latent vectors; only needed where jobs ask for them.
            wait: Whether to wait until something may be computed.

        Returns:
            Whether there was a batch; with `wait` False means that the scheduler is closed.
        """
        batch = self._next_batch(wait=wait)
        if batch is None:
            return False
        try:
            began = self._clock()
            seconds = batch.compute(decode, both, self._noise_dim, self._clock)
            with self._changed:
                self._note_cost(batch, self._clock() - began)
            self._observer.on_batch(size=batch.size, rows=batch.rows, seconds=seconds)
        except RefusedError as error:  # nothing is wrong with the batch; there was nothing to compute it
            self._observer.on_batch_failed(size=batch.size, rows=batch.rows)
            self._fail(batch.jobs, error)
        except Exception:  # whatever the engine raises, the jobs beside these must go on
            _log.exception("a batch of %d rows failed", batch.rows)
            self._observer.on_batch_failed(size=batch.size, rows=batch.rows)
            self._fail(batch.jobs, failed())
        else:
            self._post(partial(_wake_all, batch.jobs))
        finally:
            with self._changed:
                self._running.discard(batch)
        return True

    def close(self) -> None:
        """End every job with an error and let the lanes stop, after the batches that are being computed."""
        with self._changed:
            self._is_closed = True
            jobs = list(self._admitted)
            self._changed.notify_all()
        self._post(partial(_fail_all, jobs, stopping()))

    def _take_idle(self) -> list[Callable[[], None]]:
        """Return who waits for the last job to leave, if it has left."""
        if len(self._admitted):
            return []
        callbacks, self._when_idle = self._when_idle, []
        return callbacks

    def _estimate(self, now: float) -> ReadyTimes:
        self.costs.settle(now)
        busy_s = next_s = 0.0
        if len(self._running) >= self._lanes:
            busy_s = max(0.0, min(batch.ends_at for batch in self._running) - now)
            next_s = max(self.costs.batch_seconds(batch.size) for batch in self._running)
        interactive, bulk = (punctuality.factor(now) for punctuality in self._punctuality)
        return self._admitted.estimate(lanes=self._lanes, busy_s=busy_s, next_s=next_s, factors=(interactive, bulk))

    def _admit(self, job: Job, now: float) -> None:
        if not self._admitted.waiting:
            self._waiting_since = now
        self._admitted.admit(job)
        self._changed.notify()

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """End jobs before the next batch is planned: it must hold no row after a lost one."""
        with self._changed:
            for job in jobs:
                self._admitted.stop(job)
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
                if not self._admitted.waiting and not self._running:
                    probe_s = self._probes.delay_s(now)
                    if probe_s <= 0:
                        return self._running_batch([], self._probes.next(now), now)
                    delay_s = min(delay_s, probe_s)
                if not wait:
                    break
                self._changed.wait(None if math.isinf(delay_s) else delay_s)
        return None

    def _delay_s(self, now: float) -> float:
        """Return how long it is still worth waiting for a fuller batch; infinity while nothing waits at all."""
        waiting = self._admitted.waiting
        if not waiting:
            return math.inf
        if waiting >= self.costs.largest or not self._max_delay_s:
            return 0.0
        return self._waiting_since + self._max_delay_s - now

    def _plan(self, now: float) -> Batch | None:
        """Plan a batch of the best size for what waits; None if only jobs waited whose deadline has passed."""
        size = self._sizing.next(self._admitted.waiting, self._admitted.waiting_interactive)
        parts, late = self._admitted.plan(size, now)
        self._waiting_since = now
        for _ in late:
            self._observer.on_expired()
        if late:
            self._post(partial(_fail_all, late, too_late()))
        if not parts:
            return None
        for job, span in parts:
            if not span.first:
                job.context.run(self._observer.on_queued, now - job.submitted_at)
        return self._running_batch(parts, self.costs.fitting(sum(span.rows for _, span in parts)), now)

    def _running_batch(self, parts: list[Part], size: int, now: float) -> Batch:
        batch = Batch(parts, size, now + self.costs.batch_seconds(size))
        self._running.add(batch)
        return batch

    def _doubt_prices(self, demand: Demand, estimate: ReadyTimes) -> None:
        """Have the prices measured again that have refused a demand, unless no true price could be so much lower."""
        if demand.timeout_s and estimate.alone_s(demand.rows_in_time) <= MOST_TIMES * demand.timeout_s:
            self._probes.want(self.costs.sizes_of(math.ceil(demand.rows_in_time / self._lanes)))
            self._changed.notify()

    def _note_cost(self, batch: Batch, seconds: float) -> None:
        """Let a batch that has just run correct the prices."""
        if batch.parts:
            self.costs.observe(batch.size, seconds)
        elif self.costs.probe(batch.size, seconds):
            _log.info("a batch of %d rows takes %.3g s, less than when the model was loaded", batch.size, seconds)

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
