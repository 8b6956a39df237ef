from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from stepped_scheduler import Stepped, next_chunk, rows_of

from kaem import noise
from kaem.errors import BackendError, RemoteError
from serve.scheduling.batch_costs import CostTable, power_sizes
from serve.scheduling.demand import Bounds, Demand
from serve.scheduling.lanes import Lanes
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.sources import Given, Seeded, draw
from serve.statuses import RefusedError


async def read_all(job):
    async with job:
        return [chunk async for chunk in job]


def check_chunks(chunks, job, rows, chunk_rows):
    assert [len(chunk) for chunk in chunks] == [chunk_rows] * (rows // chunk_rows) + (
        [rows % chunk_rows] if rows % chunk_rows else []
    )
    np.testing.assert_array_equal(np.concatenate(chunks).reshape(rows, 2), rows_of(job, 0, rows))


async def read_while_computing(stepped, job):
    task = asyncio.create_task(read_all(job))
    await asyncio.sleep(0)
    while not task.done():
        stepped.step()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return task.result()


def refusal(submit):
    with pytest.raises(RefusedError) as caught:
        submit()
    return caught.value


def test_jobs_share_a_batch_which_is_padded_to_a_warmed_size():
    stepped = Stepped(max_batch=32)
    for job in range(10):
        stepped.submit(job, 2)
    stepped.step()
    (batch,) = stepped.batches
    assert len(batch) == 32
    np.testing.assert_array_equal(batch[:20], np.concatenate([rows_of(job, 0, 2) for job in range(10)]))
    assert stepped.observer.of("on_batch") == [{"size": 32, "rows": 20, "seconds": 0.0}]
    assert not stepped.step()


def test_the_next_batch_is_planned_however_many_full_ones_wait():
    stepped = Stepped(max_batch=1)
    for number in range(2000):
        stepped.submit(number, 1)
    assert stepped.step()
    assert [len(batch) for batch in stepped.batches] == [1]


def test_only_warmed_sizes_are_run():
    stepped = Stepped(max_batch=24, seconds=float)
    for rows in range(1, 40):
        stepped.submit(rows, rows, window=100)
        while stepped.step():
            pass
    assert {len(batch) for batch in stepped.batches} <= {1, 2, 4, 8, 16, 24}


def test_seeded_and_given_rows_share_a_batch_and_each_is_its_own():
    given = np.arange(10, dtype=np.float32).reshape(5, 2) / 100
    parts = [(Seeded(3, 5), 2, 3), (Given(given), 1, 2), (Seeded(2**63, 2**64 - 9), 0, 4), (Seeded(3, 5), 0, 1)]
    uniform = draw(parts, 16, 2)
    np.testing.assert_array_equal(uniform[:3], noise.uniforms(3, 7, 3, 2))
    np.testing.assert_array_equal(uniform[3:5], given[1:3])
    np.testing.assert_array_equal(uniform[5:9], noise.uniforms(2**63, 2**64 - 9, 4, 2))
    np.testing.assert_array_equal(uniform[9:10], noise.uniforms(3, 5, 1, 2))
    assert np.all((uniform[10:] > -0.5) & (uniform[10:] < 0.5))


def test_interactive_rows_do_not_wait_for_a_batch_filled_with_bulk_but_bulk_has_every_other_batch():
    stepped = Stepped(max_batch=64, seconds=lambda size: 1e-3 * size)
    stepped.submit(0, 10_000, chunk_rows=1000, window=10_000, is_bulk=True)
    stepped.step()
    for number in range(1, 5):
        stepped.submit(number, 1)
        stepped.step()
    alone = [set(batch[:, 0]) == {float(number)} for number, batch in enumerate(stepped.batches)]
    assert [len(batch) for batch in stepped.batches] == [64, 1, 64, 1, 64]
    assert alone == [True, True, False, True, False]


def test_interactive_rows_share_the_batch_with_bulk_where_a_small_batch_is_no_quicker():
    stepped = Stepped(max_batch=64, seconds=lambda size: 1e-3)
    stepped.submit(0, 10_000, chunk_rows=1000, window=10_000, is_bulk=True)
    stepped.submit(1, 1)
    stepped.step()
    assert [len(batch) for batch in stepped.batches] == [64]
    assert 1.0 in stepped.batches[0][:, 0]


