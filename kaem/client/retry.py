"""How long a client puts up with a server, and how long it waits before it asks again.

Hedging: when an answer is late, ask a second server for the same and take whichever comes first.

How one server stands with one job: free to be asked, to be left alone for a while, or given up.

What jobs have learned of the servers of one client: who kept silent is left alone for a while by those that follow.

A server that hangs accepts calls and never answers. Each job would find that out by itself, after the longest silence
that it puts up with, every time its turn to be asked first comes. So a silence is remembered, and the server is avoided
for a while: for five seconds, or for as long as the silence was if a job had less time, and twice as long after each
further silence. Then it is tried by one call at a time, which waits a few seconds only; its first answer clears it.

Nobody is avoided where nobody else is left to ask.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields

from kaem.client.failure import Failure
from kaem.errors import ConfigError, KaemError

MAX_TIMEOUT_S = 10.0 * 365 * 24 * 3600
"""Longer deadlines do not fit in gRPC's header; nobody waits for them either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client puts up with servers.

    Attributes:
        call_timeout_s: Longest silence: without a single image for so long, a call is given up.
        row_timeout_s: With it, the deadline of a whole job that has none of its own: `call_timeout_s` and so much
            more for every sample. Only the time that the caller spends waiting counts.
        attempts: Failures of one server in a row, without progress between them, before it is given up.
        first_delay_s: Longest wait before the second attempt; each further one may be twice as long.
        max_delay_s: Longest wait of all, but a server may ask for more.
    """

    call_timeout_s: float = 60.0
    row_timeout_s: float = 1.0
    attempts: int = 12
    first_delay_s: float = 0.1
    max_delay_s: float = 4.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} is {value}; give more than 0")

    def backoff_s(self, failures: int, share: float) -> float:
        """Return the wait after `failures` failures in a row: exponential, with full jitter.

        Args:
            failures: At least 1.
            share: Uniform in [0, 1): the jitter, so that clients do not return in step.
        """
        doublings = min(failures - 1, 64)
        return share * min(self.max_delay_s, self.first_delay_s * 2.0**doublings)

    def job_timeout_s(self, num: int) -> float:
        """Return the deadline of a job of `num` samples that was given none."""
        return min(MAX_TIMEOUT_S, self.call_timeout_s + self.row_timeout_s * num)


_WINDOW = 256
_LEAST = 20  # answers before a percentile of them means anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """When to ask a second server; there must be one with the same numerics id.

    Attributes:
        after_s: How long an answer may take before another server is asked too; None to measure it instead.
        percentile: Where nothing is set: the percentile of recent answers' times that is taken for it. At 95, one
            call in twenty is made twice.
    """

    after_s: float | None = None
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if self.after_s is not None and not 0 <= self.after_s < math.inf:
            raise ConfigError(f"after_s is {self.after_s}; give at least 0 seconds")
        if not 0 < self.percentile < 100:
            raise ConfigError(f"percentile is {self.percentile}; choose one between 0 and 100")


class Latencies:
    """How long the last answers took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_WINDOW)

    def record(self, seconds: float) -> None:
        """Note how long an answer took, or how long it was waited for in vain."""
        self._seconds.append(seconds)

    def percentile(self, percent: float) -> float | None:
        """Return the nearest-rank percentile in seconds, None while there are too few answers to tell."""
        ordered = sorted(self._seconds)
        if len(ordered) < _LEAST:
            return None
        return ordered[math.ceil(percent / 100 * len(ordered)) - 1]


def hedge_after_s(hedging: Hedging | None, latencies: Latencies) -> float | None:
    """Return how late an answer must be for a second server to be asked; None for never."""
    if hedging is None:
        return None
    return hedging.after_s if hedging.after_s is not None else latencies.percentile(hedging.percentile)


@dataclass(slots=True)
class Standing:
    """What has become of one server so far.

    Attributes:
        failures: In a row, without progress between them.
        asked_wait_s: Seconds that the server itself asked us to wait, likewise in a row.
        stalls: How often it ran out of time in the middle of an answer; others are asked first from then on.
        not_before: When it may be asked again.
        error: Why it is given up; None while it is not.
    """

    failures: int = 0
    asked_wait_s: float = 0.0
    stalls: int = 0
    not_before: float = 0.0
    error: KaemError | None = None

    def progress(self) -> None:
        """Note that an answer came: what was before is forgiven."""
        self.failures = 0
        self.asked_wait_s = 0.0

    def fail(self, failure: Failure, *, now: float, patience: Patience, share: float, has_progressed: bool) -> None:
        """Note a failure and decide: ask again, when, or never.

        A server that says itself when to return is busy, not broken: such answers are not counted, but all the
        time it asks for together is bounded by the longest silence a call may keep. (A single attempt stays single.)

        Args:
            failure: What went wrong.
            now: Time of the caller's clock, in seconds.
            patience: Patience of the client.
            share: Uniform in [0, 1), for the jitter.
            has_progressed: Whether rows came before the failure; running out of time is then none.
        """
        if failure.is_deadline and has_progressed:
            self.stalls += 1
            self.not_before = now
            return
        self.failures += failure.wait_s is None or patience.attempts == 1
        self.asked_wait_s += failure.wait_s or 0.0
        is_too_often = self.failures >= patience.attempts or self.asked_wait_s > patience.call_timeout_s
        if is_too_often or not failure.may_pass:
            self.error = failure.error
            return
        delay = failure.wait_s if failure.wait_s is not None else patience.backoff_s(self.failures, share)
        self.not_before = now + delay


_FIRST_S, _LONGEST_S = 5.0, 120.0
_TRIAL_S = 5.0  # of silence, of a call to a server that has kept silent before


class Reputation:
    """The servers of one client, by their numbers; times are on the clock of its jobs, in seconds.

    Jobs of several threads may use it at once: each change is one assignment, and a lost one costs a trial.

    Args:
        num: Number of servers.
    """

    def __init__(self, num: int) -> None:
        self._silences = [0] * num
        self._avoided_until = [0.0] * num

    def note_silence(self, target: int, now: float, silent_s: float = math.inf) -> None:
        """Note that a server was silent for the whole of the time that it was given.

        Args:
            target: Number of the server.
            now: Time of the note.
            silent_s: Length of the silence, where it was shorter than the longest that a job puts up with.
        """
        silences = self._silences[target]
        self._avoided_until[target] = now + min(_LONGEST_S, min(_FIRST_S, silent_s) * 2.0 ** min(silences, 16))
        self._silences[target] = silences + 1

    def note_answer(self, target: int) -> None:
        """Note that a server answered: what was before is forgiven."""
        if self._silences[target]:
            self._silences[target], self._avoided_until[target] = 0, 0.0

    def note_call(self, target: int, now: float) -> None:
        """Note that a server is asked: one in doubt is avoided by everybody else until this call has tried it."""
        if self._silences[target]:
            self._avoided_until[target] = max(self._avoided_until[target], now + _TRIAL_S)

    def avoided_until(self, target: int) -> float:
        """Return the time until which a server should not be asked while there are others; it may have passed."""
        return self._avoided_until[target]

    def is_in_doubt(self, target: int) -> bool:
        """Whether a server has answered nothing since it last kept silent."""
        return bool(self._silences[target])

    def longest_silence_s(self, target: int, patience_s: float) -> float:
        """Return how long a server may keep silent while there are others, `patience_s` if it is not in doubt."""
        return min(patience_s, _TRIAL_S) if self._silences[target] else patience_s
