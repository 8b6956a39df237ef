"""What can be watched: one method per event, called where it happens.

Methods are called in the event loop or in a thread that computes, possibly several at once: they must be quick, must
be thread-safe and must not raise.
"""

from __future__ import annotations

from collections.abc import Iterable


class Observer:
    """Takes note of nothing; a subclass overrides what it wants to know. Times are in seconds."""

    def on_call_started(self, method: str) -> None:
        """A call of `/service/Method` has come."""

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call was answered with a status, by the name of its code; its whole time."""

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        """A job was let in."""

    def on_rejected(self, reason: str) -> None:
        """A job was not: for "samples", "bytes" or "deadline"; or a call: for "streams", or a limit of its token."""

    def on_queued(self, seconds: float) -> None:
        """The first row of a job went into a batch, so long after the job was submitted."""

    def on_batch(self, *, size: int, rows: int, seconds: float) -> None:
        """A batch was computed: its bucket, the rows in it that somebody wants, and the engine's time."""

    def on_batch_failed(self, *, size: int, rows: int) -> None:
        """The engine could not compute a batch."""

    def on_device(self, *, model: str, device: str, is_up: bool) -> None:
        """A device's process of a model computes from now on, or was lost."""

    def on_first_chunk(self, seconds: float) -> None:
        """The first chunk of a job was handed to its handler, so long after the job was submitted."""

    def on_sent(self, *, model: str, version: int, rows: int, seconds: float) -> None:
        """A message of a model's samples was given to the transport, which took so long to have room for it."""

    def on_cancelled(self, stage: str) -> None:
        """A job was left by its reader before its end: "queued" (no row computed), "computing" or "sending"."""

    def on_expired(self) -> None:
        """A job's deadline passed before its rows were computed."""

    def on_loaded(self, *, model: str, version: int, seconds: float) -> None:
        """A model was loaded, warmed and compared, and is offered from now on; how long that took."""

    def on_load_failed(self, *, model: str, version: int) -> None:
        """A model could not be loaded; what was served under its name and version is so still."""


class Observers(Observer):
    """Tells several observers, in their order.

    Args:
        observers: Who is told.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def add(self, observer: Observer) -> None:
        """Tell one more, after the others."""
        self._observers = (*self._observers, observer)

    def on_call_started(self, method: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_call_started(method)

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_call_ended(method, code, seconds)

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_admitted(is_bulk=is_bulk, rows=rows)

    def on_rejected(self, reason: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_rejected(reason)

    def on_queued(self, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_queued(seconds)

    def on_batch(self, *, size: int, rows: int, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_batch(size=size, rows=rows, seconds=seconds)

    def on_batch_failed(self, *, size: int, rows: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_batch_failed(size=size, rows=rows)

    def on_device(self, *, model: str, device: str, is_up: bool) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_device(model=model, device=device, is_up=is_up)

    def on_first_chunk(self, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_first_chunk(seconds)

    def on_sent(self, *, model: str, version: int, rows: int, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_sent(model=model, version=version, rows=rows, seconds=seconds)

    def on_cancelled(self, stage: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_cancelled(stage)

    def on_expired(self) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_expired()

    def on_loaded(self, *, model: str, version: int, seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_loaded(model=model, version=version, seconds=seconds)

    def on_load_failed(self, *, model: str, version: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_load_failed(model=model, version=version)