def test_a_cancelled_job_contributes_nothing_to_the_next_batch():
    async def main():
        stepped = Stepped(lanes=1)
        doomed = stepped.submit(1, 1000, window=1000, may_shrink=True)
        stepped.step()
        stepped.submit(2, 4)
        async with doomed:
            pass
        stepped.step()
        assert set(stepped.batches[0][:, 0]) == {1.0}
        assert 1.0 not in stepped.batches[1][:, 0]
        assert stepped.observer.of("on_cancelled") == [("sending",)]
        assert stepped.scheduler.num_jobs == 1

    asyncio.run(main())


def test_a_stalled_reader_holds_only_its_window_and_delays_nobody():
    async def main():
        stepped = Stepped()
        async with stepped.submit(1, 10_000, chunk_rows=3, window=7) as stalled:
            stepped.step()
            assert await next_chunk(stalled) is not None
            check_chunks(await read_while_computing(stepped, stepped.submit(2, 500)), 2, 500, 3)
        return sum(int(np.sum(batch[:, 0] == 1)) for batch in stepped.batches)

    assert asyncio.run(main()) <= 7


def test_a_failing_batch_fails_its_jobs_and_the_scheduler_goes_on(caplog):
    async def main():
        stepped = Stepped()

        def fail(uniform):
            raise ValueError("secret detail of the engine")

        job = stepped.submit(1, 5)
        stepped.step(fail)
        with pytest.raises(BackendError, match="could not be computed") as caught:
            await read_all(job)
        assert "secret" not in str(caught.value)
        check_chunks(await read_while_computing(stepped, stepped.submit(2, 5)), 2, 5, 3)
        assert stepped.observer.of("on_batch_failed") == [{"size": 8, "rows": 5}]

    asyncio.run(main())
    assert "secret detail" in caplog.text


def test_where_there_is_nothing_to_compute_a_batch_its_jobs_are_told_to_try_elsewhere():
    async def main():
        stepped = Stepped()

        def refuse(uniform):
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, RemoteError("no device is left"))

        job = stepped.submit(1, 5)
        stepped.step(refuse)
        with pytest.raises(RefusedError, match="no device is left") as caught:
            await read_all(job)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        check_chunks(await read_while_computing(stepped, stepped.submit(2, 5)), 2, 5, 3)

    asyncio.run(main())


def test_an_engine_that_loses_rows_is_an_error_not_a_shift():
    async def main():
        stepped = Stepped()
        job = stepped.submit(1, 5, window=5)
        stepped.step(lambda uniform: uniform[:-1].reshape(-1, 1, 1, 2))
        with pytest.raises(BackendError, match="could not be computed"):
            await read_all(job)

    asyncio.run(main())


def test_closing_ends_waiting_jobs_and_refuses_new_ones():
    async def main():
        stepped = Stepped()
        job = stepped.submit(1, 1000)
        stepped.scheduler.close()
        with pytest.raises(RefusedError, match="stopping") as caught:
            await read_all(job)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert refusal(lambda: stepped.submit(2, 1)).code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_a_deadline_that_cannot_be_met_even_alone_is_refused_without_a_time_to_retry():
    stepped = Stepped(seconds=lambda size: 0.1 * size)
    refused = refusal(lambda: stepped.submit(1, 1000, window=1000, timeout_s=1.0))
    assert (refused.code, refused.quota, refused.retry_after_s) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "deadline",
        None,
    )
    assert "1000 samples take about" in refused.error.message
    assert not stepped.step()


def test_a_deadline_that_cannot_be_met_behind_others_is_refused_with_a_time_after_which_it_can():
    stepped = Stepped(seconds=lambda size: 0.1 * size, max_queue_samples=1000)
    for job in range(40):
        stepped.submit(job, 2)
    refused = refusal(lambda: stepped.submit(99, 2, timeout_s=1.0))
    assert refused.quota == "deadline"
    assert 5 < refused.retry_after_s < 15
    assert stepped.observer.of("on_rejected") == [("deadline",)]
    stepped.clock.now += refused.retry_after_s
    spent = 0.0
    while spent < refused.retry_after_s and stepped.step():
        spent += stepped.seconds(len(stepped.batches[-1]))
    stepped.submit(99, 2, timeout_s=1.0)


