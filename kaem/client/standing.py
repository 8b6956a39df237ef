"""How one server stands with one job: free to be asked, to be left alone for a while, or given up."""

from __future__ import annotations

from dataclasses import dataclass

from kaem.client.failure import Failure
from kaem.client.patience import Patience
from kaem.errors import KaemError


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
