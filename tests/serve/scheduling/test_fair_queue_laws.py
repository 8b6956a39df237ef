from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve.scheduling.fair_queue import BULK_SHARE, FairQueue, Ticket


class RotationMachine(RuleBasedStateMachine):
    """Arrivals, readers, cancels, deadlines and batches in any order; a plain list per ticket is the oracle."""

    MAX_ROWS = 7
    SPARE_BYTES = 30

    def __init__(self):
        super().__init__()
        self.rotation = FairQueue(quantum=3, spare_bytes=self.SPARE_BYTES)
        self.live: list[Ticket] = []
        self.planned: dict[Ticket, list[int]] = {}
        self.taken: dict[Ticket, int] = {}
        self.now = 0

    @rule(
        rows=st.integers(1, 40),
        window=st.integers(1, 12),
        base=st.integers(1, 12),
        row_bytes=st.integers(1, 5),
        is_bulk=st.booleans(),
        is_whole=st.booleans(),
        patience=st.none() | st.integers(1, 9),
    )
    def arrive(self, rows, window, base, row_bytes, is_bulk, is_whole, patience):
        ticket = Ticket(
            is_whole=is_whole,
            rows=rows,
            window=max(window, base),
            base=base,
            row_bytes=row_bytes,
            is_bulk=is_bulk,
            deadline=float("inf") if patience is None else self.now + patience,
        )
        self.rotation.add(ticket)
        self.live.append(ticket)
        self.planned[ticket], self.taken[ticket] = [], 0

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def read(self, data):
        ticket = data.draw(st.sampled_from(self.live))
        held = len(self.planned[ticket]) - self.taken[ticket]
        if held:
            rows = data.draw(st.integers(1, held))
            self.taken[ticket] += rows
            self.rotation.take(ticket, rows)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(self.live))
        self.live.remove(ticket)
        self.rotation.remove(ticket)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def plan(self):
        spans, expired = self.rotation.next_batch(self.MAX_ROWS, self.now)
        assert all(ticket.deadline <= self.now for ticket in expired)
        assert sum(span.rows for span in spans) <= self.MAX_ROWS
        assert len({span.ticket for span in spans}) == len(spans)
        for span in spans:
            assert span.ticket in self.live
            assert span.ticket.deadline > self.now
            assert span.rows >= 1
            assert span.first == len(self.planned[span.ticket])
            self.planned[span.ticket].extend(range(span.first, span.first + span.rows))
        if sum(span.rows for span in spans) < self.MAX_ROWS:  # with what late tickets still hold: they go afterwards
            assert not any(self.may_go(ticket) for ticket in self.live if ticket not in expired)
        for ticket in expired:
            self.live.remove(ticket)
            self.rotation.remove(ticket)

    def held(self, ticket):
        return len(self.planned[ticket]) - self.taken[ticket]

    def spare_used(self):
        return sum(max(0, self.held(ticket) - ticket.base) * ticket.row_bytes for ticket in self.live)

    def may_go(self, ticket):
        if len(self.planned[ticket]) == ticket.rows or self.held(ticket) == ticket.window:
            return False
        needs_spare = self.held(ticket) >= ticket.base
        return not needs_spare or self.spare_used() + ticket.row_bytes <= self.SPARE_BYTES

    @invariant()
    def rows_are_in_order_and_within_the_window(self):
        for ticket in self.live:
            planned = self.planned[ticket]
            assert planned == list(range(len(planned)))
            assert len(planned) <= ticket.rows
            assert self.held(ticket) <= ticket.window

    @invariant()
    def rows_that_wait_are_counted(self):
        could_go = sum(
            min(ticket.rows, self.taken[ticket] + ticket.window) - len(self.planned[ticket]) for ticket in self.live
        )
        assert self.rotation.waiting <= could_go
        may_go = any(self.may_go(ticket) for ticket in self.live)
        assert not may_go or self.rotation.waiting > 0

    @invariant()
    def all_together_hold_no_more_than_their_bases_and_the_spare_bytes(self):
        assert self.spare_used() <= self.SPARE_BYTES

    def teardown(self):
        """Whatever happened, every live ticket completes once its reader reads, or its deadline passes."""
        is_done = False
        while not is_done:
            for ticket in self.live:
                rows = self.held(ticket)
                self.taken[ticket] += rows
                self.rotation.take(ticket, rows)
            before = [len(self.planned[ticket]) for ticket in self.live]
            self.plan()
            self.rows_are_in_order_and_within_the_window()
            is_done = before == [len(self.planned[ticket]) for ticket in self.live]
        assert all(len(self.planned[ticket]) == ticket.rows for ticket in self.live)


TestRotation = RotationMachine.TestCase
TestRotation.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def endless(**options):
    return Ticket(rows=1 << 40, window=1 << 40, **options)


