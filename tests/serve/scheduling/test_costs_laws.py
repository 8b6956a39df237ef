from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stepped_scheduler import Stepped

from serve.scheduling.admission import Backlog
from serve.scheduling.batch_costs import CostTable, power_sizes
from serve.statuses import RefusedError


@given(st.integers(1, 3000))
def test_sizes_are_the_powers_of_two_up_to_the_largest_and_the_largest(max_rows):
    sizes = power_sizes(max_rows)
    assert sizes[-1] == max_rows
    assert list(sizes) == sorted({*(1 << k for k in range(12) if 1 << k < max_rows), max_rows})


TABLES = st.dictionaries(st.integers(1, 100), st.floats(1e-6, 1.0), min_size=1, max_size=8).map(CostTable)


@given(TABLES, st.integers(1, 300))
def test_rows_are_padded_to_the_smallest_size_that_holds_them(table, rows):
    fitting = table.fitting(rows)
    assert fitting == min((size for size in table.sizes if size >= rows), default=table.largest)


@given(TABLES, st.integers(1, 300))
def test_the_batches_chosen_for_what_waits_never_take_longer_than_one_padded_batch(table, waiting):
    left, seconds = waiting % table.largest or table.largest, 0.0
    padded = table.batch_seconds(table.fitting(left))
    while left > 0:
        size = table.best(left)
        seconds += table.batch_seconds(size)
        left -= size
    assert seconds <= padded * (1 + 1e-9)
    assert waiting < table.largest or table.best(waiting) == table.largest


def test_a_size_is_chosen_however_much_waits():
    assert CostTable({1: 1.0}).best(1 << 20) == 1
    flat, steep = CostTable({1: 1.0, 4096: 2.0}), CostTable({1: 1.0, 4096: 5000.0})
    assert (flat.best(4095), steep.best(4095)) == (4096, 1)


def test_a_batch_is_padded_where_that_is_cheap_and_split_where_it_is_not():
    flat = CostTable({1: 1.0, 64: 1.1, 128: 1.2})
    steep = CostTable({1: 0.1, 64: 6.4, 128: 12.8})
    assert (flat.best(65), steep.best(65)) == (128, 64)
    linear = CostTable({size: size * 1.0 for size in power_sizes(128)})
    assert [linear.best(waiting) for waiting in (1, 3, 100, 127, 128, 500)] == [1, 2, 64, 64, 128, 128]


def test_the_time_of_many_rows_is_that_of_their_batches():
    table = CostTable({1: 1.0, 4: 2.0, 8: 3.0})
    assert [table.seconds(rows) for rows in (0, 1, 2, 4, 5, 8, 9, 19)] == [0, 1, 2, 2, 3, 3, 4, 8]


def test_sizes_that_gain_nothing_are_dropped():
    table = CostTable({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.2, 16: 6.4})
    assert table.up_to_the_knee(1).sizes == (1, 2, 4)
    assert table.up_to_the_knee(8).sizes == (1, 2, 4, 8)
    assert table.up_to_the_knee(99).sizes == table.sizes
    instant = CostTable(dict.fromkeys(power_sizes(64), 1e-6))
    assert instant.up_to_the_knee(1).sizes == power_sizes(64)


def test_observations_move_the_table_to_the_machine_as_it_is():
    table = CostTable({1: 1.0})
    for _ in range(100):
        table.observe(1, 3.0)
    assert abs(table.batch_seconds(1) - 3.0) < 1e-3


class BacklogMachine(RuleBasedStateMachine):
    """The sum it bounds, computed plainly from a list of what every job has left."""

    def __init__(self):
        super().__init__()
        self.backlog = Backlog()
        self.left: list[int] = []

    @rule(rows=st.integers(1, 1 << 64))
    def arrive(self, rows):
        self.left.append(rows)
        self.backlog.move(0, rows)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def shrink(self, data):
        place = data.draw(st.integers(0, len(self.left) - 1))
        old = self.left.pop(place)
        new = data.draw(st.integers(0, old))
        self.backlog.move(old, new)
        if new:
            self.left.append(new)

    @invariant()
    def bounds_hold(self):
        assert self.backlog.rows == sum(self.left)
        for most in (1, 5, 1000, 1 << 40):
            exact = sum(min(rows, most) for rows in self.left)
            assert exact <= self.backlog.within(most) <= 2 * exact


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_one_batch_that_took_for_ever_hardly_counts_and_many_slow_ones_do():
    """A table that believed it would refuse every request with a deadline, and so never learn better."""
    table = CostTable({8: 0.001})
    table.observe(8, 30.0)
    assert table.batch_seconds(8) < 0.0015
    for _ in range(60):
        table.observe(8, 0.1)
    assert table.batch_seconds(8) > 0.09
    for _ in range(100):
        table.observe(8, 0.001)
    assert table.batch_seconds(8) < 0.0011


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(1e-4, 1.0), min_size=1),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.floats(0.0, 100.0)), max_size=60),
    st.integers(1, 40),
)
def test_prices_fall_back_to_those_of_the_start_and_an_idle_server_has_them(seconds, observed, rows):
    table, fresh = CostTable(seconds), CostTable(seconds)
    table.settle(0.0)
    for size, taken in observed:
        if size in seconds:
            table.observe(size, taken)
    assert table.seconds(rows, is_idle=True) == fresh.seconds(rows)
    distances = []
    for now in (0.0, 5.0, 10.0, 60.0, 600.0):
        table.settle(now)
        distances.append(abs(table.seconds(rows) - fresh.seconds(rows)))
    assert all(later <= max(0.51 * earlier, 1e-9) for earlier, later in pairwise(distances[:3]))
    assert distances[-1] <= 1e-9 * (1 + fresh.seconds(rows))


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_idle_server_lets_in_what_it_could_answer_at_the_start_whatever_it_was_like_meanwhile(lanes):
    stepped = Stepped(max_batch=8, seconds=lambda size: 0.002 * size, lanes=lanes)
    slow = Stepped(max_batch=8, seconds=lambda size: 0.002 * size, lanes=lanes)
    for _ in range(200):  # as hogs of the processor would have it
        slow.scheduler.costs.observe(8, 1.0)
    for rows in (1, 8, 16):
        for timeout_s in (0.001, 0.0205, 0.045, 0.1):
            answers = []
            for which in (stepped, slow):
                try:
                    job = which.submit(0, rows, timeout_s=timeout_s)
                    which.scheduler.remove(job)
                    answers.append("in")
                except RefusedError as error:
                    answers.append((error.code, error.retry_after_s))
            assert answers[0] == answers[1], (rows, timeout_s)
