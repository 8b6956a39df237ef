"""A job's calls for callers without an event loop: the job decides, this file starts, reads and cancels.

gRPC's own iterator cannot be interrupted: an exception that a signal handler raises while it is inside (Ctrl-C,
SIGTERM) may be swallowed there together with the read it interrupted, and the stream then waits for ever. So a thread
of its own reads each stream, where no signal is ever handled, and the caller waits on a queue, which may be
interrupted anywhere. Only the caller's thread touches the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from kaem.client.addresses import Target
from kaem.client.job import Start
from kaem.client.plan import READ_AHEAD, Event, Exchange, failure_of
from kaem.errors import RequestError
from kaem.sampler import Images

Events = SimpleQueue[tuple[int, Event]]


class ThreadReading:
    """One call and what reads it; reports (number, event) to a queue.

    Args:
        call: A stream to iterate over, or a future.
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
        self._room = threading.Semaphore(READ_AHEAD)
        self._thread: threading.Thread | None = None
        if is_stream:
            self._thread = threading.Thread(target=self._read, name="kaem-read", daemon=True)
            self._thread.start()
        else:
            call.add_done_callback(self._read_future)

    def make_room(self) -> None:
        """Let one more message in."""
        self._room.release()

    def cancel(self) -> None:
        """End the call; whatever it still reports is for nobody."""
        self._call.cancel()
        self._room.release(1000)  # it may be waiting for room

    def join(self) -> None:
        """Wait until nothing reads any more."""
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _read(self) -> None:
        try:
            for message in self._call:
                self._room.acquire()
                self._events.put((self._number, message))
        except grpc.RpcError as error:
            self._events.put((self._number, failure_of(error, self._who)))
        else:
            self._events.put((self._number, None))

    def _read_future(self, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            self._events.put((self._number, call.result()))
            self._events.put((self._number, None))
        else:
            self._events.put((self._number, failure_of(call, self._who)))


def pieces(
    exchange: Exchange, stubs: Sequence[Any], targets: Sequence[Target], check_open: Callable[[], None]
) -> Generator[tuple[int, Images], None, None]:
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
        method = method if exchange.is_stream else method.future
        try:
            call = method(asking.request, timeout=asking.timeout_s, metadata=asking.metadata)
        except ValueError:  # gRPC's word for a closed channel
            raise RequestError("this sampler is closed") from None
        exchange.readings[start.attempt] = ThreadReading(
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
                event = _next(events, job.wake_at())
                if event is not None:
                    exchange.handle(*event, time.monotonic())
    finally:
        readings = [one for one in exchange.readings.values() if isinstance(one, ThreadReading)]
        for reading in readings:
            reading.cancel()
        for reading in readings:
            reading.join()


def _next(events: Events, wake_at: float) -> tuple[int, Event] | None:
    """Wait for the next event; None if there is something else to do first."""
    try:
        return events.get(timeout=max(0.0, wake_at - time.monotonic()))
    except Empty:
        return None
