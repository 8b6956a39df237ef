"""Which rows go into the next batch: deficit round robin over everything that waits, one row costing one row.

Each waiting ticket has a credit of `quantum` rows. The ticket at the front gives rows until its credit, its
rows or the batch is used up; with its credit spent it gets a new one and goes to the back. A batch is left
short only when nothing waits. No clocks, no threads, no arrays: this file is the fairness argument and nothing
else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A job's place in the rotation.

    Attributes:
        rows: Rows the job consists of.
        window: Most rows that may be planned and not yet taken by the job's reader.
        planned: Rows already put into batches; they are rows `0 .. planned - 1` of the job.
        taken: Rows the reader is done with.
    """

    rows: int
    window: int
    planned: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)
    credit: int = field(default=0, init=False)

    @property
    def waiting(self) -> int:
        """Rows that may go into a batch now."""
        return min(self.rows, self.taken + self.window) - self.planned


class Span(NamedTuple):
    """Rows `first .. first + rows - 1` of one job, consecutive in a batch."""

    ticket: Ticket
    first: int
    rows: int


class Rotation:
    """The waiting tickets in the order in which they are served.

    Args:
        max_rows: Rows of a full batch.
        quantum: Rows a ticket may give before the next one has its turn.
    """

    def __init__(self, *, max_rows: int, quantum: int) -> None:
        self._max_rows = max_rows
        self._quantum = quantum
        self._ring: OrderedDict[Ticket, None] = OrderedDict()  # the front is served first

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait at the back, if it has rows for a batch."""
        if ticket.waiting > 0 and ticket not in self._ring:
            ticket.credit = self._quantum
            self._ring[ticket] = None

    def take(self, ticket: Ticket, rows: int) -> None:
        """Note that a ticket's reader is done with its next `rows` rows, which may open its window again."""
        ticket.taken += rows
        self.add(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Forget a ticket: no later batch holds a row of it."""
        ticket.rows = ticket.planned
        self._ring.pop(ticket, None)

    def next_batch(self) -> list[Span]:
        """Plan a batch: at most one span per ticket, together at most `max_rows` rows; empty if nothing waits."""
        first: dict[Ticket, int] = {}
        space = self._max_rows
        while space and self._ring:
            ticket = next(iter(self._ring))
            first.setdefault(ticket, ticket.planned)
            rows = min(ticket.credit, ticket.waiting, space)
            ticket.planned += rows
            ticket.credit -= rows
            space -= rows
            if not ticket.waiting:
                del self._ring[ticket]
            elif not ticket.credit:
                ticket.credit = self._quantum
                self._ring.move_to_end(ticket)
        return [Span(ticket, start, ticket.planned - start) for ticket, start in first.items()]
