"""Stopping on request: the first Ctrl-C or SIGTERM asks, the second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    is_made: bool = False
    number: int = 0


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to look at between updates.

    After the first signal the former handlers are back, so a second one stops the process at once. Outside
    the main thread, where Python forbids handlers, signals keep their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        request.is_made, request.number = True, number
        restore()

    for number in former:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


@contextmanager
def hold_signals_back() -> Iterator[None]:
    """Keep a first SIGINT or SIGTERM for the end of the block, for libraries whose C++ calls Python.

    An exception that a handler raises in such a call ends the process with a core dump.
    """
    with stop_request() as request:
        yield
    if request.is_made:
        signal.raise_signal(request.number)
