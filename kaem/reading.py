"""Reading a gRPC stream so that it can be interrupted.

gRPC's own iterator cannot: an exception that a signal handler raises while it is inside (Ctrl-C, SIGTERM) may be
swallowed there together with the read it interrupted, and the stream then waits for ever. So a thread of its own
reads, where no signal is ever handled, and the caller waits on a queue, which may be interrupted anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

import grpc

_READ_AHEAD = 2  # messages: enough to hide the hand-over, and bounded


def messages_of(call: Any) -> Generator[Any, None, None]:
    """Yield the messages of a server stream in order; cancel the call when the caller stops, however it stops.

    Args:
        call: What a generated stub returned for a streaming method.

    Raises:
        grpc.RpcError: The call ended with another status than OK.
    """
    queue: Queue[Any] = Queue(_READ_AHEAD)
    reader = threading.Thread(target=_read, args=(call, queue), name="kaem-read", daemon=True)
    reader.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, grpc.RpcError):
                raise item
            yield item
    finally:
        call.cancel()
        while reader.is_alive():  # it may be waiting for room
            with suppress(Empty):
                queue.get(timeout=0.05)


def _read(call: Any, queue: Queue[Any]) -> None:
    """Put every message into the queue, then None, or the error that ended the call."""
    try:
        for message in call:
            queue.put(message)
    except grpc.RpcError as error:
        queue.put(error)
    else:
        queue.put(None)
