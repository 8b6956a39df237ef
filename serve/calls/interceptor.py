"""What surrounds every call: whether it is let in, a request id, and who is told how it ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kaem.errors import RemoteError
from serve.calls.auth import Authenticator
from serve.calls.call_context import Call, current
from serve.calls.places import Places
from serve.events import Observer
from serve.statuses import RefusedError, refusal_of, status_of

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
        self._is_closed = asyncio.Event()
        self._is_closed.set()

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
        self._is_closed.clear()

    def close(self, reason: str) -> None:
        """Refuse calls from now on; `reason` completes the sentence "the server ..."."""
        self._closed_because = reason
        self._is_closed.set()

    def check_open(self) -> None:
        """Check that calls are let in.

        Raises:
            RefusedError: UNAVAILABLE, they are not.
        """
        if self._closed_because is not None:
            error = RemoteError(f"the server {self._closed_because}", hint="try again in a moment")
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, error)

    async def wait_closed(self) -> None:
        """Wait until calls are not let in."""
        await self._is_closed.wait()

    def enter(self) -> None:
        """Count a call in.

        Raises:
            RefusedError: UNAVAILABLE, the gate is closed.
        """
        self.check_open()
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
    """Lets calls in and sees them off; every method of the server is wrapped by one of its functions.

    Args:
        gate: Lets calls in while the server is ready.
        observer: Told of every call.
        auth: Lets calls in by their tokens.
        places: For calls that last.
    """

    def __init__(self, gate: Gate, observer: Observer, auth: Authenticator, places: Places) -> None:
        self.gate = gate
        self._places = places
        self._auth = auth
        self._observer = observer

    def admitted(
        self, method: str, handler: Callable[[Request, Context], Awaitable[Answer]]
    ) -> Callable[[Request | Malformed, Context], Awaitable[Answer | None]]:
        """Return `answered(handler)` for well-formed requests that are let in, see `_inside`."""

        async def call(request: Request | Malformed, context: Context) -> Answer:
            with self._inside(_current()):
                return await handler(well_formed(request), context)

        return self.answered(method, call)

    def identified(
        self, method: str, handler: Callable[[Question, Context], Awaitable[Answer]]
    ) -> Callable[[Question, Context], Awaitable[Answer | None]]:
        """Return `answered(handler)` for calls that are let in by the guard."""

        async def call(question: Question, context: Context) -> Answer:
            with self._auth.visit(_current()):
                return await handler(question, context)

        return self.answered(method, call)

    def lasting(
        self, handler: Callable[[Question, Context], Awaitable[Answer]]
    ) -> Callable[[Question, Context], Awaitable[Answer]]:
        """Return a handler for calls that may last for ever, each of which needs a place, see `serve.calls.places`."""

        async def call(question: Question, context: Context) -> Answer:
            with self._place(context.peer()):
                return await handler(question, context)

        return call

    def answered(
        self, method: str, handler: Callable[[Question, Context], Awaitable[Answer]]
    ) -> Callable[[Question, Context], Awaitable[Answer | None]]:
        """Return a handler that runs `handler` and turns whatever it raises into a status.

        Args:
            method: Full name, `/service/Method`.
            handler: Answers the call or raises, see `serve.statuses`.
        """

        async def call(question: Question, context: Context) -> Answer | None:
            told = call_of(method, context)
            work = partial(handler, question, context)
            return await _or_abort(self._attend(told, work, partial(why_cancelled, context)), told, context)

        return call

    def conversed(
        self, method: str, handler: Callable[[AsyncIterator[Request | Malformed], Context], Awaitable[None]]
    ) -> Callable[[AsyncIterator[Request | Malformed], Context], Awaitable[None]]:
        """Return a handler for streams whose requests are calls of their own, for each of which it uses `serve`.

        The stream as a whole needs a token, an open gate and a place, and is not counted unless it is turned away for
        want of these.
        """

        async def call(requests: AsyncIterator[Request | Malformed], context: Context) -> None:
            told = call_of(method, context)
            with ExitStack() as held:
                try:
                    self.gate.check_open()
                    self._auth.identify(told)
                    held.enter_context(self._place(told.peer))
                except RefusedError as refused:
                    await self.answered(method, partial(_raise, refused))(requests, context)
                else:
                    await _or_abort(handler(requests, context), told, context)

        return call

    async def serve(
        self, call: Call, work: Callable[[], Awaitable[Answer]], why: Callable[[], grpc.StatusCode]
    ) -> Answer:
        """Do the work of a call that is let in, see `_inside`.

        Args:
            call: Who asks for what.
            work: Answers it or raises, see `serve.statuses`.
            why: Which status the call has if it is cancelled.

        Raises:
            RefusedError: Whatever went wrong, as the client may know it.
        """

        async def let_in() -> Answer:
            with self._inside(call):
                return await work()

        return await self._attend(call, let_in, why)

    @contextmanager
    def _place(self, peer: str) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(self._places.take(peer))
            except RefusedError as refused:
                self._observer.on_rejected(refused.quota)
                raise
            yield

    @contextmanager
    def _inside(self, call: Call) -> Iterator[None]:
        """Let a call in, by the gate and then by the guard, and count it out at the end of the block.

        In this order: a server that drains answers everybody the same, and one whose token is out of samples goes
        elsewhere instead of waiting here.

        Raises:
            RefusedError: It is not let in.
        """
        self.gate.enter()
        try:
            with self._auth.visit(call):
                yield
        finally:
            self.gate.leave()

    async def _attend(
        self, call: Call, work: Callable[[], Awaitable[Answer]], why: Callable[[], grpc.StatusCode]
    ) -> Answer:
        """Do the work of a call between the two events that tell of it."""
        began, code = time.monotonic(), grpc.StatusCode.OK
        entry = current.set(call)
        self._observer.on_call_started(call.method)
        try:
            return await work()
        except asyncio.CancelledError:
            code = why()
            raise
        except grpc.aio.InternalError:  # a write failed: the client is gone, often before gRPC says so
            code = grpc.StatusCode.CANCELLED
            _log.info("request %s was left by its client", call.request_id)
            raise
        except Exception as error:
            refused = refusal_of(error, call.request_id)
            code = refused.code
            if code is grpc.StatusCode.UNAUTHENTICATED:
                await self._auth.hold_back(call)
            raise refused from None
        finally:
            self._observer.on_call_ended(call.method, code.name, time.monotonic() - began)
            current.reset(entry)


def call_of(method: str, context: Context) -> Call:
    """Return the call that a context of gRPC stands for, with a request id of its own."""
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    return Call(method, secrets.token_hex(8), metadata, context.peer())


def why_cancelled(context: Context) -> grpc.StatusCode:
    """Return the status of a call that gRPC itself has ended."""
    left_s = context.time_remaining()
    is_late = left_s is not None and left_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


async def _or_abort(answer: Awaitable[Answer], call: Call, context: Context) -> Answer | None:
    """Return the answer, or end the call with a status; nothing is answered to a client that is gone."""
    try:
        return await answer
    except grpc.aio.InternalError:
        return None
    except Exception as error:
        status = status_of(error, call.request_id)
        await context.abort(status.code, status.details, status.metadata)


async def _raise(error: Exception, _question: object, _context: Context) -> None:
    raise error


def _current() -> Call:
    call = current.get()
    if call is None:
        raise RuntimeError("there is no call")
    return call
