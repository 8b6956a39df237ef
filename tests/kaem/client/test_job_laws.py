"""Laws of the state machine, on a virtual clock: whatever servers do, no index is lost, repeated or out of order."""

from __future__ import annotations

import heapq
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaem.artifact import Manifest
from kaem.client.addresses import Target
from kaem.client.connection import Credentials
from kaem.client.failure import Failure, failure_from_status
from kaem.client.job import ClientJob, Rules
from kaem.client.plan import READ_AHEAD, Exchange
from kaem.client.requests import Blocks, Samples
from kaem.client.retry import Patience, Reputation
from kaem.errors import KaemError, RemoteError, RequestError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import Limits, Model, chunk_from_images

PATIENCE = Patience(call_timeout_s=5.0, attempts=4, first_delay_s=0.1, max_delay_s=1.0)
MANIFEST = Manifest(
    family="kaem", name="m", noise_dim=1, latent_dim=1, image_shape=(1, 1, 8), image_type="uint8", certificate=()
)
MODEL = Model(
    name="m",
    manifest=MANIFEST,
    numerics_id="sha256:1",
    provider="cpu",
    limits=Limits(max_chunk_bytes=64, max_sample_rows=8, max_decode_rows=8),
)


def images_of(first, rows):
    """Images that spell their own index."""
    return np.arange(first, first + rows, dtype="<u8").view(np.uint8).reshape(rows, 1, 1, 8)


def chunk_of(first, rows):
    return chunk_from_images(
        images_of(first, rows), start=first, encoding=kaem_pb2.ENCODING_UINT8, numerics_id=MODEL.numerics_id
    )


def status(code, *trailers):
    return failure_from_status(code, "scripted", trailers, target=Target("s:1"))


class Reading:
    """A call whose messages come one after the other, as far as there is room for them."""

    def __init__(self, target, number, world, pause, messages, end):
        self.target = target
        self.is_cancelled = False
        self._number = number
        self._world = world
        self._pause = pause
        self._at = world.now
        self._messages = messages
        self._end = end
        self._room = READ_AHEAD
        self._read()

    def make_room(self):
        self._room += 1
        self._read()

    def cancel(self):
        self.is_cancelled = True  # what is on its way still arrives

    def _read(self):
        while self._room:
            self._at = max(self._at, self._world.now) + self._pause
            message = next(self._messages, None)
            if message is None:
                if self._end != "silence":
                    self._world.post(self._at, self._number, self._end)
                self._room = -(1 << 62)
                return
            self._room -= 1
            self._world.post(self._at, self._number, message)


class Mute:
    def __init__(self, target):
        self.target = target
        self.is_cancelled = False

    def make_room(self):
        pass

    def cancel(self):
        self.is_cancelled = True


