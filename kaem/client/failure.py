"""What a failed call means: which error it stands for, whether it may pass, and when to ask again.

Codes are handled by name and trailers as pairs, so that this file does no I/O and needs no gRPC:

    UNAVAILABLE, CANCELLED by someone else   may pass
    INTERNAL, UNKNOWN without `kaem-error`   may pass: no kaem server said so, but a proxy that lost one
    DEADLINE_EXCEEDED                        may pass where the call has made progress
    RESOURCE_EXHAUSTED                       may pass if the server sent RetryInfo: otherwise the request is too large
    anything else                            will not pass at this server; INVALID_ARGUMENT and OUT_OF_RANGE at none

`grpc-retry-pushback-ms` says when to ask again, and that it is of no use where it is not a whole number of at least
0; without it the delay of RetryInfo is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from kaem.client.addresses import Target
from kaem.errors import KaemError, RemoteError
from kaem.protocol.status import ERROR_KEY, error_from_status

PUSHBACK_KEY = "grpc-retry-pushback-ms"
DETAILS_KEY = "grpc-status-details-bin"

_LATER = ("UNAVAILABLE", "CANCELLED")
_BETWEEN = ("INTERNAL", "UNKNOWN")  # what proxies make of a connection to a server that broke
_NOWHERE = ("INVALID_ARGUMENT", "OUT_OF_RANGE")

# What gRPC says when a handshake fails, what it means, what to do; the first that fits.
_HANDSHAKES = (
    ("WRONG_VERSION_NUMBER", "does not speak TLS", "write grpc:// if it is meant to be unencrypted"),
    ("certificate has expired", "has a certificate that has expired", "renew it there"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "has a certificate that none of our authorities vouches for",
        "name the right CA file (--ca-file or KAEM_CA_FILE)",
    ),
    (
        "Hostname Verification Check failed",
        "has a certificate for another name",
        "connect to the name in it, or give that as the server name (--server-name or KAEM_SERVER_NAME)",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a call did not do what it should.

    Attributes:
        error: What to raise if nothing else helps.
        may_pass: Whether the same server is worth asking again.
        wait_s: How long the server asked to be left alone first; None if it did not say.
        is_unreachable: Whether no kaem server has spoken: nothing listens, or something else does.
        is_deadline: Whether only time ran out.
        is_everywhere: Whether every other server would say the same.
        is_wrong: Whether there was an answer, but not to what was asked.
    """

    error: KaemError
    may_pass: bool = False
    wait_s: float | None = None
    is_unreachable: bool = False
    is_deadline: bool = False
    is_everywhere: bool = False
    is_wrong: bool = False


def failure_from_status(
    code: str, details: str, trailers: Iterable[tuple[str, str | bytes]], *, target: Target
) -> Failure:
    """Read a status other than OK.

    Args:
        code: Name of the gRPC status code.
        details: Its text.
        trailers: Trailing metadata.
        target: Who answered, or should have.
    """
    entries = dict(trailers)
    error = error_from_status(code, details, entries.items(), source=target.address)
    handshake = _handshake(details, target) if code == "UNAVAILABLE" else None
    if handshake is not None:
        return Failure(error=handshake)
    delay = _retry_delay_s(entries.get(DETAILS_KEY))
    may_pass = (
        code in _LATER
        or (code in _BETWEEN and ERROR_KEY not in entries)
        or (code == "RESOURCE_EXHAUSTED" and delay is not None)
    )
    pushback = entries.get(PUSHBACK_KEY)
    if pushback is not None:
        delay = _milliseconds(pushback)
        may_pass = may_pass and delay is not None
    return Failure(
        error=error,
        may_pass=may_pass,
        wait_s=delay if may_pass else None,
        is_unreachable=code == "UNAVAILABLE" and ERROR_KEY not in entries,
        is_deadline=code == "DEADLINE_EXCEEDED",
        is_everywhere=code in _NOWHERE,
    )


def silence(target: Target) -> Failure:
    """Return the failure of a call on which nothing has come for too long."""
    return Failure(error=error_from_status("DEADLINE_EXCEEDED", "", (), source=target.address), is_deadline=True)


def _milliseconds(text: str | bytes) -> float | None:
    """Return a pushback in seconds, None if it forbids to ask again."""
    digits = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    return int(digits) / 1000 if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


def _retry_delay_s(details: str | bytes | None) -> float | None:
    """Return the delay of the RetryInfo in a serialised google.rpc.Status, None without one."""
    if not isinstance(details, bytes):
        return None
    try:
        status = status_pb2.Status.FromString(details)
        for detail in status.details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return max(0.0, float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
    except DecodeError:
        pass  # it is not what it should be, so it says nothing
    return None


def _handshake(details: str, target: Target) -> RemoteError | None:
    """Return what a connection that failed before any call means; None where time may heal it."""
    if target.is_secure:
        for words, meaning, hint in _HANDSHAKES:
            if words in details:
                return RemoteError(f"{target.address} {meaning}", hint=hint)
    return None
