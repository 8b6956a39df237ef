"""The call that is being answered here and now, for those who are told of events but not of calls.

Every call runs in a task of its own, so a context variable knows which it is, in every function below its handler.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import grpc

from kaem.errors import RemoteError
from serve.calls.tokens import Caller
from serve.events import Observer
from serve.statuses import RefusedError


@dataclass(slots=True, eq=False)
class Call:
    """One call.

    Attributes:
        method: `/service/Method`.
        request_id: Sent to the client with every error, and in every line of the log that concerns the call.
        metadata: What came with it.
        peer: Address it came from.
        caller: Whose token it carries; None where no tokens are asked for, and until it was checked.
        model: Name and version of the model whose scheduler it has met; None before.
        rows_admitted: Samples let in.
        rows_sent: Samples handed to the transport.
        queued_s: From being let in until the first sample went into a batch; None before.
        trace_id: Identity of its trace, in hexadecimal; "" without one.
    """

    method: str
    request_id: str
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    peer: str = ""
    caller: Caller | None = None
    model: tuple[str, int] | None = None
    rows_admitted: int = 0
    rows_sent: int = 0
    queued_s: float | None = None
    trace_id: str = ""


current: ContextVar[Call | None] = ContextVar("kaem_call", default=None)
"""The call whose handler runs in this context."""


def may_use(model: str) -> bool:
    """Whether whoever calls may use a model."""
    call = current.get()
    return call is None or call.caller is None or call.caller.may_use(model)


def check_allowed(model: str) -> None:
    """Check that whoever calls may use a model.

    Raises:
        RefusedError: PERMISSION_DENIED.
    """
    call = current.get()
    if call is not None and call.caller is not None and not call.caller.may_use(model):
        error = RemoteError(f"{call.caller.name!r} may not use model {model!r}", hint="ask whoever runs the server")
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, error, field="model")


class Tally(Observer):
    """Keeps the figures of each call."""

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        """Count the samples of a job to its call."""
        call = current.get()
        if call is not None:
            call.rows_admitted += rows

    def on_queued(self, seconds: float) -> None:
        """Note the time in its call."""
        call = current.get()
        if call is not None:
            call.queued_s = seconds

    def on_sent(self, *, model: str, version: int, rows: int, seconds: float) -> None:
        """Count the samples of a message to its call."""
        call = current.get()
        if call is not None:
            call.rows_sent += rows
