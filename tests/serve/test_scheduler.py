from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaem.errors import BackendError, RemoteError
from serve.scheduler import Scheduler


def source_of(job):
    """Rows that say whose they are: (job, index)."""
    return lambda first, rows: np.stack(
        [np.full(rows, job, np.float32), np.arange(first, first + rows, dtype=np.float32)], axis=1
    )


class Decoder:
    """Uniform (job, index) -> image with the same two values; can be held before a batch and made to fail."""

    def __init__(self, *, poison=None):
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()
        self.batches = []
        self.poison = poison

    def __call__(self, uniform):
        self.is_waiting.set()
        assert self.gate.wait(timeout=30)
        self.batches.append(uniform.copy())
        if self.poison is not None and np.any(uniform[:, 0] == self.poison):
            raise ValueError("secret detail of the backend")
        return uniform.reshape(-1, 1, 1, 2).copy()


@asynccontextmanager
async def running(decode, *, max_batch=8):
    scheduler = Scheduler(decode, max_batch=max_batch)
    try:
        yield scheduler
    finally:
        await scheduler.close()


def submit(scheduler, job, rows, *, chunk_rows=3, window=6):
    return scheduler.submit(source_of(job), rows, chunk_rows=chunk_rows, window=window, convert=lambda images: images)


async def read_all(job):
    async with job:
        return [chunk async for chunk in job]


def check_chunks(chunks, job, rows, chunk_rows):
    assert [len(chunk) for chunk in chunks] == [chunk_rows] * (rows // chunk_rows) + (
        [rows % chunk_rows] if rows % chunk_rows else []
    )
    got = np.concatenate(chunks).reshape(rows, 2)
    np.testing.assert_array_equal(got, source_of(job)(0, rows))


JOBS = st.lists(
    st.tuples(
        st.integers(1, 40),  # rows
        st.integers(1, 9),  # rows of a chunk
        st.integers(1, 20),  # window
        st.none() | st.integers(0, 4),  # leaves after so many chunks
        st.integers(0, 3),  # turns of the event loop it lets pass before each chunk
    ),
    min_size=1,
    max_size=12,
)


@given(jobs=JOBS, max_batch=st.integers(1, 16), poison=st.none() | st.integers(0, 11))
@settings(max_examples=80, deadline=None)
def test_readers_get_exactly_their_rows_in_order_whatever_happens_beside_them(jobs, max_batch, poison):
    async def read(scheduler, number, rows, chunk_rows, window, leaves_after, pauses):
        chunks = []
        try:
            async with submit(scheduler, number, rows, chunk_rows=chunk_rows, window=window) as job:
                async for chunk in job:
                    chunks.append(chunk)
                    if len(chunks) == leaves_after:
                        break
                    for _ in range(pauses):
                        await asyncio.sleep(0)
        except BackendError:
            assert poison is not None
            return chunks, False
        assert number != poison or leaves_after is not None
        return chunks, leaves_after is None

    async def main():
        async with running(Decoder(poison=poison), max_batch=max_batch) as scheduler:
            readers = (read(scheduler, number, *job) for number, job in enumerate(jobs))
            results = await asyncio.wait_for(asyncio.gather(*readers), 30)
            assert scheduler.num_jobs == 0
            last = await asyncio.wait_for(read_all(submit(scheduler, 99, 10)), 30)
            check_chunks(last, 99, 10, 3)
        return results

    for number, ((rows, chunk_rows, *_), (chunks, is_complete)) in enumerate(
        zip(jobs, asyncio.run(main()), strict=True)
    ):
        if is_complete:
            check_chunks(chunks, number, rows, chunk_rows)
        elif chunks:
            got = np.concatenate(chunks).reshape(-1, 2)
            np.testing.assert_array_equal(got, source_of(number)(0, len(got)))


def test_jobs_share_batches():
    async def main():
        decode = Decoder()
        decode.gate.clear()
        async with running(decode, max_batch=32) as scheduler:
            first = asyncio.create_task(read_all(submit(scheduler, 0, 1)))
            await asyncio.to_thread(decode.is_waiting.wait, 30)
            others = [asyncio.create_task(read_all(submit(scheduler, job, 2))) for job in range(1, 11)]
            await asyncio.sleep(0)
            decode.gate.set()
            await asyncio.gather(first, *others)
        return [len(batch) for batch in decode.batches]

    assert asyncio.run(main()) == [1, 20]


def test_a_cancelled_job_contributes_nothing_to_the_next_batch():
    async def main():
        decode = Decoder()
        decode.gate.clear()
        async with running(decode) as scheduler:
            doomed = asyncio.create_task(read_all(submit(scheduler, 1, 1000, window=1000)))
            await asyncio.to_thread(decode.is_waiting.wait, 30)
            other = asyncio.create_task(read_all(submit(scheduler, 2, 4)))
            await asyncio.sleep(0)
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)
            decode.gate.set()
            check_chunks(await other, 2, 4, 3)
            assert scheduler.num_jobs == 0
        return decode.batches

    first, *rest = asyncio.run(main())
    assert set(first[:, 0]) == {1.0}
    assert all(set(batch[:, 0]) == {2.0} for batch in rest)


def test_a_stalled_reader_holds_only_its_window_and_delays_nobody():
    async def main():
        decode = Decoder()
        async with running(decode) as scheduler, submit(scheduler, 1, 10_000, chunk_rows=3, window=7) as stalled:
            await anext(stalled)
            check_chunks(await read_all(submit(scheduler, 2, 500)), 2, 500, 3)
        return sum(int(np.sum(batch[:, 0] == 1)) for batch in decode.batches)

    assert asyncio.run(main()) <= 7


def test_a_failing_batch_fails_its_jobs_and_the_scheduler_goes_on(caplog):
    async def main():
        async with running(Decoder(poison=1)) as scheduler:
            with pytest.raises(BackendError, match="could not be computed") as caught:
                await read_all(submit(scheduler, 1, 5))
            assert "secret" not in str(caught.value)
            check_chunks(await read_all(submit(scheduler, 2, 5)), 2, 5, 3)

    asyncio.run(main())
    assert "secret detail" in caplog.text


def test_a_backend_that_loses_rows_is_an_error_not_a_shift():
    async def main():
        async with running(lambda uniform: uniform[:-1].reshape(-1, 1, 1, 2)) as scheduler:
            with pytest.raises(BackendError, match="could not be computed"):
                await read_all(submit(scheduler, 1, 5, window=5))

    asyncio.run(main())


def test_closing_ends_waiting_jobs_and_refuses_new_ones():
    async def main():
        decode = Decoder()
        decode.gate.clear()
        scheduler = Scheduler(decode, max_batch=8)
        reader = asyncio.create_task(read_all(submit(scheduler, 1, 1000, window=1000)))
        await asyncio.to_thread(decode.is_waiting.wait, 30)
        closing = asyncio.create_task(scheduler.close())
        with pytest.raises(RemoteError, match="stopping"):
            await reader
        decode.gate.set()
        await closing
        with pytest.raises(RemoteError, match="stopping"):
            submit(scheduler, 2, 1)

    asyncio.run(main())
