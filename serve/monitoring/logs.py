"""The log: lines for people, or JSON objects for machines, both with the request they concern."""

from __future__ import annotations

import datetime
import json
import logging

import grpc

from serve.calls.call_context import current
from serve.events import Observer

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS = "kaem_fields"  # of a record: what it says beside its message
_log = logging.getLogger(__name__)


def configure(log_format: str) -> None:
    """Write the log of this process to standard error.

    Args:
        log_format: "text" or "json".
    """
    handler = logging.StreamHandler()
    handler.setFormatter({"json": JsonLines(), "text": TextLines(_TEXT)}[log_format])
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def leave_out_departures() -> None:
    """Leave clients that left before their answer out of the log of gRPC, which tells of each with a traceback."""
    logger = logging.getLogger("grpc._cython.cygrpc")
    if _is_no_departure not in logger.filters:
        logger.addFilter(_is_no_departure)


def _is_no_departure(record: logging.LogRecord) -> bool:
    """Whether a record is about anything but an answer that could not be sent."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


class TextLines(logging.Formatter):
    """Lines for people: what a terminal would obey, or take for a new line, is written out."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name that logging calls
        """Return the line of a record; a traceback below it has lines of its own."""
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
        return "".join(shown)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what else is known, and the request of its context."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = current.get()
        if call is not None:
            entry |= {"request_id": call.request_id, "method": call.method, "peer": call.peer}
            if call.caller is not None:
                entry["caller"] = call.caller.name
            if call.trace_id:
                entry["trace_id"] = call.trace_id
        entry |= getattr(record, _FIELDS, {})
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class CallLog(Observer):
    """Writes a line for every call that ends."""

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """Write it."""
        call = current.get()
        samples = call.rows_sent if call is not None else 0
        request_id = call.request_id if call is not None else "?"
        _log.info(
            "request %s %s %s after %.4f s, %d samples",
            request_id,
            method,
            code,
            seconds,
            samples,
            extra={_FIELDS: {"code": code, "seconds": round(seconds, 6), "samples": samples}},
        )
