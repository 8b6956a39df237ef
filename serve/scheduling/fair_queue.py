"""Which rows go into the next batch: two classes, each a deficit round robin in which one row costs one row.

Interactive tickets come first, bulk tickets get what they leave, and an eighth of all rows in any case, so that
neither class can starve the other. Within a class each ticket has a credit of so many rows, the quantum of its
class. The ticket at the front gives rows until its credit, its rows or the batch is used up; with its credit spent it
gets a new one and goes to the back. So tickets of no more rows than a quantum are served in the order in which they
came. A batch is left short only when nothing may go.

A bulk ticket whose rows are of no use before the last of them is there stands in a line with others of its kind: they
are served in the order in which they came, in as many turns as fair shares would give them together. Sharing every
batch among all of them would finish none before the last.

A ticket may hold `base` rows for its reader whatever happens, and up to `window` while there are spare bytes, which
all tickets share. So what all readers hold together is bounded by their bases and the spare bytes, and one that
stalls keeps nobody below its base. No clocks, no threads, no arrays: this file is the fairness argument and nothing
else.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

BULK_SHARE = 8
"""One row in so many belongs to bulk tickets while some wait."""


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A job's place in the rotation.

    Attributes:
        rows: Rows the job consists of.
        window: Most rows that may be planned and not yet taken by the job's reader.
        base: As many of these as need no spare bytes, at least 1.
        row_bytes: What a row takes while it is held for the reader.
        fixed_bytes: What it holds besides its rows, from first to last.
        is_bulk: Whether the ticket belongs to the second class.
        is_whole: Whether its rows are of use only together, as those of an answer in one message are.
        deadline: Time from which no row of it is planned any more.
        planned: Rows already put into batches; they are rows `0 .. planned - 1` of the job.
        taken: Rows the reader is done with.
    """

    rows: int
    window: int
    base: int = 1 << 62
    row_bytes: int = 1
    fixed_bytes: int = 0
    is_bulk: bool = False
    is_whole: bool = False
    deadline: float = math.inf
    planned: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)
    credit: int = field(default=0, init=False)
    counted: int = field(default=0, init=False)
    is_removed: bool = field(default=False, init=False)

    @property
    def waiting(self) -> int:
        """Rows that may go into a batch now, as far as the window goes."""
        return min(self.rows, self.taken + self.window) - self.planned

    @property
    def held(self) -> int:
        """Rows planned and not yet taken by the reader."""
        return self.planned - self.taken

    @property
    def left(self) -> int:
        """Rows not yet put into batches."""
        return self.rows - self.planned

    @property
    def base_bytes(self) -> int:
        """Bytes that are set aside for the ticket."""
        return self.base * self.row_bytes + self.fixed_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes held beyond the base."""
        return max(0, self.held - self.base) * self.row_bytes


class Span(NamedTuple):
    """Rows `first .. first + rows - 1` of one job, consecutive in a batch."""

    ticket: Ticket
    first: int
    rows: int


class BatchPlan(NamedTuple):
    """What goes into a batch, and the tickets found too late for one: they are for the caller to stop."""

    spans: list[Span]
    expired: list[Ticket]


class FairQueue:
    """The waiting tickets in the order in which they are served.

    Attributes:
        quanta: Quanta of the interactive and of the bulk class.

    Args:
        quantum: Rows an interactive ticket may give before the next one of its class has its turn.
        bulk_quantum: The same for bulk tickets; by default the same number.
        most_counted: Rows of one ticket that count as waiting, at most.
        spare_bytes: What all tickets together may hold beyond their bases.
    """

    def __init__(
        self,
        *,
        quantum: int,
        bulk_quantum: int | None = None,
        most_counted: int = 1 << 62,
        spare_bytes: int = 1 << 62,
    ) -> None:
        self.quanta = (quantum, bulk_quantum or quantum)
        self._waiting = [0, 0]
        self._most_counted = most_counted
        self._all_spare_bytes = self._spare_bytes = spare_bytes
        self._interactive: OrderedDict[Ticket, None] = OrderedDict()  # the front is served first
        self._bulk: OrderedDict[Ticket, None] = OrderedDict()
        self._head: Ticket | None = None  # of the line: the one that has a place in the bulk ring
        self._line: OrderedDict[Ticket, None] = OrderedDict()  # whole bulk tickets behind it
        self._without_space: dict[Ticket, None] = {}  # wait for spare bytes
        self._bulk_due = 0  # rows times BULK_SHARE that bulk tickets are still owed

    @property
    def spare_used(self) -> int:
        """Bytes that all tickets together hold beyond their bases."""
        return self._all_spare_bytes - self._spare_bytes

    @property
    def waiting(self) -> int:
        """Rows that could go into a batch now, of each ticket at most `most_counted`."""
        return sum(self._waiting)

    @property
    def waiting_interactive(self) -> int:
        """As many of these belong to interactive tickets."""
        return self._waiting[False]

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait at the back of its class, if it has rows for a batch."""
        if ticket.waiting > 0 and not ticket.is_removed and not self._is_waiting(ticket):
            if ticket.is_bulk and ticket.is_whole and self._head is not None:
                self._line[ticket] = None
                self._head.credit += self.quanta[True]
            else:
                self._enter(ticket)
        self._count(ticket)

    def take(self, ticket: Ticket, rows: int) -> None:
        """Note that a ticket's reader is done with its next `rows` rows, which may open its window again."""
        if ticket.is_removed:
            return
        before = ticket.spare_bytes
        ticket.taken += rows
        self._free(before - ticket.spare_bytes)
        self._without_space.pop(ticket, None)
        self.add(ticket)

    def stop(self, ticket: Ticket) -> None:
        """Plan no more rows of a ticket; its reader may still take those that were."""
        ticket.rows = ticket.planned
        self._leave(ticket)
        self._without_space.pop(ticket, None)
        self._count(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Forget a ticket, and what is held for it."""
        if not ticket.is_removed:
            self.stop(ticket)
            ticket.is_removed = True
            self._free(ticket.spare_bytes)

    def next_batch(self, max_rows: int, now: float = -math.inf) -> BatchPlan:
        """Plan a batch: at most one span per ticket, together at most `max_rows` rows; empty if nothing may go."""
        first: dict[Ticket, int] = {}
        expired: list[Ticket] = []
        self._bulk_due = self._bulk_due + max_rows if self._bulk else 0
        share = min(max_rows, self._bulk_due // BULK_SHARE)
        in_bulk = self._fill(self._bulk, share, now, first, expired)
        space = max_rows - in_bulk - self._fill(self._interactive, max_rows - in_bulk, now, first, expired)
        in_bulk += self._fill(self._bulk, space, now, first, expired)
        self._bulk_due = max(0, self._bulk_due - BULK_SHARE * in_bulk)
        return BatchPlan([Span(ticket, start, ticket.planned - start) for ticket, start in first.items()], expired)

    def _fill(
        self,
        ring: OrderedDict[Ticket, None],
        space: int,
        now: float,
        first: dict[Ticket, int],
        expired: list[Ticket],
    ) -> int:
        """Plan up to `space` rows of one class and return how many were planned."""
        planned = 0
        while planned < space and ring:
            ticket = next(iter(ring))
            if ticket.deadline <= now:
                self._leave(ticket)
                self._count(ticket)
                expired.append(ticket)
                continue
            rows = min(ticket.credit, ticket.waiting, space - planned, self._affordable(ticket))
            if not rows:
                self._leave(ticket)
                self._without_space[ticket] = None
                self._count(ticket)
                continue
            first.setdefault(ticket, ticket.planned)
            before = ticket.spare_bytes
            ticket.planned += rows
            ticket.credit -= rows
            self._spare_bytes -= ticket.spare_bytes - before
            planned += rows
            if not ticket.waiting:
                self._leave(ticket)
            elif not ticket.credit:
                ticket.credit = self._fresh_credit(ticket)
                ring.move_to_end(ticket)
            self._count(ticket)
        return planned

    def _count(self, ticket: Ticket) -> None:
        """Bring the counts of waiting rows up to date with a ticket that has changed."""
        counted = min(ticket.waiting, self._most_counted) if self._is_waiting(ticket) else 0
        self._waiting[ticket.is_bulk] += counted - ticket.counted
        ticket.counted = counted

    def _affordable(self, ticket: Ticket) -> int:
        """Return how many more rows a ticket may hold, given what the others hold."""
        return max(0, ticket.base - ticket.held) + self._spare_bytes // ticket.row_bytes

    def _free(self, num_bytes: int) -> None:
        """Take spare bytes back, and let those wait again that lacked them."""
        if num_bytes:
            self._spare_bytes += num_bytes
            waiting, self._without_space = self._without_space, {}
            for ticket in waiting:
                self.add(ticket)

    def _enter(self, ticket: Ticket) -> None:
        """Give a ticket a place in the ring of its class."""
        if ticket.is_bulk and ticket.is_whole:
            self._head = ticket
        ticket.credit = self._fresh_credit(ticket)
        self._ring(ticket)[ticket] = None

    def _leave(self, ticket: Ticket) -> None:
        """Take a ticket out of ring and line, if it is there; the next of the line takes the place of its head."""
        self._line.pop(ticket, None)
        self._ring(ticket).pop(ticket, None)
        if ticket is self._head:
            self._head = None
            if self._line:
                follower, _ = self._line.popitem(last=False)
                self._enter(follower)
                self._bulk.move_to_end(follower, last=False)

    def _is_waiting(self, ticket: Ticket) -> bool:
        return ticket in self._ring(ticket) or ticket in self._line

    def _fresh_credit(self, ticket: Ticket) -> int:
        """Return a quantum, and for the head of the line those of all who stand in it."""
        behind = len(self._line) if ticket is self._head else 0
        return self.quanta[ticket.is_bulk] * (1 + behind)

    def _ring(self, ticket: Ticket) -> OrderedDict[Ticket, None]:
        return self._bulk if ticket.is_bulk else self._interactive
