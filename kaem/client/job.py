"""One job over one server or several: whom to ask for what, when to ask again, when to give up. No I/O, no clock.

The caller (`threads.py`, `tasks.py`) owns the calls and the time. It reports what arrives and does what `step` says:

    step(now)  -> calls to start and to stop          on_answer, on_end, on_failure  <- what became of them
    take()     -> the next rows in order              wake_at()                      -> when to step again at the latest

Whatever happens, rows are handed out in order, each once: a block (`requests.py`) only accepts the row it lacks next, a
failed call's remaining rows go to whoever may be asked next (`retry.py`), and of two calls for the same rows the
first answer ends the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kaem.client.addresses import Target
from kaem.client.failure import Failure, silence
from kaem.client.requests import Block, Blocks
from kaem.client.retry import Patience, Reputation, Standing
from kaem.errors import RemoteError
from kaem.sampler import Images


class Start(NamedTuple):
    """Ask `target` for `rows` rows from index `first` on; number `attempt` names the call."""

    attempt: int
    target: int
    first: int
    rows: int
    timeout_s: float


class Stop(NamedTuple):
    """Cancel call number `attempt`; whatever still comes of it is ignored."""

    attempt: int


@dataclass(eq=False, slots=True)
class Attempt:
    """A call in flight: since when, since when silent, whether anything came, whether the caller was away meanwhile."""

    number: int
    target: int
    block: Block
    started_at: float
    silent_since: float
    has_progressed: bool = False
    was_paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a job is to be done.

    Attributes:
        targets: The servers.
        first_target: The one to be asked first, so that jobs spread over them.
        calls_per_target: Most calls at a time to one server; a hedge may be one more.
        is_stream: Whether a call is a stream, or one message that comes whole.
        patience: With failing and silent servers.
        timeout_s: Deadline of the whole job, in seconds of the caller's waiting.
        hedge_after_s: Returns how late an answer must be for a second server to be asked; None for never.
        on_latency: Told how long each first answer took, and how long a loser had been waited for.
        share: Returns uniform numbers in [0, 1), for jitter.
        reputation: What earlier jobs have learned of the servers; None for nothing.
    """

    targets: tuple[Target, ...]
    first_target: int = 0
    calls_per_target: int = 1
    is_stream: bool = True
    patience: Patience
    timeout_s: float
    hedge_after_s: Callable[[], float | None]
    on_latency: Callable[[float], None]
    share: Callable[[], float]
    reputation: Reputation | None = None


