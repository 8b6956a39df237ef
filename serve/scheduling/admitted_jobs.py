"""What a scheduler has let in: its place in the rotation, its bytes, what is ahead of a newcomer, whose turn it is.

No clock and no lock: the scheduler says what time it is and lets one thread in at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from serve.scheduling.admission import (
    Backlog,
    ReadyTimes,
    Refusal,
    refuse_for_bytes,
    refuse_for_deadline,
    refuse_for_samples,
)
from serve.scheduling.batch_costs import CostTable
from serve.scheduling.demand import Bounds, Demand
from serve.scheduling.fair_queue import FairQueue, Span, Ticket
from serve.scheduling.job import Job

_TURNS_PER_BATCH = 16


class Part(NamedTuple):
    """Rows of one job in a batch."""

    job: Job
    span: Span


class AdmittedJobs:
    """Jobs, and what they wait for and hold.

    Args:
        costs: Measured seconds of each batch.
        bounds: What may wait and be held.
    """

    def __init__(self, costs: CostTable, bounds: Bounds) -> None:
        self._costs = costs
        self._bounds = bounds
        self._queue = FairQueue(
            quantum=max(1, bounds.interactive_turn),
            bulk_quantum=max(1, costs.largest // _TURNS_PER_BATCH),
            most_counted=costs.largest,
            spare_bytes=bounds.spare_bytes,
        )
        self._backlogs = (Backlog(), Backlog(), Backlog())  # interactive, bulk, and the line of whole bulk jobs
        self._jobs: dict[Ticket, Job] = {}
        self.reserved = 0  # bytes

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    @property
    def waiting(self) -> int:
        """Rows that could go into a batch now, of each job at most a full batch."""
        return self._queue.waiting

    @property
    def waiting_interactive(self) -> int:
        """As many of these are interactive."""
        return self._queue.waiting_interactive

    @property
    def held_bytes(self) -> int:
        """Bytes set aside for jobs, and those that they hold beyond."""
        return self.reserved + self._queue.spare_used

    @property
    def free_bytes(self) -> int:
        """Bytes that newcomers of either class may still set aside; none where interactive ones hold more."""
        return max(0, self._bounds.base_bytes - self.reserved)

    def estimate(self, *, lanes: int, busy_s: float, next_s: float, factors: tuple[float, float]) -> ReadyTimes:
        """Return when a newcomer would be done; for the arguments see `ReadyTimes`."""
        interactive, bulk, line = self._backlogs
        return ReadyTimes(
            self._costs,
            interactive=interactive,
            bulk=bulk,
            line=line,
            quanta=self._queue.quanta,
            lanes=lanes,
            busy_s=busy_s,
            next_s=next_s,
            factors=factors,
        )

    def refusal(self, ticket: Ticket, demand: Demand, estimate: ReadyTimes) -> Refusal | None:
        """Return why a newcomer is not to be let in, or None if it is."""
        if demand.timeout_s is not None:
            refusal = refuse_for_deadline(
                estimate,
                demand.rows_in_time,
                is_bulk=demand.is_bulk,
                is_whole=ticket.is_whole,
                timeout_s=demand.timeout_s,
            )
            if refusal is not None:
                return refusal
        newcomer = min(ticket.waiting, self._costs.largest)
        # Interactive rows go first: how many bulk rows wait is nothing to them.
        waiting = self.waiting if demand.is_bulk else self.waiting_interactive
        refusal = refuse_for_samples(estimate, waiting=waiting, newcomer=newcomer, most=self._bounds.max_queue_samples)
        return refusal or refuse_for_bytes(
            estimate,
            reserved=self.reserved,
            newcomer=ticket.base_bytes,
            most=self._bounds.base_bytes + (0 if demand.is_bulk else self._bounds.interactive_bytes),
            waiting=self.waiting,
        )

    def admit(self, job: Job) -> None:
        """Let a job in."""
        ticket = job.ticket
        self._jobs[ticket] = job
        self.reserved += ticket.base_bytes
        self._backlog(ticket).move(0, ticket.left)
        self._queue.add(ticket)

    def take(self, job: Job, rows: int) -> None:
        """Note that a job's reader is done with its next `rows` rows."""
        self._queue.take(job.ticket, rows)

    def stop(self, job: Job) -> None:
        """Plan nothing more of a job; what was computed stays accounted for until its reader leaves."""
        ticket = job.ticket
        self._backlog(ticket).move(ticket.left, 0)
        self._queue.stop(ticket)

    def remove(self, job: Job) -> bool:
        """Forget a job; return whether it was here."""
        if self._jobs.pop(job.ticket, None) is None:
            return False
        self.stop(job)
        self._queue.remove(job.ticket)
        self.reserved -= job.ticket.base_bytes
        return True

    def plan(self, size: int, now: float) -> tuple[list[Part], list[Job]]:
        """Return what goes into a batch of at most `size` rows, and the jobs found too late for one, now stopped."""
        spans, expired = self._queue.next_batch(size, now)
        late = [self._jobs[ticket] for ticket in expired]
        for job in late:
            self.stop(job)
        for span in spans:
            backlog = self._backlog(span.ticket)
            backlog.move(span.ticket.left + span.rows, span.ticket.left)
        return [Part(self._jobs[span.ticket], span) for span in spans], late

    def _backlog(self, ticket: Ticket) -> Backlog:
        return self._backlogs[2 if ticket.is_bulk and ticket.is_whole else ticket.is_bulk]