class World:
    """Servers on a virtual clock. `act(target, n)` tells what the n-th call to a server does:

    (seconds between messages, rows of a message, rows after which it ends, how: None | Failure | "silence")
    """

    def __init__(
        self,
        act,
        *,
        num,
        start=0,
        targets=1,
        block_rows,
        window=1,
        calls=1,
        timeout_s=1e6,
        hedge=None,
        reputation=None,
        now=100.0,
        first=0,
    ):
        self.act = act
        self.now = now
        self.seen = []
        self.starts = []
        self.calls = [0] * targets
        self.most_calls = calls + (hedge is not None)
        self.events = []
        self.order = itertools.count()
        self.latencies = []
        random_ = random.Random(1)  # noqa: S311
        self.blocks = Blocks(start, num, block_rows=block_rows, window=window)
        self.is_shared = window > 1 or targets > 1
        self.most_waiting = block_rows * window
        rules = Rules(
            targets=tuple(Target(f"s:{n + 1}") for n in range(targets)),
            calls_per_target=calls,
            patience=PATIENCE,
            timeout_s=timeout_s,
            hedge_after_s=lambda: hedge,
            on_latency=self.latencies.append,
            share=random_.random,
            reputation=reputation,
            first_target=first,
        )
        self.job = ClientJob(self.blocks, rules, now=self.now)
        self.exchange = Exchange(self.job, Samples(7, True), [MODEL] * targets, Credentials(), is_partial=True)

    def run(self, lag=0.0, rest=0.0):
        """Do the job; `lag` passes before every reaction, and the caller is away for `rest` after each piece."""
        for _ in range(100_000):
            starts, piece = self.exchange.turn(self, self.now)
            for start in starts:
                self._begin(start)
            self._check()
            self.now += lag
            if piece is not None:
                self.seen.append(piece)
                self.job.pause(self.now)
                self.now += rest
                self.job.resume(self.now)
            elif self.job.is_done:
                return self
            else:
                due = self.events[0][0] if self.events else self.job.wake_at()
                self.now = max(self.now, min(due, self.job.wake_at()))
        raise AssertionError("the job turns in circles")

    def qsize(self):
        return sum(at <= self.now for at, *_ in self.events)

    def get_nowait(self):
        return heapq.heappop(self.events)[2:]

    def post(self, at, number, event):
        heapq.heappush(self.events, (at, next(self.order), number, event))

    def _begin(self, start):
        self.starts.append((self.now, start))
        pause, rows, most, how = self.act(start.target, self.calls[start.target])
        self.calls[start.target] += 1
        end = start.first + min(start.rows, most)
        firsts = itertools.takewhile(lambda first: first < end, itertools.count(start.first, rows))
        messages = (chunk_of(first, min(rows, end - first)) for first in firsts)
        self.exchange.readings[start.attempt] = Reading(start.target, start.attempt, self, pause, messages, how)

    def _check(self):
        busy = [0] * len(self.calls)
        for reading in self.exchange.readings.values():
            assert not reading.is_cancelled
            busy[reading.target] += 1
        assert max(busy) <= self.most_calls
        waiting = [images for block in self.blocks for _, images in block.ready]
        assert sum(map(len, waiting)) <= self.most_waiting
        assert self.is_shared or len(waiting) <= READ_AHEAD

    @property
    def bytes(self):
        return b"".join(images.tobytes() for _, images in self.seen)


FAILURES = st.sampled_from(
    [
        status("UNAVAILABLE"),
        status("CANCELLED"),
        status("UNAVAILABLE", ("grpc-retry-pushback-ms", "700")),
        status("DEADLINE_EXCEEDED"),
        "silence",
    ]
)
CALLS = st.lists(
    st.tuples(st.sampled_from([0.001, 0.3, 2.0]), st.integers(1, 9), st.integers(0, 60), FAILURES), max_size=4
)
GOOD = (0.01, 7, 1 << 62, None)


@given(
    num=st.integers(1, 200),
    start=st.sampled_from([0, 5, 2**64 - 200]),
    scripts=st.lists(CALLS, min_size=1, max_size=3),
    block_rows=st.integers(1, 60),
    window=st.integers(1, 6),
    calls=st.integers(1, 2),
    hedge=st.sampled_from([None, 0.0, 0.2, 3.0]),
    lag=st.sampled_from([0.0, 0.013, 0.4]),
    rest=st.sampled_from([0.0, 20.0]),
)
@settings(max_examples=100, deadline=None)
def test_no_index_is_lost_repeated_or_reordered(num, start, scripts, block_rows, window, calls, hedge, lag, rest):
    def act(target, number):
        script = scripts[target]
        return script[number] if number < len(script) else GOOD

    world = World(
        act, num=num, start=start, targets=len(scripts), block_rows=block_rows, window=window, calls=calls, hedge=hedge
    )
    error = None
    try:
        world.run(lag, rest)
    except KaemError as caught:
        error = caught
    done = sum(len(images) for _, images in world.seen)
    assert world.bytes == images_of(start, done).tobytes() if done else world.bytes == b""
    assert [first for first, _ in world.seen] == [
        start + sum(len(images) for _, images in world.seen[:position]) for position in range(len(world.seen))
    ]
    if error is None:
        assert done == num
    else:  # only where every server kept silent or failed too often
        assert all(script for script in scripts)
        assert isinstance(error, RemoteError)


