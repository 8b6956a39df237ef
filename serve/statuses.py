"""What a call is answered with when it fails: the one place where exceptions become gRPC statuses.

Trailing metadata carries the class and hint of our own errors (`kaem.protocol.status`), the request's id, and for
those who know only the conventions `grpc-status-details-bin`, a google.rpc.Status. A client may try again exactly if
RetryInfo is in it; `grpc-retry-pushback-ms` says the same to clients with a retry policy, negative for "do not".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, QuotaFailure, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status as RichStatus

from kaem.errors import KaemError, RemoteError, RequestError
from kaem.protocol.status import REQUEST_KEY, Metadata, details_from_error, metadata_from_error

PUSHBACK_KEY = "grpc-retry-pushback-ms"
_DETAILS_KEY = "grpc-status-details-bin"

_UNAVAILABLE_RETRY_S = 0.5
_LONGEST_RETRY_S = float(2**31 // 1000)  # 24 days: milliseconds travel in 32 bits, and a Duration has an end too
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A KaemError that is answered with another status than its class usually has.

    Args:
        code: The status.
        error: What the client is to raise.
        retry_after_s: When the client may try again; None where that would not help.
        quota: What there was not enough of, if it was that.
        field: Field of the request that is to blame, if one is.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        error: KaemError,
        *,
        retry_after_s: float | None = None,
        quota: str = "",
        field: str = "",
    ) -> None:
        super().__init__(error.message)
        self.code = code
        self.error = error
        self.retry_after_s = None if retry_after_s is None else min(retry_after_s, _LONGEST_RETRY_S)
        self.quota = quota
        self.field = field


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends: code, details and trailing metadata."""

    code: grpc.StatusCode
    details: str
    metadata: Metadata


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Say of an error in a request, unless it says so itself, which field is to blame.

    Args:
        field: Its path in the request, `inputs[0].shape`, or the key of metadata.
    """
    try:
        yield
    except RequestError as error:
        raise RefusedError(grpc.StatusCode[error.grpc_status], error, field=field) from None


def refusal_of(raised: Exception, request_id: str) -> RefusedError:
    """Return what a client is told of whatever a handler raised.

    KaemErrors travel with their class and hint. Anything else is a bug of ours: the client gets a fixed text and the
    request's id, the log gets the traceback under the same id.
    """
    if isinstance(raised, RefusedError):
        if raised.code is grpc.StatusCode.UNAVAILABLE and raised.retry_after_s is None:
            raised.retry_after_s = _UNAVAILABLE_RETRY_S
        return raised
    if isinstance(raised, KaemError):
        return refusal_of(RefusedError(grpc.StatusCode[raised.grpc_status], raised), request_id)
    _log.error("request %s failed", request_id, exc_info=raised)
    bug = RemoteError(f"internal error, request {request_id}", hint="the server's log says more")
    return RefusedError(grpc.StatusCode.INTERNAL, bug)


def status_of(raised: Exception, request_id: str) -> Status:
    """Return the status for whatever a handler raised, see `refusal_of`."""
    refused = refusal_of(raised, request_id)
    code, error, retry_s = refused.code, refused.error, refused.retry_after_s
    details = details_from_error(error)
    metadata: Metadata = (*metadata_from_error(error), (REQUEST_KEY, request_id))
    rich = RichStatus(code=code.value[0], message=details)
    _add(rich, RequestInfo(request_id=request_id))
    if refused.quota:
        _add(rich, QuotaFailure(violations=[QuotaFailure.Violation(subject=refused.quota, description=details)]))
    if refused.field:
        violation = BadRequest.FieldViolation(field=refused.field, description=details)
        _add(rich, BadRequest(field_violations=[violation]))
    if retry_s is not None:
        pushback_ms = max(1, round(1e3 * retry_s))
        delay = Duration()
        delay.FromMilliseconds(pushback_ms)
        _add(rich, RetryInfo(retry_delay=delay))
        metadata += ((PUSHBACK_KEY, str(pushback_ms)),)
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        metadata += ((PUSHBACK_KEY, "-1"),)
    return Status(code, details, (*metadata, (_DETAILS_KEY, rich.SerializeToString())))


def _add(rich: RichStatus, detail: Message) -> None:
    # `Pack` does the same in three times the time, and a busy server refuses hundreds of calls a second.
    rich.details.add(type_url=f"type.googleapis.com/{detail.DESCRIPTOR.full_name}", value=detail.SerializeToString())
