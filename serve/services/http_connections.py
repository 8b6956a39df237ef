"""How connections come to the HTTP port: one at a time, never more than a number, and none that is silent for long.

The event loop's own way fails where descriptors run out: it tries to accept as often as its backlog is long, complains
each time, and schedules as many further tries. So a listening socket is only read here:

    readable -> accept one -> is there room? else the connection that has been silent longest makes room
             -> no descriptor left: that one is closed too, and the socket is left alone for a moment

A connection that waits for a request, from its first byte or from the end of the last answer on, is closed after a
while; so is one whose answer is not taken. While it is being answered nobody hurries it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.monitoring.episodes import Episodes

BACKLOG = 64
REQUEST_S = 10.0
"""For the head of a request, TLS handshake and pauses between its bytes included."""

_SEND_S = 60.0  # for the last of an answer to be taken
_LOOK_S = 1.0
_PAUSE_S = 0.2  # after a descriptor was missing
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """A connection that knows since when it waits for its client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self.waits_since = self.loop.time()

    def on_response_complete(self) -> None:
        """Wait for the next one."""
        self.waits_since = self.loop.time()
        super().on_response_complete()

    @property
    def is_waiting(self) -> bool:
        """Whether it is the client's turn."""
        return self.cycle is None or self.cycle.response_complete

    def is_overdue(self, now: float) -> bool:
        """Whether the client has had its turn for too long."""
        is_sending = self.transport.get_write_buffer_size() > 0
        return self.is_waiting and now - self.waits_since > (_SEND_S if is_sending else REQUEST_S)


class HttpListener:
    """Accepts connections of listening sockets until it is closed.

    Args:
        listeners: The sockets; they listen already and do not block.
        make: Makes the protocol of a connection.
        connections: All that are open.
        limit: How many may be.
        tls: Context for TLS; None without.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make: Callable[[], Connection],
        connections: set[Any],
        *,
        limit: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listeners = listeners
        self._make = make
        self._connections = connections
        self._limit = limit
        self._tls = tls
        self._greeted: set[asyncio.Task[None]] = set()  # on their way to be connections
        self._loop = asyncio.get_running_loop()
        self._full, self._exhausted = Episodes(), Episodes()
        for listener in listeners:
            self._listen(listener)
        self._looking = self._loop.create_task(self._look())

    async def close(self) -> None:
        """Accept no more; what is open is left to its owner."""
        tasks = [self._looking, *self._greeted]
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it may have been closed meanwhile
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in _NONE_LEFT:
                self._make_room()
                if self._exhausted.is_line_due():
                    _log.warning("no descriptor is left for a connection to the HTTP port: %s", error.strerror)
            self._loop.remove_reader(listener)
            self._loop.call_later(_PAUSE_S, self._listen, listener)
            return
        accepted.setblocking(False)
        if len(self._connections) + len(self._greeted) >= self._limit:
            has_room = self._make_room()
            if self._full.is_line_due():
                _log.warning("the HTTP port has %d connections, its limit: silent ones are closed", self._limit)
            if not has_room:
                accepted.close()
                return
        task = self._loop.create_task(self._greet(accepted))
        self._greeted.add(task)
        task.add_done_callback(self._greeted.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        timeouts: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": REQUEST_S}
        try:
            await self._loop.connect_accepted_socket(self._make, accepted, ssl=self._tls, **timeouts)
        except BaseException as error:
            accepted.close()
            if not isinstance(error, (OSError, asyncio.CancelledError)):  # a client that left, or spoke no TLS
                raise

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its client, if there is one."""
        waiting = [one for one in self._connections if one.is_waiting and not one.transport.is_closing()]
        if not waiting:
            return False
        longest: Connection = min(waiting, key=lambda one: one.waits_since)
        longest.transport.abort()
        return True

    async def _look(self) -> None:
        """Close what is overdue, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self._loop.time()
            for connection in list(self._connections):
                with contextlib.suppress(AttributeError):  # of a transport that is just being lost
                    if connection.is_overdue(now):
                        connection.transport.abort()
