"""An open loop of unary gRPC calls on plain sockets: they are sent when their time has come, whatever became of others.

A Python client of gRPC needs as much processor time for a call as the server under test, so it could not offer three
times what that server can do. This one knows as much of HTTP/2 as a call needs: frames are prepared once, a call costs
some ten microseconds. It behaves as gRPC's clients do: `grpc-timeout` in the headers, RST_STREAM once the time is over.

    python benchmarks/open_loop.py '{"address": "127.0.0.1:50051", "request": "20 01", "rate": 100.0, ...}'
"""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_NO_TABLE, _INITIAL_WINDOW, _LARGEST = 1, 4, (1 << 31) - 1
_CANCEL = struct.pack(">I", 8)
_REFUSED_STREAM = 7
_STATUS = b"grpc-status"
_OK, _DEADLINE_EXCEEDED = 0, 4
_SLACK_S = 1.0  # for answers, after the last call was sent


@dataclass(frozen=True)
class Load:
    """What is to be offered.

    Attributes:
        address: `host:port`, without TLS.
        method: `/package.Service/Method`.
        request: The message of every call, as hexadecimal digits.
        rate: Number of calls a second, at random moments (Poisson); 0 for a closed loop.
        callers: Number of calls of a closed loop that are open at any time.
        seconds: Time during which calls are sent, in seconds.
        settle_s: Part of this time at its beginning that does not count, in seconds.
        timeout_s: Time limit of each call, in seconds.
        connections: Number of connections over which calls are spread in turn.
        seed: Seed of the moments at which calls are sent.
    """

    address: str
    method: str
    request: str
    rate: float = 0.0
    callers: int = 0
    seconds: float = 10.0
    settle_s: float = 2.0
    timeout_s: float = 0.2
    connections: int = 4
    seed: int = 0


@dataclass
class Outcome:
    """What became of the calls.

    Attributes:
        seconds: Time during which the calls were sent that are counted here, in seconds.
        sent: Number of calls that were sent.
        in_time: Number of calls answered OK before their deadline.
        late: Number of calls without an answer at their deadline, or answered DEADLINE_EXCEEDED.
        refused: Number of calls answered with another status, by its code; `reset` for those without one.
        ok_ms: Latencies of the calls in time, from the moment when they ought to have been sent, in milliseconds.
        refused_ms: Latencies of the refused calls, in milliseconds.
        slip_ms: 99th percentile of how late the calls were sent, in milliseconds.
    """

    seconds: float = 0.0
    sent: int = 0
    in_time: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    ok_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    slip_ms: float = 0.0