@given(
    num=st.integers(1, 300),
    deaths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    after=st.integers(0, 40),
    block_rows=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_whatever_dies_the_last_server_finishes_the_job(num, deaths, after, block_rows):
    def act(target, number):
        if target < len(deaths) and number >= deaths[target]:
            return (0.01, 5, after if number == deaths[target] else 0, status("UNAVAILABLE"))
        return GOOD

    world = World(act, num=num, targets=len(deaths) + 1, block_rows=block_rows, window=6, calls=2).run()
    assert world.bytes == images_of(0, num).tobytes()


def test_the_work_is_shared_by_speed():
    world = World(
        lambda target, _: ((0.001, 0.01)[target], 10, 1 << 62, None),
        num=10_000,
        targets=2,
        block_rows=40,
        window=6,
        calls=2,
    ).run()
    fast, slow = world.calls
    assert world.bytes == images_of(0, 10_000).tobytes()
    assert fast > 3 * slow > 0


def test_a_job_of_all_indices_is_begun_in_little_memory():
    world = World(lambda *_: GOOD, num=2**64, targets=3, block_rows=40, window=9, calls=2)
    starts = world.exchange.step(world.now)
    assert [(start.first, start.rows) for start in starts] == [(40 * k, 40) for k in range(6)]


def waits(world):
    times = [now for now, _ in world.starts]
    return [round(after - before, 6) for before, after in itertools.pairwise(times)]


def test_backoff_is_exponential_with_full_jitter():
    shares = [0.5, 0.25, 1.0 - 2**-53]
    assert [PATIENCE.backoff_s(failures, 0.5) for failures in (1, 2, 3, 4, 5, 500)] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert [PATIENCE.backoff_s(2, share) for share in shares] == pytest.approx([0.1, 0.05, 0.2])

    def act(_, number):
        return GOOD if number == 3 else (0.0, 1, 0, status("UNAVAILABLE"))

    world = World(act, num=10, block_rows=10).run()
    random_ = random.Random(1)  # noqa: S311
    assert waits(world) == [round(random_.random() * longest, 6) for longest in (0.1, 0.2, 0.4)]


def test_failures_in_a_row_are_bounded_and_progress_forgives_them():
    world = World(lambda *_: (0.0, 1, 0, status("UNAVAILABLE")), num=10, block_rows=10)
    with pytest.raises(RemoteError, match="cannot be reached"):
        world.run()
    assert len(world.starts) == PATIENCE.attempts

    def act(_, number):
        return (0.0, 1, number % 3 == 2, status("UNAVAILABLE"))

    assert World(act, num=30, block_rows=30).run().bytes == images_of(0, 30).tobytes()


def test_a_server_that_says_when_to_return_is_asked_exactly_then_and_not_counted_out():
    def act(_, number):
        return GOOD if number == 6 else (0.0, 1, 0, status("UNAVAILABLE", ("grpc-retry-pushback-ms", "750")))

    assert waits(World(act, num=10, block_rows=10).run()) == [0.75] * 6


def test_a_server_that_is_always_busy_is_left_after_the_longest_silence():
    world = World(
        lambda *_: (0.0, 1, 0, status("UNAVAILABLE", ("grpc-retry-pushback-ms", "750"))), num=10, block_rows=10
    )
    with pytest.raises(RemoteError):
        world.run()
    assert world.now - 100 <= PATIENCE.call_timeout_s + 0.75


def test_waiting_never_passes_the_deadline():
    busy = status("UNAVAILABLE", ("grpc-retry-pushback-ms", "3000"))
    world = World(lambda *_: (0.0, 1, 0, busy), num=10, block_rows=10, timeout_s=2.0)
    with pytest.raises(RemoteError, match=r"not there after 2 s: s:1 cannot be reached.*scripted"):
        world.run()
    assert world.now == 100.0  # known at once


def test_a_stalled_stream_goes_on_elsewhere_after_the_longest_silence():
    def act(target, number):
        return (0.1, 5, 10, "silence") if target == 0 else GOOD

    world = World(act, num=50, targets=2, block_rows=50).run()
    assert [(round(now - 100, 3), start.target, start.first) for now, start in world.starts] == [
        (0.0, 0, 0),
        (5.2, 1, 10),
    ]


def test_silence_everywhere_is_an_error_in_bounded_time():
    world = World(lambda *_: (0.1, 5, 0, "silence"), num=50, targets=3, block_rows=50)
    with pytest.raises(RemoteError, match="did not answer in time"):
        world.run()
    assert world.now - 100 == 3 * PATIENCE.call_timeout_s


def test_the_deadline_of_the_job_ends_it_although_it_progresses():
    world = World(lambda *_: (0.5, 1, 1 << 62, None), num=50, block_rows=50, timeout_s=10.0)
    with pytest.raises(RemoteError, match="not there after 10 s: s:1 did not answer in time"):
        world.run()
    assert world.now == 110.0
    assert world.starts[0][1].timeout_s == 10.0


def test_time_that_the_caller_takes_is_not_the_servers():
    world = World(lambda *_: (0.5, 1, 1 << 62, None), num=15, block_rows=15, timeout_s=10.0).run(rest=1000.0)
    assert world.bytes == images_of(0, 15).tobytes()
    assert len(world.starts) == 1


def test_the_first_answer_wins_and_the_other_call_is_cancelled():
    def act(target, _):
        return (4.0, 5, 1 << 62, None) if target == 0 else (0.3, 5, 1 << 62, None)

    world = World(act, num=10, targets=2, block_rows=10, hedge=1.0).run()
    assert [(now - 100, start.target, start.first, start.rows) for now, start in world.starts] == [
        (0.0, 0, 0, 10),
        (1.0, 1, 0, 10),
    ]
    assert world.now == pytest.approx(101.9)  # as the second server alone would have taken, from its start
    assert world.latencies == pytest.approx([0.3, 1.3])  # the loser's too, else percentiles would shrink by hedging
    assert world.bytes == images_of(0, 10).tobytes()


def test_a_server_in_disgrace_is_not_hedged_to():
    def act(target, number):
        if target == 1:
            return (0.0, 1, 0, status("UNAVAILABLE", ("grpc-retry-pushback-ms", "4000")))
        return (3.0, 10, 1 << 62, None)

    world = World(act, num=40, targets=2, block_rows=40, hedge=0.5).run()
    assert [now - 100 for now, start in world.starts if start.target == 1] == [0.5, 4.5]  # then it is given up


MUTE = (1e9, 1, 1 << 62, None)


@given(deadline=st.floats(0.01, 4.9), earlier=st.integers(0, 12))
def test_silence_for_the_whole_of_a_short_deadline_is_remembered_in_proportion(deadline, earlier):
    reputation = Reputation(2)
    for _ in range(earlier):
        reputation.note_silence(0, 0.0, 0.01)
    world = World(lambda *_: MUTE, num=1, targets=2, block_rows=1, timeout_s=deadline, reputation=reputation)
    with pytest.raises(RemoteError, match="were not there after"):
        world.run()
    asked = world.starts[0][1].target
    assert [start.target for _, start in world.starts] == [asked]
    expected = min(120.0, deadline * 2.0 ** (earlier if asked == 0 else 0))
    assert reputation.avoided_until(asked) - world.now == pytest.approx(expected)


@given(slow=st.floats(0.5, 0.75) | st.floats(0.85, 4.0))
def test_of_two_calls_for_the_same_rows_the_one_that_kept_silent_is_remembered(slow):
    # The first answers after `slow`; it is hedged after 0.4 by a server that is mute for ever, or the other way round.
    answers = {0: (slow, 5, 1 << 62, None), 1: MUTE}
    reputation = Reputation(2)
    World(lambda target, _: answers[target], num=1, targets=2, block_rows=1, hedge=0.4, reputation=reputation).run()
    assert not reputation.is_in_doubt(0)
    assert reputation.is_in_doubt(1) == (slow - 0.4 >= 0.4)
    reputation = Reputation(2)
    World(lambda target, _: answers[1 - target], num=1, targets=2, block_rows=1, hedge=0.4, reputation=reputation).run()
    assert reputation.is_in_doubt(0)
    answered_at = 100.0 + 0.4 + slow
    assert reputation.avoided_until(0) == pytest.approx(answered_at + 0.4 + slow)


@given(dies_after=st.integers(0, 20), avoided_s=st.floats(5.0, 120.0), how=st.sampled_from(["UNAVAILABLE", "INTERNAL"]))
def test_a_job_that_loses_its_good_server_asks_those_in_disgrace_at_once(dies_after, avoided_s, how):
    reputation = Reputation(3)
    for target in (1, 2):
        while reputation.avoided_until(target) < 100.0 + avoided_s:
            reputation.note_silence(target, 100.0)

    def act(target, _):
        return (0.01, 1, dies_after, status(how)) if target == 0 else (0.01, 1, 1 << 62, None)

    world = World(act, num=21, targets=3, block_rows=21, reputation=reputation).run()
    assert world.bytes == images_of(0, 21).tobytes()
    assert world.now - 100.0 < 1.0
    assert world.starts[0][1].target == 0
    assert not all(reputation.is_in_doubt(target) for target in (1, 2))


def test_a_server_in_doubt_is_tried_by_one_call_at_a_time():
    reputation = Reputation(2)
    reputation.note_silence(1, 90.0)  # it may be asked again from 95 on
    good = (0.01, 1, 1 << 62, None)
    trial = World(
        lambda target, _: MUTE if target else good,
        num=8,
        targets=2,
        block_rows=1,
        window=8,
        calls=2,
        reputation=reputation,
        first=1,
    )
    others = World(
        lambda *_: good, num=40, targets=2, block_rows=1, window=8, calls=2, reputation=reputation, now=100.5, first=1
    )
    trial.exchange.turn(trial, trial.now)
    others.run()
    assert {start.target for _, start in others.starts} == {0}  # while the first job tries it, nobody else does
    trial = World(
        lambda target, _: MUTE if target else good,
        num=8,
        targets=2,
        block_rows=1,
        window=8,
        calls=2,
        reputation=reputation,
        now=106.0,
        first=1,
    ).run()
    assert [start.target for _, start in trial.starts].count(1) == 1
    assert trial.now - 106.0 == pytest.approx(5.0, abs=0.1)  # its one block went on elsewhere after the trial


@given(num_jobs=st.integers(1, 300), gap=st.floats(0.0, 3.0), hung=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_a_server_that_hangs_costs_a_client_less_and_less(num_jobs, gap, hung):
    reputation, now, waited = Reputation(3), 100.0, []
    for number in range(num_jobs):
        world = World(
            lambda target, _: MUTE if target == hung else (0.01, 1, 1 << 62, None),
            num=1,
            targets=3,
            block_rows=1,
            reputation=reputation,
            now=now,
            first=number % 3,
        ).run()
        waited.append(world.now - now)
        now = world.now + gap
    slow = [seconds for seconds in waited if seconds > 1.0]
    assert sum(slow) <= 5.1 * len(slow)
    passed = now - 100.0
    # 5, 10, 20, 40 and 80 seconds apart at least, then 120.
    assert len(slow) <= (2 + np.log2(1 + passed / 5) if passed < 155 else 7 + (passed - 155) / 120)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "OUT_OF_RANGE"])
