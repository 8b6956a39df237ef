from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve.rotation import Rotation, Ticket


class RotationMachine(RuleBasedStateMachine):
    """Arrivals, readers, cancels and batches in any order; a plain list per ticket is the oracle."""

    def __init__(self):
        super().__init__()
        self.max_rows = 7
        self.rotation = Rotation(max_rows=self.max_rows, quantum=3)
        self.live: list[Ticket] = []
        self.planned: dict[Ticket, list[int]] = {}
        self.taken: dict[Ticket, int] = {}

    @rule(rows=st.integers(1, 40), window=st.integers(1, 12))
    def arrive(self, rows, window):
        ticket = Ticket(rows=rows, window=window)
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

    @rule()
    def plan(self):
        spans = self.rotation.next_batch()
        assert sum(span.rows for span in spans) <= self.max_rows
        assert len({span.ticket for span in spans}) == len(spans)
        for span in spans:
            assert span.ticket in self.live
            assert span.rows >= 1
            assert span.first == len(self.planned[span.ticket])
            self.planned[span.ticket].extend(range(span.first, span.first + span.rows))
        if sum(span.rows for span in spans) < self.max_rows:
            assert all(ticket.waiting == 0 for ticket in self.live)

    @invariant()
    def rows_are_in_order_complete_and_within_the_window(self):
        for ticket in self.live:
            planned = self.planned[ticket]
            assert planned == list(range(len(planned)))
            assert len(planned) <= ticket.rows
            assert len(planned) - self.taken[ticket] <= ticket.window

    def teardown(self):
        """Whatever happened, every live ticket completes once its reader reads."""
        spans = None
        while spans != []:
            for ticket in self.live:
                held = len(self.planned[ticket]) - self.taken[ticket]
                self.taken[ticket] += held
                self.rotation.take(ticket, held)
            spans = self.rotation.next_batch()
            for span in spans:
                self.planned[span.ticket].extend(range(span.first, span.first + span.rows))
            self.rows_are_in_order_complete_and_within_the_window()
        assert all(len(self.planned[ticket]) == ticket.rows for ticket in self.live)


TestRotation = RotationMachine.TestCase
TestRotation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(num=st.integers(1, 20), max_rows=st.integers(1, 50), quantum=st.integers(1, 20), batches=st.integers(1, 30))
@settings(deadline=None)
def test_tickets_that_wait_all_along_get_the_same_rows_to_within_one_quantum(num, max_rows, quantum, batches):
    rotation = Rotation(max_rows=max_rows, quantum=quantum)
    tickets = [Ticket(rows=1 << 40, window=1 << 40) for _ in range(num)]
    for ticket in tickets:
        rotation.add(ticket)
    for _ in range(batches):
        assert sum(span.rows for span in rotation.next_batch()) == max_rows
    served = [ticket.planned for ticket in tickets]
    assert max(served) - min(served) <= quantum


def test_a_small_job_beside_a_huge_one_is_in_the_next_batch():
    rotation = Rotation(max_rows=64, quantum=4)
    huge, small = Ticket(rows=10**6, window=10**6), Ticket(rows=1, window=1)
    rotation.add(huge)
    rotation.next_batch()
    rotation.add(small)
    assert {span.ticket: span.rows for span in rotation.next_batch()} == {huge: 63, small: 1}


def test_a_closed_window_keeps_a_ticket_out_until_its_reader_reads():
    rotation = Rotation(max_rows=8, quantum=8)
    ticket = Ticket(rows=20, window=5)
    rotation.add(ticket)
    assert [span[1:] for span in rotation.next_batch()] == [(0, 5)]
    assert rotation.next_batch() == []
    rotation.take(ticket, 2)
    assert [span[1:] for span in rotation.next_batch()] == [(5, 2)]


def test_a_removed_ticket_stays_out_even_if_its_reader_still_reads():
    rotation = Rotation(max_rows=8, quantum=8)
    ticket = Ticket(rows=20, window=5)
    rotation.add(ticket)
    rotation.next_batch()
    rotation.remove(ticket)
    rotation.take(ticket, 5)
    assert rotation.next_batch() == []