def offer(load: Load) -> Outcome:
    """Offer a load and return what became of it.

    Raises:
        ConnectionError: The server has closed a connection.
    """
    outcome, moments = Outcome(seconds=load.seconds - load.settle_s), random.Random(load.seed)  # noqa: S311 - moments of calls
    connections = [Connection(load) for _ in range(load.connections)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    began = time.perf_counter()
    counted_from, until = began + load.settle_s, began + load.seconds
    deadlines: list[tuple[float, int, int]] = []  # the moment, and whose it is
    slips: list[float] = []
    due, sent, open_calls = began, 0, 0

    def note(intended: float, code: int, now: float) -> None:
        if intended < counted_from:
            return
        if code == _OK and now - intended <= load.timeout_s:
            outcome.in_time += 1
            outcome.ok_ms.append(1e3 * (now - intended))
        elif code in (_OK, _DEADLINE_EXCEEDED):
            outcome.late += 1
        else:
            name = str(code) if code >= 0 else "reset"
            outcome.refused[name] = outcome.refused.get(name, 0) + 1
            outcome.refused_ms.append(1e3 * (now - intended))

    while (now := time.perf_counter()) < until + _SLACK_S:
        while now < until and (open_calls < load.callers if load.callers else due <= now):
            intended = now if load.callers else due
            place = sent % len(connections)
            stream = connections[place].call(intended)
            heapq.heappush(deadlines, (intended + load.timeout_s, place, stream))
            if intended >= counted_from:
                outcome.sent += 1
                slips.append(1e3 * (now - intended))
            sent, open_calls = sent + 1, open_calls + 1
            due += 0.0 if load.callers else moments.expovariate(load.rate)
        while deadlines and deadlines[0][0] <= now:
            _, place, stream = heapq.heappop(deadlines)
            given_up = connections[place].cancel(stream)
            if given_up is not None:
                open_calls -= 1
                note(given_up, _DEADLINE_EXCEEDED, now)
        if now >= until and not open_calls:
            break
        for connection in connections:
            connection.flush()
        next_moment = min(until + _SLACK_S, *(moment for moment, *_ in deadlines[:1]))
        if not load.callers and now < until:
            next_moment = min(next_moment, due)
        for key, _ in selector.select(max(0.0, next_moment - time.perf_counter())):
            for intended, code in key.data.receive():
                open_calls -= 1
                note(intended, code, time.perf_counter())
    selector.close()
    for connection in connections:
        connection.socket.close()
    outcome.slip_ms = sorted(slips)[int(0.99 * len(slips))] if slips else 0.0
    return outcome


class Connection:
    """An HTTP/2 connection that repeats one unary call.

    Args:
        load: Where to, and what the call is.
    """

    def __init__(self, load: Load) -> None:
        host, _, port = load.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._open: dict[int, float] = {}  # by stream: when it ought to have been sent
        self._codes: dict[int, int] = {}
        self._next = 1
        message = bytes.fromhex(load.request)
        self._headers = _headers(load)
        self._body = struct.pack(">BI", 0, len(message)) + message
        self._in = bytearray()
        settings = struct.pack(">HIHI", _NO_TABLE, 0, _INITIAL_WINDOW, _LARGEST)
        self._out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._out += _frame(_SETTINGS, 0, 0, settings)
        self._out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST - 65535))
        self._received = 0

    def call(self, intended: float) -> int:
        """Begin a call that ought to begin at `intended`, and return its stream."""
        stream, self._next = self._next, self._next + 2
        self._open[stream] = intended
        self._out += _frame(_HEADERS, _END_HEADERS, stream, self._headers)
        self._out += _frame(_DATA, _END_STREAM, stream, self._body)
        return stream

    def cancel(self, stream: int) -> float | None:
        """End a call whose time is over; return when it ought to have begun, or None if it has ended already."""
        if stream in self._open:
            self._out += _frame(_RST_STREAM, 0, stream, _CANCEL)
        return self._open.pop(stream, None)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        if self._out:
            with contextlib.suppress(BlockingIOError):
                del self._out[: self.socket.send(self._out)]

    def receive(self) -> list[tuple[float, int]]:
        """Return when the calls that have ended ought to have begun, with the codes of their statuses.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        content = self.socket.recv(1 << 20)
        if not content:
            raise ConnectionError("the server has closed the connection")
        self._in += content
        ended, at, buffer = [], 0, self._in
        while len(buffer) - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            payload = at + 9
            at = payload + length
            if kind == _DATA:
                self._received += length
            elif kind == _HEADERS:
                place = buffer.find(_STATUS, payload, at)
                if place >= 0:
                    size = buffer[place + len(_STATUS)]
                    start = place + len(_STATUS) + 1
                    self._codes[stream] = int(buffer[start : start + size])
            elif kind == _SETTINGS and not flags & _ACK:
                self._out += _frame(_SETTINGS, _ACK, 0, b"")
            elif kind == _PING and not flags & _ACK:
                self._out += _frame(_PING, _ACK, 0, bytes(buffer[payload:at]))
            elif kind == _GOAWAY:
                raise ConnectionError(f"GOAWAY: {bytes(buffer[payload:at])!r}")
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                code = self._codes.pop(stream, -1)
                intended = self._open.pop(stream, None)
                if intended is not None:
                    ended.append((intended, code))
        del buffer[:at]
        if self._received > 1 << 20:
            self._out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received))
            self._received = 0
        return ended


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _headers(load: Load) -> bytes:
    """Return the header block of a call (HPACK, RFC 7541): static entries and literals that enter no table."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()  # below 127 bytes

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(load.method),  # :path
            b"\x01" + text(load.address),  # :authority
            b"\x0f\x10" + text("application/grpc"),  # content-type
            b"\x00" + text("te") + text("trailers"),
            b"\x00" + text("grpc-timeout") + text(f"{round(1e3 * load.timeout_s)}m"),
        )
    )


if __name__ == "__main__":
    print(json.dumps(asdict(offer(Load(**json.loads(sys.argv[1]))))))
