"""Say no early: whether a newcomer fits in what a server may hold, and whether its deadline can be met.

A request is refused with the time after which it is worth trying again, or without one where no waiting helps. What
is ahead of a newcomer is counted in rows and priced by measured batches; a margin covers what no table knows.

How many rows are ahead of a newcomer, kept up to date in constant time per change.

Under a rotation that is fair by rows, by the time a newcomer has got n rows every other job has got at most about
n of its own: so ahead of it are min(left, n) rows of each. Jobs are counted by the binary length of what they have
left, which bounds that sum from above within a factor of two however many jobs there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from serve.scheduling.batch_costs import CostTable
from serve.scheduling.fair_queue import BULK_SHARE
from serve.scheduling.punctuality import LEAST

Reason = Literal["samples", "bytes", "deadline"]

_OVERHEAD_S = 0.001  # from the last row computed to the last byte sent
_LEAST_RETRY_S, _LONGEST_RETRY_S = 0.01, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not let in.

    Attributes:
        reason: What there is not enough of.
        message: The same in words, with figures.
        hint: What the client can do.
        retry_after_s: When it may try again; None if the same request would be refused for ever.
    """

    reason: Reason
    message: str
    hint: str
    retry_after_s: float | None


class ReadyTimes:
    """When rows would be ready, given what waits.

    Args:
        costs: Seconds of each batch.
        interactive: What interactive jobs have left.
        bulk: What bulk jobs have left that are served in turn.
        line: What the bulk jobs have left that are served one after another, see `serve.scheduling.fair_queue`.
        quanta: Rows that an interactive and a bulk job may give before the next of its class has its turn.
        lanes: Batches computed at the same time.
        busy_s: Until the first of the running batches is done; 0 if a lane is idle.
        next_s: What the next batch takes at least: rows that come while all lanes are busy will share it.
        factors: What estimates of an interactive and of a bulk job are multiplied with, see `punctuality.py`.
    """

    def __init__(
        self,
        costs: CostTable,
        *,
        interactive: Backlog,
        bulk: Backlog,
        line: Backlog,
        quanta: tuple[int, int],
        lanes: int,
        busy_s: float,
        next_s: float,
        factors: tuple[float, float] = (LEAST, LEAST),
    ) -> None:
        self._costs = costs
        self._interactive = interactive
        self._bulk = bulk
        self._line = line
        self._quanta = quanta
        self._lanes = lanes
        self._busy_s = busy_s
        self._next_s = next_s
        self._factors = factors

    def ready_s(self, rows: int, *, is_bulk: bool, is_whole: bool = False) -> float:
        """Return the seconds until a newcomer has `rows` rows, should nobody come after it."""
        quantum = self._quanta[is_bulk]
        if not is_bulk:
            total = rows + self._interactive.within(rows + quantum)
            if self._bulk.rows or self._line.rows:
                total += total // (BULK_SHARE - 1)
            return self._stretched(total, is_bulk=False)
        if is_whole:
            # A job in turn gets a share of 1 in n beside a line of n; summed while the line becomes shorter.
            in_turn = self._bulk.within(math.ceil(rows * (1.0 + math.log1p(self._line.jobs))) + quantum)
            total = rows + self._line.rows + in_turn
        else:
            total = rows + self._bulk.within(rows + quantum) + self._line.within(rows + quantum)
        # Interactive rows go first, but for the share of bulk rows.
        return self._stretched(min(total + self._interactive.rows, BULK_SHARE * total), is_bulk=True)

    @property
    def is_idle(self) -> bool:
        """Whether a newcomer would be computed at once and alone."""
        return not (self._interactive.rows or self._bulk.rows or self._line.rows or self._busy_s or self._next_s)

    def _stretched(self, rows: int, *, is_bulk: bool) -> float:
        # An idle server is as quick as it was found to be, whatever it was like when it was busy.
        return self.drain_s(rows) if self.is_idle else self.drain_s(rows) * self._factors[is_bulk] / LEAST

    def alone_s(self, rows: int) -> float:
        """Return the seconds until a newcomer has `rows` rows on a server with nothing else to do."""
        return LEAST * self._costs.seconds(math.ceil(rows / self._lanes), is_idle=True) + _OVERHEAD_S

    def drain_s(self, rows: int) -> float:
        """Return the seconds until `rows` of the rows that wait are done."""
        return self._busy_s + LEAST * max(self._next_s, self._seconds(rows)) + _OVERHEAD_S

    def _seconds(self, rows: int) -> float:
        return self._costs.seconds(math.ceil(rows / self._lanes), is_idle=self.is_idle)