def test_a_deadline_that_has_passed_is_too_late():
    stepped = Stepped()
    assert refusal(lambda: stepped.submit(1, 1, timeout_s=0.0)).code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_that_passes_in_the_queue_ends_the_job_before_its_rows_are_computed():
    async def main():
        stepped = Stepped()
        job = stepped.submit(1, 5, timeout_s=2.0)
        stepped.clock.now += 2.0
        assert not stepped.step()
        with pytest.raises(RefusedError) as caught:
            await read_all(job)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert stepped.batches == []
        assert stepped.observer.of("on_expired") == [()]

    asyncio.run(main())


def test_a_stream_of_which_a_part_is_welcome_needs_only_its_first_chunk_in_time():
    stepped = Stepped(seconds=lambda size: 0.1 * size)
    stepped.submit(1, 1000, window=6, timeout_s=1.0, due_rows=3)


def test_samples_beyond_the_bound_are_refused_with_a_time_to_retry():
    stepped = Stepped(seconds=lambda size: 0.1 * size, max_queue_samples=10)
    stepped.submit(1, 6)
    refused = refusal(lambda: stepped.submit(2, 6))
    assert (refused.code, refused.quota) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "samples")
    assert 0.1 < refused.retry_after_s < 1
    stepped.step()
    stepped.submit(2, 6)


def test_bulk_samples_that_wait_refuse_no_interactive_ones():
    stepped = Stepped(max_queue_samples=8)
    stepped.submit(1, 10, window=10, is_bulk=True)
    assert refusal(lambda: stepped.submit(2, 1, is_bulk=True)).quota == "samples"
    stepped.submit(3, 6)
    assert refusal(lambda: stepped.submit(4, 6)).quota == "samples"


def test_bytes_beyond_the_bound_are_refused_until_somebody_leaves():
    async def main():
        stepped = Stepped(max_held_bytes=200)
        first = stepped.submit(1, 6, row_bytes=10, is_bulk=True)
        refused = refusal(lambda: stepped.submit(2, 6, row_bytes=10, is_bulk=True))
        assert (refused.quota, refused.retry_after_s > 0) == ("bytes", True)
        async with first:
            pass
        stepped.submit(2, 6, row_bytes=10, is_bulk=True)

    asyncio.run(main())


def test_a_thousand_endless_streams_fit_because_their_chunks_shrink():
    stepped = Stepped(max_batch=512)
    row_bytes = 12 << 10
    jobs = [
        stepped.submit(0, 400, chunk_rows=85, window=340, row_bytes=row_bytes, is_bulk=True, may_shrink=True)
        for _ in range(1000)
    ]
    assert jobs[0].chunk_rows == 85
    assert jobs[-1].chunk_rows >= 2
    while stepped.step():
        pass
    assert sum(job.ticket.held for job in jobs) * row_bytes <= 1 << 30
    assert min(job.ticket.held for job in jobs) >= 4


def test_a_batch_waits_for_more_rows_only_as_long_as_it_may():
    stepped = Stepped(max_batch=8, max_delay_s=2.0)
    stepped.submit(1, 3)
    assert not stepped.step()
    stepped.clock.now += 1.0
    stepped.submit(2, 2)
    assert not stepped.step()
    stepped.clock.now += 1.0
    assert stepped.step()
    stepped.submit(3, 9, window=9)
    assert stepped.step()  # full
    assert not stepped.step()
    assert [len(batch) for batch in stepped.batches] == [8, 8]


def test_events_tell_how_long_a_job_was_queued_and_until_its_first_chunk():
    async def main():
        stepped = Stepped(seconds=lambda size: 0.5)
        job = stepped.submit(1, 3)
        stepped.clock.now += 2.0
        await read_while_computing(stepped, job)
        assert stepped.observer.events == [
            ("on_admitted", {"is_bulk": False, "rows": 3}),
            ("on_queued", (2.0,)),
            ("on_batch", {"size": 4, "rows": 3, "seconds": 0.5}),
            ("on_first_chunk", (2.5,)),
        ]

    asyncio.run(main())


