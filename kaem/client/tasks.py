"""A job's calls for asyncio: the job decides, this file starts, reads and cancels. `threads.py`, with tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import grpc

from kaem.client.addresses import Target
from kaem.client.failure import failure_from_status
from kaem.client.job import Start
from kaem.client.plan import READ_AHEAD, Event, Exchange, failure_of
from kaem.errors import RequestError
from kaem.sampler import Images

Events = asyncio.Queue[tuple[int, Event]]


class TaskReading:
    """One call and the task that reads it; reports (number, event) to a queue.

    Args:
        call: A stream to iterate over, or what to await.
        number: Number of the attempt.
        target: Which server was asked, and who that is.
        is_stream: Whether `call` is a stream.
        events: Where to report to.
    """

    def __init__(self, call: Any, number: int, target: tuple[int, Target], *, is_stream: bool, events: Events) -> None:
        self.target = target[0]
        self._call = call
        self._number = number
        self._who = target[1]
        self._events = events
        self._room = asyncio.Semaphore(READ_AHEAD)
        self._task = asyncio.create_task(self._read_stream() if is_stream else self._read_one())
        self._task.add_done_callback(self._report)

    def make_room(self) -> None:
        """Let one more message in."""
        self._room.release()

    def cancel(self) -> None:
        """End the call; whatever it still reports is for nobody."""
        self._call.cancel()
        self._task.cancel()

    async def join(self) -> None:
        """Wait until nothing reads any more."""
        await asyncio.wait((self._task,), timeout=5)

    async def _read_stream(self) -> None:
        async for message in self._call:
            await self._room.acquire()
            self._events.put_nowait((self._number, message))

    async def _read_one(self) -> None:
        self._events.put_nowait((self._number, await self._call))

    def _report(self, task: asyncio.Task[None]) -> None:
        """Say how the call ended."""
        error = None if task.cancelled() else task.exception()
        event: Event = None
        if isinstance(error, grpc.aio.AioRpcError):
            event = failure_of(error, self._who)
        elif task.cancelled() or error is not None:  # by us, or because the channel was closed
            event = failure_from_status("CANCELLED", str(error or ""), (), target=self._who)
        self._events.put_nowait((self._number, event))


async def pieces(
    exchange: Exchange, stubs: Sequence[Any], targets: Sequence[Target], check_open: Callable[[], None]
) -> AsyncGenerator[tuple[int, Images], None]:
    """Do a job; yield (index of the first row, images) in order, read-only. However it ends, its calls end with it.

    Args:
        exchange: The job.
        stubs: The generated stub of each server.
        targets: The servers.
        check_open: Raises once the stubs' channels are closed.

    Raises:
        KaemError: What the job failed with.
    """
    job, events = exchange.job, Events()

    def begin(start: Start) -> None:
        asking = exchange.asking(start)
        method = getattr(stubs[asking.target], asking.method)
        try:
            call = method(asking.request, timeout=asking.timeout_s, metadata=asking.metadata)
        except grpc.aio.UsageError:  # gRPC's word for a closed channel
            raise RequestError("this sampler is closed") from None
        exchange.readings[start.attempt] = TaskReading(
            call,
            start.attempt,
            (asking.target, targets[asking.target]),
            is_stream=exchange.is_stream,
            events=events,
        )

    try:
        while True:
            check_open()
            starts, piece = exchange.turn(events, time.monotonic())
            for start in starts:
                begin(start)
            if piece is not None:
                job.pause(time.monotonic())
                yield piece
                job.resume(time.monotonic())
            elif job.is_done:
                return
            else:
                event = await _next(events, job.wake_at())
                if event is not None:
                    exchange.handle(*event, time.monotonic())
    finally:
        readings = [one for one in exchange.readings.values() if isinstance(one, TaskReading)]
        for reading in readings:
            reading.cancel()
        for reading in readings:
            await reading.join()


async def _next(events: Events, wake_at: float) -> tuple[int, Event] | None:
    """Wait for the next event; None if there is something else to do first."""
    try:
        async with asyncio.timeout(max(0.0, wake_at - time.monotonic())):
            return await events.get()
    except TimeoutError:
        return None
