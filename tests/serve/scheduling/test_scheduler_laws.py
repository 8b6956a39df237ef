"""Arrivals, stalls, cancels, deadlines, failures and lanes that overtake each other, one step at a time."""

from __future__ import annotations

import asyncio
import math

import grpc
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stepped_scheduler import Stepped, next_chunk, rows_of

from kaem.errors import BackendError
from serve.statuses import RefusedError

MAX_HELD_BYTES = 2000
MAX_QUEUE_SAMPLES = 60


class SchedulerMachine(RuleBasedStateMachine):
    """What each reader has got is compared with what its own rows are, whatever happened beside it."""

    def __init__(self):
        super().__init__()
        self.stepped = Stepped(max_batch=8, lanes=3, max_held_bytes=MAX_HELD_BYTES, max_queue_samples=MAX_QUEUE_SAMPLES)
        self.runner = asyncio.Runner()
        self.number = 0
        self.live = {}  # job -> (number, rows, row_bytes)
        self.got = {}  # job -> rows got
        self.deadlines = {}

    @property
    def scheduler(self):
        return self.stepped.scheduler

    @rule(
        rows=st.integers(1, 40),
        chunk_rows=st.integers(1, 9),
        window=st.integers(1, 20),
        row_bytes=st.integers(1, 40),
        is_bulk=st.booleans(),
        may_shrink=st.booleans(),
        timeout_s=st.none() | st.integers(1, 5),
    )
    def arrive(self, rows, chunk_rows, window, row_bytes, is_bulk, may_shrink, timeout_s):
        refusal = None
        try:
            job = self.stepped.submit(
                self.number,
                rows,
                chunk_rows=chunk_rows,
                window=window,
                row_bytes=row_bytes,
                is_bulk=is_bulk,
                may_shrink=may_shrink,
                timeout_s=timeout_s,
            )
        except RefusedError as error:
            refusal = error
        if refusal is None:
            self.live[job] = (self.number, rows, row_bytes)
            self.got[job] = 0
            self.deadlines[job] = job.ticket.deadline
        else:
            assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refusal.quota in ("samples", "bytes")
            assert refusal.retry_after_s > 0
            assert self.live  # an idle server refuses nobody
        self.number += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def read(self, data):
        self.read_one(data.draw(st.sampled_from(list(self.live))))

    def read_one(self, job):
        """Read a chunk if there is one; False if there was none and none failed."""
        number, rows, _ = self.live[job]
        late = None
        try:
            chunk = self.runner.run(next_chunk(job))
        except StopAsyncIteration:
            assert self.got[job] == rows
            self.leave(job)
            return True
        except BackendError:
            self.leave(job)
            return True
        except RefusedError as error:
            late = error
        if late is not None:
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert self.deadlines[job] <= self.stepped.clock.now
            self.leave(job)
            return True
        if chunk is None:
            return False
        first = self.got[job]
        assert len(chunk) == min(job.chunk_rows, rows - first)
        np.testing.assert_array_equal(chunk.reshape(-1, 2), rows_of(number, first, len(chunk)))
        self.got[job] += len(chunk)
        return True

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        self.leave(data.draw(st.sampled_from(list(self.live))))

    def leave(self, job):
        del self.live[job]
        self.runner.run(job.__aexit__(None, None, None))

    @rule(overtaking=st.integers(0, 2), fails=st.booleans())
    def compute(self, overtaking, fails):
        """Compute a batch; while it is computed as many others are planned, and done before it."""

        def decode(uniform):
            nonlocal overtaking
            if overtaking:
                overtaking -= 1
                self.stepped.step(decode)
            live = {float(number) for number, *_ in self.live.values()}
            wanted = uniform[uniform[:, 0] != np.float32(0.25)]  # the rest is padding
            assert set(wanted[:, 0].tolist()) <= live  # a job that has left is in no batch planned after that
            return self.stepped.decode(uniform)

        def fail(uniform):
            decode(uniform)
            raise ValueError("broken")

        self.stepped.step(fail if fails else decode)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.stepped.clock.now += seconds

    @invariant()
    def all_readers_together_hold_no_more_than_the_bound(self):
        held = sum(job.ticket.held * row_bytes for job, (_, _, row_bytes) in self.live.items())
        assert held <= MAX_HELD_BYTES
        assert held <= self.scheduler.queue_bytes <= MAX_HELD_BYTES

    @invariant()
    def the_queue_is_counted_right(self):
        assert self.scheduler.num_jobs == len(self.live)
        assert self.scheduler.queue_samples <= sum(max(0, job.ticket.waiting) for job in self.live)

    def teardown(self):
        """Whatever happened, every live job completes once its reader reads."""
        with self.runner:
            self.complete()

    def complete(self):
        for job in list(self.live):
            job.ticket.deadline = math.inf
        idle = False
        while self.live:
            has_computed = self.stepped.step()
            has_read = [self.read_one(job) for job in list(self.live)]
            assert has_computed or any(has_read) or not idle
            idle = not (has_computed or any(has_read))
        assert self.scheduler.num_jobs == 0
        assert self.scheduler.queue_bytes == 0
        assert self.scheduler.queue_samples == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@given(st.integers(1000, 1 << 24), st.integers(1, 50), st.integers(1, 300), st.booleans())
@settings(max_examples=60, deadline=None)
def test_bulk_readers_that_never_read_do_not_shut_out_a_call_of_one_row(max_held_bytes, chunk_rows, share, may_shrink):
    row_bytes = max(1, max_held_bytes // (4 * share * chunk_rows))
    stepped = Stepped(max_held_bytes=max_held_bytes)
    refused = None
    for number in range(4000):
        try:
            stepped.submit(
                number,
                2 * chunk_rows,
                chunk_rows=chunk_rows,
                window=50,
                row_bytes=row_bytes,
                is_bulk=True,
                may_shrink=may_shrink,
            )
        except RefusedError as error:
            refused = error
            break
        stepped.step()
    assert refused is not None
    assert refused.quota == "bytes"
    assert stepped.submit(0, 1, chunk_rows=1, window=1, row_bytes=max_held_bytes // 20) is not None
    assert stepped.scheduler.queue_bytes <= max_held_bytes
