"""What surrounds every call: admission, a request id, and the one place where errors become statuses."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kaem.errors import KaemError, RemoteError
from kaem.protocol.status import REQUEST_KEY, details_from_error, metadata_from_error

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)
Question = TypeVar("Question")  # what gRPC hands to a method: a request, or an iterator over many
Answer = TypeVar("Answer")

_PUSHBACK_MS = "500"
_MALFORMED = "the request is not a valid protobuf message of this method"
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A KaemError that is answered with another status than its class usually has.

    Args:
        code: The status.
        error: What the client is to raise.
    """

    def __init__(self, code: grpc.StatusCode, error: KaemError) -> None:
        super().__init__(error.message)
        self.code = code
        self.error = error


class Gate:
    """Lets calls in while the server is ready, and knows how many are inside."""

    def __init__(self) -> None:
        self._closed_because: str | None = "is loading its model"
        self._num_inside = 0
        self._num_entered = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

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


def admitted(
    handler: Callable[[Request, Context], Awaitable[Answer]], gate: Gate
) -> Callable[[Request | Malformed, Context], Awaitable[Answer | None]]:
    """Return `answered(handler)` for well-formed requests that are let in by `gate`."""

    async def call(request: Request | Malformed, context: Context) -> Answer:
        gate.enter()
        try:
            return await handler(well_formed(request), context)
        finally:
            gate.leave()

    return answered(call)


def answered(
    handler: Callable[[Question, Context], Awaitable[Answer]],
) -> Callable[[Question, Context], Awaitable[Answer | None]]:
    """Return a handler that runs `handler` and turns whatever it raises into a status.

    KaemErrors travel to the client with their class and hint. Anything else is a bug of ours: the client gets
    a fixed text and a request id, the log gets the traceback under the same id.
    """

    async def call(question: Question, context: Context) -> Answer | None:
        request_id = secrets.token_hex(8)
        try:
            return await handler(question, context)
        except RefusedError as refused:
            await _abort(context, refused.code, refused.error, request_id)
        except KaemError as error:
            await _abort(context, grpc.StatusCode[error.grpc_status], error, request_id)
        except grpc.aio.InternalError:  # a write failed: the client is gone, often before gRPC says so
            _log.info("request %s was left by its client", request_id)
            return None
        except Exception:
            _log.exception("request %s failed", request_id)
            bug = RemoteError(f"internal error, request {request_id}", hint="the server's log says more")
            await _abort(context, grpc.StatusCode.INTERNAL, bug, request_id)

    return call


async def _abort(context: Context, code: grpc.StatusCode, error: KaemError, request_id: str) -> NoReturn:
    metadata = (*metadata_from_error(error), (REQUEST_KEY, request_id))
    if code is grpc.StatusCode.UNAVAILABLE:
        metadata += (("grpc-retry-pushback-ms", _PUSHBACK_MS),)
    await context.abort(code, details_from_error(error), metadata)
