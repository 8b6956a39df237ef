"""How a client turns a request into a job: one call or many, to one server or shared out, and until when.

One job with its open calls: the part of doing it that threads and asyncio have in common.

Whoever reads a call reports `Chunk` messages, then `None` at its good end or the `Failure` that ended it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

from kaem.artifact import Manifest
from kaem.client.addresses import Target
from kaem.client.connection import Credentials
from kaem.client.failure import Failure, failure_from_status
from kaem.client.job import ClientJob, Rules, Start, Stop
from kaem.client.requests import Blocks, Decoding, Question, Request, Samples
from kaem.client.retry import MAX_TIMEOUT_S, Hedging, Latencies, Patience, Reputation, hedge_after_s
from kaem.errors import ConfigError, RemoteError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import Model
from kaem.protocol.status import PARTIAL_KEY
from kaem.sampler import Images, Uniforms

_MAX_ROWS_PER_CALL = 1 << 63  # a count of 2^64 does not fit in the request
_CHUNKS_PER_BLOCK = 4  # what one server is asked for at a time when several share a job: long enough to pay for a call
_LEAST_ROWS = 32  # fewer are not worth sharing out
_CALLS_PER_TARGET = 2  # one is answered while the next is on its way
_BLOCKS_PER_TARGET = 3  # open at a time: what a slow server may hold up, and all the memory sharing takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """What a client knows about its servers, and how it deals with them.

    Attributes:
        targets: The servers.
        models: What each said it samples from; all with one numerics id.
        credentials: What we show them.
        patience: With failing and silent ones.
        hedging: When to ask a second one; None for never.
    """

    targets: tuple[Target, ...]
    models: tuple[Model, ...]
    credentials: Credentials
    patience: Patience
    hedging: Hedging | None
    _latencies: dict[str, Latencies] = field(default_factory=dict)
    _turns: count[int] = field(default_factory=count)
    _reputations: dict[int, Reputation] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """What the servers' artifact says about itself."""
        return self.models[0].manifest

    @property
    def numerics_id(self) -> str:
        """Digest that the servers have in common: equal ids give equal bits."""
        return self.models[0].numerics_id

    @property
    def max_sample_rows(self) -> int:
        """Samples that every server answers in one message."""
        return min(model.limits.max_sample_rows for model in self.models)

    def samples(self, num: int, seed: int, start: int, *, timeout_s: float | None, now: float) -> Exchange:
        """Return the job of samples that are wanted as an array."""
        if num > self.max_sample_rows or (num > _LEAST_ROWS and len(self.targets) > 1):
            return self.stream(num, seed, start, timeout_s=timeout_s, now=now)
        question = Samples(seed, is_stream=False)
        return self._exchange(question, start, num, num, timeout_s, now)

    def stream(self, num: int, seed: int, start: int, *, timeout_s: float | None, now: float) -> Exchange:
        """Return the job of samples that are wanted one chunk after the other."""
        question = Samples(seed, is_stream=True)
        chunk_bytes = min(model.limits.max_chunk_bytes for model in self.models)
        rows = block_rows(num, len(self.targets), max(1, chunk_bytes // self.manifest.image_bytes))
        return self._exchange(question, start, num, rows, timeout_s, now)

    def decoding(self, uniform: Uniforms, *, timeout_s: float | None, now: float) -> Exchange:
        """Return the job of images of uniforms, shape (N, D)."""
        most = min(model.limits.max_decode_rows for model in self.models)
        question = Decoding(uniform)
        rows = min(most, block_rows(len(uniform), len(self.targets), most))
        return self._exchange(question, 0, len(uniform), rows, timeout_s, now)

    def _exchange(
        self, question: Question, start: int, num: int, rows: int, timeout_s: float | None, now: float
    ) -> Exchange:
        num_targets = len(self.targets)
        latencies = self._latencies.setdefault(question.method, Latencies())
        is_shared = num_targets > 1
        rules = Rules(
            targets=self.targets,
            first_target=next(self._turns) % num_targets,
            calls_per_target=_CALLS_PER_TARGET if is_shared else 1,
            is_stream=question.is_stream,
            patience=self.patience,
            timeout_s=check_timeout(timeout_s) or self.patience.job_timeout_s(num),
            hedge_after_s=lambda: hedge_after_s(self.hedging, latencies),
            on_latency=latencies.record,
            share=random.random,  # noqa: S311  # jitter
            reputation=self._reputations.setdefault(num_targets, Reputation(num_targets)) if is_shared else None,
        )
        window = _BLOCKS_PER_TARGET * num_targets if is_shared else 1
        job = ClientJob(Blocks(start, num, block_rows=rows, window=window), rules, now=now)
        is_partial = question.is_stream and timeout_s is None
        return Exchange(job, question, self.models, self.credentials, is_partial=is_partial)


def block_rows(num: int, num_targets: int, chunk_rows: int) -> int:
    """Return how many rows one server is asked for at a time.

    Alone it is asked for all of them. Of several each gets a few chunks, or less where that would leave some idle:
    samples may be slow to make even if they are small.
    """
    if num_targets == 1:
        return min(num, _MAX_ROWS_PER_CALL)
    fair = -(-num // (_CALLS_PER_TARGET * num_targets))
    return max(1, min(_CHUNKS_PER_BLOCK * chunk_rows, max(fair, _LEAST_ROWS)))


def check_timeout(timeout_s: float | None) -> float | None:
    """Return a deadline that gRPC can carry.

    Raises:
        ConfigError: It is not above 0.
    """
    if timeout_s is None:
        return None
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s}; give more than 0 seconds")
    return min(timeout_s, MAX_TIMEOUT_S)


def agreed(targets: Sequence[Target], models: Sequence[Model | None]) -> tuple[Model, ...]:
    """Return one model for each server, if those that answered sample from the same one.

    Args:
        targets: The servers.
        models: What each said, None where it has not answered yet: it is taken to be like the first that did, and
            every call to it demands the same numerics id.

    Raises:
        ConfigError: Two numerics ids differ, so their images would not belong together.
    """
    known = [(target, model) for target, model in zip(targets, models, strict=True) if model is not None]
    first, reference = known[0]
    for target, model in known[1:]:
        if model.numerics_id != reference.numerics_id:
            raise ConfigError(
                f"{first.address} and {target.address} do not compute the same bits: their numerics ids are "
                f"{reference.numerics_id} and {model.numerics_id}",
                hint="serve the same file with the same provider, version and kind of processor, or use one of them",
            )
    return tuple(model or reference for model in models)


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
        self, job: ClientJob, question: Question, models: Sequence[Model], credentials: Credentials, *, is_partial: bool
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
