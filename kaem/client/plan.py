"""How a client turns a request into a job: one call or many, to one server or shared out, and until when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from kaem.artifact import Manifest
from kaem.client.addresses import Target
from kaem.client.blocks import Blocks
from kaem.client.credentials import Credentials
from kaem.client.exchange import Exchange
from kaem.client.hedging import Hedging, Latencies, hedge_after_s
from kaem.client.job import Job, Rules
from kaem.client.patience import MAX_TIMEOUT_S, Patience
from kaem.client.questions import Decoding, Question, Samples
from kaem.client.reputation import Reputation
from kaem.errors import ConfigError
from kaem.protocol.messages import Model
from kaem.sampler import Uniforms

_MAX_ROWS_PER_CALL = 1 << 63  # a count of 2^64 does not fit in the request
_CHUNKS_PER_BLOCK = 4  # what one server is asked for at a time when several share a job: long enough to pay for a call
_LEAST_ROWS = 32  # fewer are not worth sharing out
_CALLS_PER_TARGET = 2  # one is answered while the next is on its way
_BLOCKS_PER_TARGET = 3  # open at a time: what a slow server may hold up, and all the memory sharing takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
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
            share=random.random,
            reputation=self._reputations.setdefault(num_targets, Reputation(num_targets)) if is_shared else None,
        )
        window = _BLOCKS_PER_TARGET * num_targets if is_shared else 1
        job = Job(Blocks(start, num, block_rows=rows, window=window), rules, now=now)
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
