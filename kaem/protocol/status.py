"""Our errors to gRPC statuses and back: the class and the hint of an error survive the trip.

The message travels as the status' details; trailing metadata `kaem-error` carries the class' name and
`kaem-hint-bin` the hint. Codes are handled by name, so that this file needs no grpc.
"""

from __future__ import annotations

from collections.abc import Iterable

from kaem import errors
from kaem.errors import KaemError, RemoteError, RequestError

ERROR_KEY = "kaem-error"
HINT_KEY = "kaem-hint-bin"
REQUEST_KEY = "kaem-request-id"
PRIORITY_KEY = "kaem-priority"
"""Of a request: "interactive" or "bulk"; without it the number of samples decides."""
PARTIAL_KEY = "kaem-partial"
"""Of a stream: "true" if what comes before the deadline is of use even where that is not all."""

Metadata = tuple[tuple[str, str | bytes], ...]

# Bytes of message or hint. From 8 KiB of metadata on a client may refuse the whole answer, and gRPC writes every byte
# of a message that is not ASCII as three.
_MAX_BYTES = 1000
_CLASSES: dict[str, type[KaemError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, KaemError)
}
_CAUSES = {
    "UNAVAILABLE": ("cannot be reached or is restarting", "check that `kaem serve` runs there"),
    "DEADLINE_EXCEEDED": ("did not answer in time", "try again, or check the server's load"),
    "CANCELLED": ("broke off", "try again"),
    # Our servers say this with their own words; without them it was somebody else.
    "INTERNAL": ("failed with INTERNAL", "is there a proxy between? look at its log, and at the servers behind it"),
    "UNKNOWN": ("failed with UNKNOWN", "is there a proxy between? look at its log, and at the servers behind it"),
    "UNAUTHENTICATED": ("did not accept the token", "give a valid one: --token-file, KAEM_TOKEN_FILE or KAEM_TOKEN"),
    "PERMISSION_DENIED": ("does not allow this with the token", "ask the server's operator"),
    "UNIMPLEMENTED": ("does not offer this call", "is it a kaem server, and as new as this client?"),
}


def details_from_error(error: KaemError) -> str:
    """Return the status details for an error: its message, cut to a length that fits every client."""
    return _cut(error.message)


def metadata_from_error(error: KaemError) -> Metadata:
    """Return the trailing metadata that lets the client raise the same class with the same hint."""
    known = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _CLASSES)
    return (
        (ERROR_KEY, known),
        (HINT_KEY, _cut(error.hint).encode()),
    )


def error_from_status(
    code: str, details: str, metadata: Iterable[tuple[str, str | bytes]], *, source: str
) -> KaemError:
    """Return the error a failed call stands for.

    Args:
        code: Name of the gRPC status code.
        details: Details of the status.
        metadata: Trailing metadata.
        source: The server's address, for messages.

    Returns:
        The server's own error where it sent one; otherwise a RequestError for a code that blames the request
        and a RemoteError for any other.
    """
    entries = dict(metadata)
    cls = _CLASSES.get(_text(entries.get(ERROR_KEY, "")))
    if cls is not None:
        return cls(details, hint=_text(entries.get(HINT_KEY, b"")))
    if code in ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"):
        return RequestError(f"{source} refused the request: {details}")
    cause, hint = _CAUSES.get(code, (f"failed with {code}", ""))
    return RemoteError(f"{source} {cause}: {details}" if details else f"{source} {cause}", hint=hint)


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_MAX_BYTES].decode(errors="ignore")


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
