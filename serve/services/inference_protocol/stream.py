"""ModelStreamInfer: many requests on one stream, several at a time, each with one or more answers.

Every request is a call of its own: it has an id, is let in by gate and guard, counts in metrics and has a span. Answers
of one request come in order and the last says so; those of different requests mix. A failed request has one answer
with its reason, and the stream goes on, unless the client asked for real statuses (`triton_grpc_error: true`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

from kaem.protocol import inference_pb2
from kaem.protocol.status import details_from_error
from serve.calls.interceptor import Context, Malformed, Reception, call_of, well_formed, why_cancelled
from serve.statuses import RefusedError

_MOST_RUNNING = 64  # requests of one stream; further ones are not read, so their sender has to wait
_STATUS_KEY = "triton_grpc_error"
_MOST_ECHOED = 1024  # characters of a request in the answer that refuses it
_FINAL = "triton_final_response"

Request = inference_pb2.ModelInferRequest
Incoming = Request | Malformed
Response = inference_pb2.ModelStreamInferResponse
Send = Callable[[inference_pb2.ModelInferResponse, bool], Awaitable[None]]
"""Sends an answer; True for the last one of its request."""
Infer = Callable[[Request, Context, Send], Awaitable[None]]
"""Answers one request, or raises."""


class Conversations:
    """Holds streams of requests.

    Args:
        method: Full name, `/service/Method`.
        infer: Answers one request.
        reception: Surrounds each of them.
    """

    def __init__(self, method: str, infer: Infer, reception: Reception) -> None:
        self._method = method
        self._infer = infer
        self._reception = reception

    async def hold(self, requests: AsyncIterator[Incoming], context: Context) -> None:
        """Answer the requests of a stream until there are no more, or the server shuts down.

        Raises:
            RefusedError: INTERNAL, a request was no message; UNAVAILABLE, the server shuts down; whatever a request
                failed with, where the client asked for that.
        """
        asks_for_status = (_STATUS_KEY, "true") in {(key, value) for key, value in context.invocation_metadata() or ()}
        places, writing = asyncio.Semaphore(_MOST_RUNNING), asyncio.Lock()

        async def answer(request: Incoming) -> None:
            try:
                await self._answer(request, context, writing)
            except RefusedError as refused:
                if asks_for_status or isinstance(request, Malformed):
                    raise
                await _send_failure(request, refused, context, writing)
            finally:
                places.release()

        try:
            async with asyncio.TaskGroup() as running, aclosing(self._while_open(requests)) as opened:
                async for request in opened:
                    await places.acquire()
                    running.create_task(answer(request))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the first has cancelled the others
        self._reception.gate.check_open()

    async def _answer(self, request: Incoming, context: Context, writing: asyncio.Lock) -> None:
        async def send(answer: inference_pb2.ModelInferResponse, is_last: bool) -> None:
            answer.parameters[_FINAL].bool_param = is_last
            async with writing:
                await context.write(Response(infer_response=answer))

        async def work() -> None:
            await self._infer(well_formed(request), context, send)

        await self._reception.serve(call_of(self._method, context), work, partial(why_cancelled, context))

    async def _while_open(self, requests: AsyncIterator[Incoming]) -> AsyncGenerator[Incoming, None]:
        """Yield requests until there are no more, or no more are let in."""
        closed = asyncio.create_task(self._reception.gate.wait_closed())
        try:
            while True:
                reading = asyncio.ensure_future(anext(requests, None))
                try:
                    await asyncio.wait((reading, closed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not reading.done():
                        reading.cancel()
                if reading.cancelled() or not reading.done() or (request := reading.result()) is None:
                    return
                yield request
        finally:
            closed.cancel()


async def _send_failure(request: Request, refused: RefusedError, context: Context, writing: asyncio.Lock) -> None:
    told = inference_pb2.ModelInferResponse(model_name=request.model_name[:_MOST_ECHOED], id=request.id[:_MOST_ECHOED])
    told.parameters[_FINAL].bool_param = True
    async with writing:
        message = f"[{refused.code.name}] {details_from_error(refused.error)}"
        await context.write(Response(error_message=message, infer_response=told))