class ClientJob:
    """Rows on their way to one caller.

    Args:
        blocks: The rows.
        rules: How to get them.
        now: Time on the caller's clock, in seconds; all other times are on the same.
    """

    def __init__(self, blocks: Blocks, rules: Rules, *, now: float) -> None:
        self._blocks = blocks
        self._rules = rules
        self._deadline = now + rules.timeout_s
        self._reputation = rules.reputation or Reputation(len(rules.targets))
        self._standings = [Standing(not_before=now) for _ in rules.targets]
        self._attempts: dict[int, Attempt] = {}
        self._numbers = itertools.count()
        self._stepped_at = now
        self._paused_at: float | None = None
        self._last: Failure | None = None

    @property
    def is_done(self) -> bool:
        """Whether all rows have been taken and no call is left."""
        return self._blocks.is_done and not self._attempts

    def pause(self, now: float) -> None:
        """Note that the caller is busy with what it got: from now on nobody waits for us."""
        self._paused_at = now
        for attempt in self._attempts.values():
            attempt.was_paused = True

    def resume(self, now: float) -> None:
        """Note that the caller is back; neither deadline nor silence ran while it was away."""
        if self._paused_at is None:
            return
        away = now - self._paused_at
        self._paused_at = None
        self._deadline += away
        for attempt in self._attempts.values():
            attempt.started_at += away
            attempt.silent_since += away

    def step(self, now: float) -> list[Start | Stop]:
        """Return what is to be done now.

        Raises:
            KaemError: The job has failed; the caller cancels what is left.
        """
        self._stepped_at = now
        actions: list[Start | Stop] = list(self._stop_silent(now))
        if not self._blocks.is_done and now >= self._deadline:
            for attempt in self._attempts.values():
                self._note_silence(attempt, now)
            raise self._too_late()
        self._blocks.cut()
        for block in self._waiting_blocks():
            target = self._free_target(now, self._rules.calls_per_target)
            if target is None:
                break
            actions.append(self._start(block, target, now))
        hedge = self._hedge(now)
        if hedge is not None:
            actions.append(hedge)
        self._check_hope()
        return actions

    def wake_at(self) -> float:
        """Return the time at which `step` has something to do even if nothing is reported; it may have passed."""
        limits = [self._deadline]
        limits += [self._silent_until(attempt) for attempt in self._attempts.values()]
        has_others = self._has_others(self._stepped_at)
        usable = [
            max(standing.not_before, self._reputation.avoided_until(target) if has_others else standing.not_before)
            for target, standing in enumerate(self._standings)
            if standing.error is None
        ]
        if self._waiting_blocks():
            limits += usable
        hedged = self._hedge_at()
        if hedged is not None:
            limits += [max(hedged, not_before) for not_before in usable]
        # What was due at the last step has been done then, as far as it could; what became due since has not.
        return min((limit for limit in limits if limit > self._stepped_at), default=self._deadline)

    def take(self) -> tuple[int, Images] | None:
        """Return the next rows in order and the index of the first, None while they have not arrived."""
        return self._blocks.take()

    def wanted(self, number: int) -> tuple[int, int] | None:
        """Return the index of the next row that a call owes and how many it owes; None if it is of no use any more."""
        attempt = self._attempts.get(number)
        return None if attempt is None else (attempt.block.next, attempt.block.end - attempt.block.next)

    def on_answer(self, number: int, images: Images, now: float) -> list[Stop]:
        """Take the next rows of a call, which `wanted` has asked for; return the calls that lost the race for them."""
        attempt = self._attempts[number]
        if not attempt.has_progressed:
            self._rules.on_latency(now - attempt.started_at)
        attempt.silent_since = now
        attempt.has_progressed = True
        self._standings[attempt.target].progress()
        self._reputation.note_answer(attempt.target)
        self._blocks.add(attempt.block, images)
        losers = [one for one in self._attempts.values() if one.block is attempt.block and one is not attempt]
        for loser in losers:
            if not loser.has_progressed:
                self._rules.on_latency(now - loser.started_at)
                if now - loser.started_at >= (self._rules.hedge_after_s() or 0.0):  # as late as one that is hedged
                    self._note_silence(loser, now)
            del self._attempts[loser.number]
        return [Stop(loser.number) for loser in losers]

    def on_end(self, number: int, now: float) -> None:
        """Note that a call ended well."""
        attempt = self._attempts.get(number)
        if attempt is None:
            return
        missing = attempt.block.end - attempt.block.next
        if missing:
            address = self._rules.targets[attempt.target].address
            early = RemoteError(f"{address} ended the stream {missing} images early")
            self.on_failure(number, Failure(error=early), now)
        else:
            del self._attempts[number]

    def on_failure(self, number: int, failure: Failure, now: float) -> None:
        """Note that a call failed.

        Raises:
            KaemError: No server would answer this request, or more came than was asked for.
        """
        attempt = self._attempts.pop(number, None)
        if attempt is None:
            return
        if failure.is_deadline:
            self._note_silence(attempt, now)
        if failure.is_everywhere or (failure.is_wrong and attempt.block.is_complete):
            raise failure.error
        if attempt.block.is_complete:
            return  # all is here, and what became of the call does not matter
        self._last = failure
        self._standings[attempt.target].fail(
            failure,
            now=now,
            patience=self._rules.patience,
            share=self._rules.share(),
            has_progressed=attempt.has_progressed or attempt.was_paused,
        )

    def _stop_silent(self, now: float) -> list[Stop]:
        # Compared as `wake_at` has it, to the last bit: nobody wakes at the same moment twice.
        silent = [one for one in self._attempts.values() if now >= self._silent_until(one)]
        for attempt in silent:
            self.on_failure(attempt.number, silence(self._rules.targets[attempt.target]), now)
        return [Stop(attempt.number) for attempt in silent]

    def _note_silence(self, attempt: Attempt, now: float) -> None:
        """Remember a server that let the longest silence pass, or gave nothing in the time that it had."""
        silent_s = now - attempt.silent_since
        if silent_s >= 0.99 * self._longest_silence_s(attempt.target):
            self._reputation.note_silence(attempt.target, now)
        elif not (attempt.has_progressed or attempt.was_paused):
            self._reputation.note_silence(attempt.target, now, silent_s)

    def _silent_until(self, attempt: Attempt) -> float:
        return attempt.silent_since + self._longest_silence_s(attempt.target)

    def _longest_silence_s(self, target: int) -> float:
        patience_s = self._rules.patience.call_timeout_s
        has_trusted = any(
            standing.error is None and not self._reputation.is_in_doubt(number)
            for number, standing in enumerate(self._standings)
        )
        return self._reputation.longest_silence_s(target, patience_s) if has_trusted else patience_s

    def _has_others(self, now: float) -> bool:
        """Whether some server is neither avoided nor failing: while there is one, those that are avoided stay so."""
        return any(
            standing.error is None and not standing.failures and self._reputation.avoided_until(target) <= now
            for target, standing in enumerate(self._standings)
        )

    def _waiting_blocks(self) -> list[Block]:
        """Return the open blocks that nobody is asked for, in order."""
        asked = {id(attempt.block) for attempt in self._attempts.values()}
        return [block for block in self._blocks if not block.is_complete and id(block) not in asked]

    def _free_target(self, now: float, most_calls: int, block: Block | None = None) -> int | None:
        """Return the most dependable and least busy server that may be asked now, for `block` by nobody yet."""
        count = len(self._standings)
        busy = [0] * count
        for attempt in self._attempts.values():
            busy[attempt.target] += most_calls + 1 if attempt.block is block else 1

        def rank(target: int) -> tuple[int, int, int]:
            return self._standings[target].stalls, busy[target], (target - self._rules.first_target) % count

        has_others = self._has_others(now)
        for target in sorted(range(count), key=rank):
            standing = self._standings[target]
            is_avoided = has_others and self._reputation.avoided_until(target) > now
            if standing.error is None and standing.not_before <= now and busy[target] < most_calls and not is_avoided:
                return target
        return None

    def _start(self, block: Block, target: int, now: float) -> Start:
        attempt = Attempt(next(self._numbers), target, block, started_at=now, silent_since=now)
        self._attempts[attempt.number] = attempt
        timeout_s = self._deadline - now
        if not self._rules.is_stream:
            timeout_s = min(timeout_s, self._longest_silence_s(target))
        self._reputation.note_call(target, now)
        return Start(attempt.number, target, block.next, block.end - block.next, timeout_s)

    def _hedge_at(self) -> float | None:
        """Return when the rows that everybody waits for are late enough for a second server; None for never."""
        head = self._blocks.head
        delay = self._rules.hedge_after_s()
        if head is None or head.is_complete or delay is None or len(self._standings) == 1:
            return None
        asked = [attempt for attempt in self._attempts.values() if attempt.block is head]
        return asked[0].silent_since + delay if len(asked) == 1 else None

    def _hedge(self, now: float) -> Start | None:
        late = self._hedge_at()
        if late is None or now < late:
            return None
        head = self._blocks.head
        target = self._free_target(now, self._rules.calls_per_target + 1, head)
        return None if target is None or head is None else self._start(head, target, now)

    def _check_hope(self) -> None:
        """Raise if rows are missing, nobody is at work, and nobody may be asked before it is too late."""
        if self._attempts or not self._waiting_blocks():
            return
        hopeful = [one for one in self._standings if one.error is None]
        if not hopeful:
            raise self._last.error if self._last is not None else self._too_late()
        if min(one.not_before for one in hopeful) >= self._deadline:
            raise self._too_late()

    def _too_late(self) -> RemoteError:
        who = ", ".join(target.address for target in self._rules.targets)
        why = self._last.error.message if self._last is not None else f"{who} did not answer in time"
        return RemoteError(
            f"the samples were not there after {self._rules.timeout_s:g} s: {why}",
            hint="allow more time (timeout_s), or check the servers' load",
        )
