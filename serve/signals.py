"""Signals that ask a server to stop, and the end of its time: a thread of its own sees to both.

    first signal     the event loop is told, and the whole shutdown has the grace
    second           it is told again, and has one more second
    time is over     what still runs is ended by force

The thread takes signals from the interpreter's own handler in C, so they count whatever the event loop is stuck in, and
whatever library waits for a network, a device or a process that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from serve.devices.worker_process import kill_all

_LEAST_S = 1.0  # of a shutdown, however short the grace: what is closed in order takes some tenths
_SECOND_S = 1.0  # from the second signal on
_LONGEST_LOOK_S = 3600.0  # a grace may be longer than a timeout can be
_SAYING_S = 0.2  # a log that nobody reads must not hold up the end
_log = logging.getLogger(__name__)


class Signals:
    """Takes the signals of the process for the time of the block; for the main thread.

    Args:
        grace_s: Seconds that the whole shutdown may take.

    Attributes:
        is_serving: Whether there is something to drain; until then a signal is how the process ends.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = max(grace_s, _LEAST_S)
        self.is_serving = False
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._taken: list[int] = []
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="kaem-signals", daemon=True)

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in _signals()}
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, _leave_it_to_the_thread)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def attach(self) -> None:
        """Tell this event loop from now on."""
        self._loop = asyncio.get_running_loop()

    async def get(self) -> int:
        """Wait for a signal that was not waited for before."""
        return await self._queue.get()

    def ask(self, number: int) -> None:
        """Do as if a signal had come."""
        with contextlib.suppress(OSError):  # the shutdown is over
            self._theirs.send(bytes([number]))

    def _watch(self) -> None:
        until: float | None = None
        while True:
            left_s = _LONGEST_LOOK_S if until is None else until - time.monotonic()
            if left_s <= 0:
                self._end_by_force()
            self._ours.settimeout(min(left_s, _LONGEST_LOOK_S))
            try:
                numbers = self._ours.recv(256)
            except TimeoutError:
                continue
            if not numbers:
                return
            for number in numbers:
                if number not in self._before:
                    continue
                self._taken.append(number)
                over = time.monotonic() + (self._grace_s if len(self._taken) == 1 else _SECOND_S)
                until = over if until is None else min(until, over)
                with contextlib.suppress(RuntimeError):  # the loop is closed, and the process about to end
                    if self._loop is not None:
                        self._loop.call_soon_threadsafe(self._queue.put_nowait, number)

    def _end_by_force(self) -> None:
        """End this process and all that it has started, without waiting for anything."""
        kill_all()
        saying = threading.Thread(target=_say_so, daemon=True)
        saying.start()
        saying.join(_SAYING_S)
        os._exit(0 if self.is_serving else 128 + self._taken[0])


def _say_so() -> None:
    _log.warning("the shutdown is cut short, for something hangs")


def _signals() -> list[signal.Signals]:
    """Return the signals that ask a server to stop; under nohup a hangup is none of them."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> Any:
    """Do nothing: an exception raised here would end the event loop under gRPC, which then never stops."""
