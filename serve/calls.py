"""What surrounds every call: whether it is let in, a request id, and who is told how it ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kaem.errors import RemoteError
from serve.current import Call, current
from serve.guard import Guard
from serve.observer import Observer
from serve.statuses import RefusedError, status_of

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)
Question = TypeVar("Question")  # what gRPC hands to a method: a request, or an iterator over many
Answer = TypeVar("Answer")

_MALFORMED = "the request is not a valid protobuf message of this method"
_log = logging.getLogger(__name__)


class Gate:
    """Lets calls in while the server is ready, and knows how many are inside."""

    def __init__(self) -> None:
        self._closed_because: str | None = "is loading its model"
        self._num_inside = 0
        self._num_entered = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def closed_because(self) -> str | None:
        """Why calls are not let in, as what the server does; None while they are."""
        return self._closed_because

    @property
    def num_inside(self) -> int:
        """Calls being answered."""
        return self._num_inside

    @property
    def num_entered(self) -> int:
        """Calls let in so far."""
        return self._num_entered

    def open(self) -> None:
        """Let calls in from now on."""
        self._closed_because = None

    def close(self, reason: str) -> None:
        """Refuse calls from now on; `reason` completes the sentence "the server ..."."""
        self._closed_because = reason

    def enter(self) -> None:
        """Count a call in.

        Raises:
            RefusedError: UNAVAILABLE, the gate is closed.
        """
        if self._closed_because is not None:
            error = RemoteError(f"the server {self._closed_because}", hint="try again in a moment")
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, error)
        self._num_inside += 1
        self._num_entered += 1
        self._is_empty.clear()

    def leave(self) -> None:
        """Count a call out."""
        self._num_inside -= 1
        if not self._num_inside:
            self._is_empty.set()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nobody is inside; False if that took longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True


class Malformed:
    """Stands for a request whose bytes are not the message they should be."""


def tolerant(cls: type[Request]) -> Callable[[bytes], Request | Malformed]:
    """Return a deserialiser that never raises: left alone, gRPC would answer with Python's exception text."""

    def read(content: bytes) -> Request | Malformed:
        try:
            return cls.FromString(content)
        except DecodeError:
            return Malformed()

    return read


def well_formed(request: Request | Malformed) -> Request:
    """Return the request.

    Raises:
        RefusedError: INTERNAL, its bytes were not the message they should be.
    """
    if isinstance(request, Malformed):
        raise RefusedError(grpc.StatusCode.INTERNAL, RemoteError(_MALFORMED))
    return request


class Reception:
    """Lets calls in and sees them off; every method of the server is wrapped by one of its three functions.

    Args:
        gate: Lets calls in while the server is ready.
        observer: Told of every call.
        guard: Lets calls in by their tokens.
    """

    def __init__(self, gate: Gate, observer: Observer, guard: Guard) -> None:
        self._gate = gate
        self._guard = guard
        self._observer = observer

    def admitted(
        self, method: str, handler: Callable[[Request, Context], Awaitable[Answer]]
    ) -> Callable[[Request | Malformed, Context], Awaitable[Answer | None]]:
        """Return `answered(handler)` for well-formed requests that are let in by the gate, then by the guard.

        In this order: a server that drains answers everybody the same, and one whose token is out of samples goes
        elsewhere instead of waiting here.
        """

        async def call(request: Request | Malformed, context: Context) -> Answer:
            self._gate.enter()
            try:
                with self._guard.visit(_current()):
                    return await handler(well_formed(request), context)
            finally:
                self._gate.leave()

        return self.answered(method, call)

    def identified(
        self, method: str, handler: Callable[[Question, Context], Awaitable[Answer]]
    ) -> Callable[[Question, Context], Awaitable[Answer | None]]:
        """Return `answered(handler)` for calls that are let in by the guard."""

        async def call(question: Question, context: Context) -> Answer:
            with self._guard.visit(_current()):
                return await handler(question, context)

        return self.answered(method, call)

    def answered(
        self, method: str, handler: Callable[[Question, Context], Awaitable[Answer]]
    ) -> Callable[[Question, Context], Awaitable[Answer | None]]:
        """Return a handler that runs `handler` and turns whatever it raises into a status.

        Args:
            method: Full name, `/service/Method`.
            handler: Answers the call or raises, see `serve.statuses`.
        """

        async def call(question: Question, context: Context) -> Answer | None:
            request_id = secrets.token_hex(8)
            began, code = time.monotonic(), grpc.StatusCode.OK
            entry = current.set(_call(method, request_id, context))
            self._observer.on_call_started(method)
            try:
                return await handler(question, context)
            except asyncio.CancelledError:
                code = _why_cancelled(context)
                raise
            except grpc.aio.InternalError:  # a write failed: the client is gone, often before gRPC says so
                code = grpc.StatusCode.CANCELLED
                _log.info("request %s was left by its client", request_id)
                return None
            except Exception as error:
                status = status_of(error, request_id)
                code = status.code
                await context.abort(status.code, status.details, status.metadata)
            finally:
                self._observer.on_call_ended(method, code.name, time.monotonic() - began)
                current.reset(entry)

        return call


def _call(method: str, request_id: str, context: Context) -> Call:
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    return Call(method, request_id, metadata, context.peer())


def _current() -> Call:
    call = current.get()
    if call is None:
        raise RuntimeError("there is no call")
    return call


def _why_cancelled(context: Context) -> grpc.StatusCode:
    """Return the status of a call that gRPC itself has ended."""
    left_s = context.time_remaining()
    is_late = left_s is not None and left_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