@given(
    num=st.integers(1, 20),
    max_rows=st.integers(1, 50),
    quantum=st.integers(1, 20),
    batches=st.integers(1, 30),
    is_bulk=st.booleans(),
)
@settings(deadline=None)
def test_tickets_of_a_class_that_wait_all_along_get_the_same_rows_to_within_one_quantum(
    num, max_rows, quantum, batches, is_bulk
):
    rotation = FairQueue(quantum=quantum)
    tickets = [endless(is_bulk=is_bulk) for _ in range(num)]
    for ticket in tickets:
        rotation.add(ticket)
    for _ in range(batches):
        assert sum(span.rows for span in rotation.next_batch(max_rows).spans) == max_rows
    served = [ticket.planned for ticket in tickets]
    assert max(served) - min(served) <= quantum


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    quantum=st.integers(1, 20),
    num_bulk=st.integers(1, 5),
    num_interactive=st.integers(1, 5),
)
@settings(deadline=None)
def test_while_both_classes_wait_bulk_gets_an_eighth_of_all_rows_and_interactive_the_rest(
    sizes, quantum, num_bulk, num_interactive
):
    rotation = FairQueue(quantum=quantum)
    bulk = [endless(is_bulk=True) for _ in range(num_bulk)]
    for ticket in bulk + [endless() for _ in range(num_interactive)]:
        rotation.add(ticket)
    for number, size in enumerate(sizes, start=1):
        rotation.next_batch(size)
        assert sum(ticket.planned for ticket in bulk) == sum(sizes[:number]) // BULK_SHARE


def test_an_interactive_job_beside_a_huge_one_is_in_the_next_batch_with_all_its_rows():
    rotation = FairQueue(quantum=4)
    huge, small = endless(is_bulk=True), Ticket(rows=30, window=30)
    rotation.add(huge)
    rotation.next_batch(64)
    rotation.add(small)
    spans = rotation.next_batch(64).spans
    assert {span.ticket: span.rows for span in spans} == {huge: 34, small: 30}


def test_a_small_job_beside_a_huge_one_of_its_own_class_is_in_the_next_batch():
    rotation = FairQueue(quantum=4)
    huge, small = endless(), Ticket(rows=1, window=1)
    rotation.add(huge)
    rotation.next_batch(64)
    rotation.add(small)
    assert {span.ticket: span.rows for span in rotation.next_batch(64).spans} == {huge: 63, small: 1}


def test_a_closed_window_keeps_a_ticket_out_until_its_reader_reads():
    rotation = FairQueue(quantum=8)
    ticket = Ticket(rows=20, window=5)
    rotation.add(ticket)
    assert [span[1:] for span in rotation.next_batch(8).spans] == [(0, 5)]
    assert rotation.next_batch(8).spans == []
    rotation.take(ticket, 2)
    assert [span[1:] for span in rotation.next_batch(8).spans] == [(5, 2)]


def test_stalled_readers_that_hold_all_spare_bytes_leave_every_other_its_base():
    rotation = FairQueue(quantum=8, spare_bytes=100)
    for _ in range(10):
        rotation.add(Ticket(rows=1000, window=1000, base=2, row_bytes=10))
    while rotation.next_batch(8).spans:
        pass
    live = Ticket(rows=6, window=1000, base=2, row_bytes=10)
    rotation.add(live)
    for first in range(0, 6, 2):
        assert [span[1:] for span in rotation.next_batch(8).spans] == [(first, 2)]
        rotation.take(live, 2)


def test_a_removed_ticket_stays_out_even_if_its_reader_still_reads():
    rotation = FairQueue(quantum=8)
    ticket = Ticket(rows=20, window=5)
    rotation.add(ticket)
    rotation.next_batch(8)
    rotation.remove(ticket)
    rotation.take(ticket, 5)
    assert rotation.next_batch(8).spans == []


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 64), st.integers(0, 3))
def test_whole_bulk_tickets_are_done_in_the_order_in_which_they_came(sizes, max_rows, streams):
    rotation = FairQueue(quantum=8)
    others = [Ticket(rows=1 << 40, window=1 << 40, is_bulk=True) for _ in range(streams)]
    wholes = [Ticket(rows=rows, window=rows, is_bulk=True, is_whole=True) for rows in sizes]
    for ticket in (*others, *wholes):
        rotation.add(ticket)
    done, batches = [], 0
    while len(done) < len(wholes):
        spans = rotation.next_batch(max_rows).spans
        done += [span.ticket for span in spans if span.ticket.is_whole and not span.ticket.left]
        batches += 1
        assert batches <= (1 + 8 * streams) * (sum(sizes) + 8)
    assert done == wholes
    if not streams:
        assert batches == -(-sum(sizes) // max_rows)


def test_a_line_gets_the_shares_of_all_who_stand_in_it():
    rotation = FairQueue(quantum=8)
    stream = Ticket(rows=1 << 40, window=1 << 40, is_bulk=True)
    wholes = [Ticket(rows=80, window=80, is_bulk=True, is_whole=True) for _ in range(9)]
    for ticket in (stream, *wholes):
        rotation.add(ticket)
    for _ in range(10):
        rotation.next_batch(8)
    # Ten tickets, 80 rows: each of them one turn, the nine of the line together at its head.
    assert stream.planned == 8
    assert wholes[0].planned == 72


@given(st.data())
def test_a_ticket_that_leaves_the_line_leaves_no_gap(data):
    rotation = FairQueue(quantum=8)
    wholes = [Ticket(rows=20, window=20, is_bulk=True, is_whole=True) for _ in range(6)]
    for ticket in wholes:
        rotation.add(ticket)
    gone = data.draw(st.sets(st.integers(0, 5)))
    rotation.next_batch(data.draw(st.integers(1, 30)))
    for number in gone:
        rotation.remove(wholes[number])
    for _ in range(200):
        rotation.next_batch(8)
    assert all(ticket.left == 0 for ticket in wholes)
    assert rotation.waiting == 0