@pytest.mark.parametrize("most", [1, 30])
def test_at_three_times_the_load_a_server_carries_the_admitted_meet_their_deadlines(most):
    """Poisson arrivals on a virtual clock; batches cost 1 ms and 0.2 ms a row."""
    random = np.random.default_rng(0)
    stepped = Stepped(max_batch=64, seconds=lambda size: 1e-3 + 2e-4 * size)
    capacity = 64 / stepped.seconds(64)
    mean_rows = (1 + most) / 2
    times = stepped.clock.now + np.cumsum(random.exponential(mean_rows / (3 * capacity), 12_000))
    sizes = random.integers(1, most + 1, len(times))
    limits = random.uniform(0.01, 0.2, len(times))
    arrivals = iter(zip(times, sizes, limits, strict=True))
    upcoming = next(arrivals)
    admitted, late, refused = [], 0, 0

    def admit_until(now):
        nonlocal upcoming, refused
        while upcoming is not None and upcoming[0] <= now:
            stepped.clock.now, rows, limit = upcoming
            try:
                admitted.append(stepped.submit(0, int(rows), chunk_rows=int(rows), window=100, timeout_s=limit))
            except RefusedError:
                refused += 1
            upcoming = next(arrivals, None)
        stepped.clock.now = now

    def decode(uniform):
        admit_until(stepped.clock.now + stepped.seconds(len(uniform)))
        return uniform.reshape(-1, 1, 1, 2).copy()

    async def main():
        nonlocal late
        while upcoming is not None or stepped.scheduler.queue_samples:
            if not stepped.step(decode) and upcoming is not None:
                admit_until(upcoming[0])
            for job in [job for job in admitted if job.has_chunks or job.has_failed]:
                late += job.has_failed or job.ticket.deadline < stepped.clock.now
                admitted.remove(job)
                await job.__aexit__(None, None, None)

    asyncio.run(main())
    assert not admitted
    assert refused > 0.5 * len(times)
    assert late < 0.01 * (len(times) - refused)


@asynccontextmanager
async def lanes(decoders, *, max_batch=8):
    scheduler = Scheduler(
        CostTable(dict.fromkeys(power_sizes(max_batch), 1e-4)),
        noise_dim=2,
        bounds=Bounds(),
        lanes=len(decoders),
        post=asyncio.get_running_loop().call_soon_threadsafe,
    )
    running = Lanes(scheduler, decoders)
    try:
        yield scheduler
    finally:
        await running.close()


def test_lanes_that_overtake_each_other_keep_the_order_of_rows():
    async def main():
        is_held = threading.Event()
        may_go = threading.Event()

        def slow(uniform):
            is_held.set()
            assert may_go.wait(timeout=30)
            return uniform.reshape(-1, 1, 1, 2).copy()

        def fast(uniform):
            assert is_held.wait(timeout=30)
            done.append(len(uniform))
            if len(done) == 3:
                may_go.set()
            return uniform.reshape(-1, 1, 1, 2).copy()

        done = []
        async with lanes([slow, fast]) as scheduler:
            demand = Demand(rows=40, row_bytes=8, chunk_rows=5, window=40)
            job = scheduler.submit(Given(rows_of(7, 0, 40)), demand, convert=lambda images: images)
            check_chunks(await asyncio.wait_for(read_all(job), 30), 7, 40, 5)

    asyncio.run(main())


def test_closing_lanes_waits_for_the_batch_that_is_computed():
    async def main():
        is_computing, may_go = threading.Event(), threading.Event()
        has_ended = []

        def decode(uniform):
            is_computing.set()
            assert may_go.wait(timeout=30)
            has_ended.append(True)
            return uniform.reshape(-1, 1, 1, 2)

        async with lanes([decode]) as scheduler:
            demand = Demand(rows=2, row_bytes=8, chunk_rows=2, window=2)
            job = scheduler.submit(Given(rows_of(7, 0, 2)), demand, convert=lambda images: images)
            await asyncio.to_thread(is_computing.wait, 30)
            asyncio.get_running_loop().call_later(0.01, may_go.set)
        assert has_ended
        with pytest.raises(RefusedError, match="stopping"):
            await read_all(job)

    asyncio.run(main())