def test_a_request_that_is_wrong_everywhere_is_asked_once(code):
    world = World(lambda *_: (0.0, 1, 0, status(code)), num=10, targets=3, block_rows=10)
    with pytest.raises(RequestError, match="refused the request: scripted"):
        world.run()
    assert len(world.starts) == 1


@pytest.mark.parametrize("code", ["DATA_LOSS", "UNAUTHENTICATED", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"])
def test_what_is_wrong_with_one_server_is_asked_of_the_others(code):
    def act(target, _):
        return GOOD if target == 2 else (0.0, 1, 0, status(code))

    world = World(act, num=100, targets=3, block_rows=10, window=4).run()
    assert world.bytes == images_of(0, 100).tobytes()
    assert world.calls[:2] == [1, 1]


def test_an_answer_that_is_wrong_is_not_handed_out():
    world = World(lambda *_: GOOD, num=10, block_rows=10)
    (start,) = world.exchange.step(100.0)
    reading = world.exchange.readings[start.attempt] = Mute(0)
    world.exchange.handle(start.attempt, chunk_of(3, 4), 100.1)
    assert reading.is_cancelled
    with pytest.raises(RemoteError, match="from index 3; expected at most 10 from index 0"):
        world.exchange.step(100.2)
    assert world.job.take() is None


def test_what_a_cancelled_call_still_says_is_ignored():
    world = World(lambda *_: GOOD, num=10, targets=2, block_rows=10, hedge=0.5)
    (one,) = world.exchange.step(100.0)
    world.exchange.readings[one.attempt] = Mute(0)
    (two,) = world.exchange.step(101.0)
    world.exchange.readings[two.attempt] = Mute(1)
    world.exchange.handle(two.attempt, chunk_of(0, 4), 101.1)
    for event in (chunk_of(0, 4), Failure(error=RemoteError("late")), None):
        world.exchange.handle(one.attempt, event, 101.2)
    world.exchange.handle(two.attempt, chunk_of(4, 6), 101.3)
    world.exchange.handle(two.attempt, None, 101.4)
    assert [world.job.take()[0], world.job.take()[0], world.job.take()] == [0, 4, None]
    assert world.job.is_done
