"""One job with its open calls: the part of doing it that threads and asyncio have in common.

Whoever reads a call reports `Chunk` messages, then `None` at its good end or the `Failure` that ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from kaem.client.addresses import Target
from kaem.client.credentials import Credentials
from kaem.client.failure import Failure, failure_from_status
from kaem.client.job import Job, Start, Stop
from kaem.client.questions import Question, Request
from kaem.errors import RemoteError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import Model
from kaem.protocol.status import PARTIAL_KEY
from kaem.sampler import Images

READ_AHEAD = 2
"""Messages of one call that may wait to be handled: enough to hide the hand-over, and bounded."""

Event = kaem_pb2.Chunk | Failure | None
"""What becomes of a call: a message, the failure that ended it, or None for its good end."""


class Reading(Protocol):
    """An open call and what reads it."""

    @property
    def target(self) -> int:
        """Which server was asked."""
        ...

    def make_room(self) -> None:
        """Let one more message in."""
        ...

    def cancel(self) -> None:
        """End the call; whatever it still reports is for nobody."""
        ...


class Mailbox(Protocol):
    """Where the readings of a job report to."""

    def qsize(self) -> int:
        """Return how many reports wait."""
        ...

    def get_nowait(self) -> tuple[int, Event]:
        """Return the first: the number of the call, and what became of it."""
        ...


class Asking(NamedTuple):
    """What to call, with what."""

    target: int
    method: str
    request: Request
    timeout_s: float
    metadata: tuple[tuple[str, str], ...]


class Exchange:
    """A job, what it asks for, and the calls that are open for it.

    Args:
        job: Decides.
        question: What the job's rows are.
        models: Models of each server.
        credentials: What we show to servers.
        is_partial: Whether a stream that its deadline cuts off was of use: we then go on where it ended.
    """

    def __init__(
        self, job: Job, question: Question, models: Sequence[Model], credentials: Credentials, *, is_partial: bool
    ) -> None:
        self.job = job
        self.is_stream = question.is_stream
        self.readings: dict[int, Reading] = {}
        self._question = question
        self._models = models
        self._credentials = credentials
        self._metadata = ((PARTIAL_KEY, "true"),) if is_partial else ()

    def turn(self, mail: Mailbox, now: float) -> tuple[list[Start], tuple[int, Images] | None]:
        """Return the calls to start now and the next rows for the caller, if they are here.

        What has come counts before the clock does; but nothing is taken in while there is something to hand out,
        or a caller who is slower than the servers would fill our memory.

        Raises:
            KaemError: The job has failed.
        """
        piece = self.job.take()
        if piece is not None:
            return [], piece
        for _ in range(mail.qsize()):
            self.handle(*mail.get_nowait(), now)
        return self.step(now), self.job.take()

    def step(self, now: float) -> list[Start]:
        """Cancel the calls that are of no use any more, and return those that are to be started.

        Raises:
            KaemError: The job has failed.
        """
        actions = self.job.step(now)
        self._stop([action for action in actions if isinstance(action, Stop)])
        return [action for action in actions if isinstance(action, Start)]

    def asking(self, start: Start) -> Asking:
        """Return the call that a start stands for.

        Raises:
            ConfigError: The token cannot be read any more.
        """
        request = self._question.request(start.first, start.rows, self._models[start.target])
        metadata = self._credentials.metadata() + self._metadata
        return Asking(start.target, self._question.method, request, start.timeout_s, metadata)

    def handle(self, number: int, event: Event, now: float) -> None:
        """Note what became of call `number`.

        Raises:
            KaemError: The job has failed.
        """
        reading, wanted = self.readings.get(number), self.job.wanted(number)
        if reading is None or wanted is None:
            return  # it was cancelled meanwhile
        if isinstance(event, kaem_pb2.Chunk):
            images = self._read(event, wanted, reading)
            if isinstance(images, Failure):
                self.readings.pop(number).cancel()
                self.job.on_failure(number, images, now)
            else:
                reading.make_room()
                self._stop(self.job.on_answer(number, images, now))
        else:
            del self.readings[number]
            if event is None:
                self.job.on_end(number, now)
            else:
                self.job.on_failure(number, event, now)

    def _read(self, chunk: kaem_pb2.Chunk, wanted: tuple[int, int], reading: Reading) -> Images | Failure:
        try:
            return self._question.read(chunk, *wanted, self._models[reading.target])
        except RemoteError as error:
            return Failure(error=error, is_wrong=True)

    def _stop(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            self.readings.pop(stop.attempt).cancel()


def failure_of(error: Any, target: Target) -> Failure:
    """Return what a call's status means; `error` is whatever gRPC has with a code, details and trailers."""
    trailers = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    return failure_from_status(error.code().name, error.details() or "", trailers, target=target)