def refuse_for_deadline(
    estimate: ReadyTimes, rows: int, *, is_bulk: bool, is_whole: bool = False, timeout_s: float
) -> Refusal | None:
    """Return why a newcomer's deadline cannot be met, or None if it can."""
    ready_s = estimate.ready_s(rows, is_bulk=is_bulk, is_whole=is_whole)
    if ready_s <= timeout_s:
        return None
    alone_s = estimate.alone_s(rows)
    if alone_s > timeout_s:
        message = f"{rows} samples take about {alone_s:.3g} s here; the deadline is in {timeout_s:.3g} s"
        return Refusal(reason="deadline", message=message, hint="ask for fewer or allow more time", retry_after_s=None)
    message = f"{rows} samples would be ready in about {ready_s:.3g} s; the deadline is in {timeout_s:.3g} s"
    return Refusal(
        reason="deadline",
        message=message,
        hint="the server is busy: try again later, or elsewhere",
        retry_after_s=_bounded(ready_s - timeout_s),
    )


def refuse_for_samples(estimate: ReadyTimes, *, waiting: int, newcomer: int, most: int) -> Refusal | None:
    """Return why `newcomer` more samples may not wait beside `waiting` others, or None if they may."""
    if not waiting or waiting + newcomer <= most:
        return None
    return Refusal(
        reason="samples",
        message=f"{waiting} samples are waiting; at most {most} may",
        hint="the server is busy: try again later, or elsewhere",
        retry_after_s=_bounded(estimate.drain_s(min(waiting, waiting + newcomer - most))),
    )


def refuse_for_bytes(estimate: ReadyTimes, *, reserved: int, newcomer: int, most: int, waiting: int) -> Refusal | None:
    """Return why `newcomer` more bytes may not be reserved beside `reserved` others, or None if they may."""
    if reserved + newcomer <= most:
        return None
    return Refusal(
        reason="bytes",
        message=f"running requests hold {reserved >> 20} MiB; at most {most >> 20} MiB may be held",
        hint="the server is busy: try again later, or elsewhere",
        retry_after_s=_bounded(estimate.drain_s(waiting)),
    )


def _bounded(seconds: float) -> float:
    return min(max(seconds, _LEAST_RETRY_S), _LONGEST_RETRY_S)


class Backlog:
    """Rows that jobs still have to get, as counts and sums per power of two."""

    def __init__(self) -> None:
        self._classes: dict[int, tuple[int, int]] = {}  # by binary length: jobs, and the sum of what they have left
        self.rows = 0
        self.jobs = 0

    def move(self, old: int, new: int) -> None:
        """Note that a job has `new` rows left instead of `old`; 0 stands for no job."""
        if old:
            self._add(old.bit_length(), -1, -old)
        if new:
            self._add(new.bit_length(), 1, new)

    def within(self, most: int) -> int:
        """Return an upper bound of the sum over jobs of min(left, most), never more than twice that sum."""
        return sum(min(total, count * most) for count, total in self._classes.values())

    def _add(self, length: int, jobs: int, rows: int) -> None:
        count, total = self._classes.get(length, (0, 0))
        if count + jobs:
            self._classes[length] = count + jobs, total + rows
        else:
            del self._classes[length]
        self.jobs += jobs
        self.rows += rows
