"""Meeting a server: asking what it samples from, until it answers or time is up. No I/O, no clock."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

from kaem.client.addresses import Target
from kaem.client.failure import Failure
from kaem.client.retry import Patience, Standing
from kaem.errors import KaemError, RemoteError
from kaem.protocol.messages import Model

GRACE_S = 1.0
"""How long the others are waited for once one server of several has answered."""

_log = logging.getLogger(__name__)
_PATIENCE = Patience(call_timeout_s=float("inf"), attempts=1 << 62, max_delay_s=0.5)


class NoAnswerError(Exception):
    """Nothing answered in time; it may do so later.

    Args:
        error: What to raise if nobody else answers either.
    """

    def __init__(self, error: RemoteError) -> None:
        super().__init__(error.message)
        self.error = error


Outcome = Model | KaemError | NoAnswerError | None
"""What a server said, why there is nothing, or None where nobody waited long enough to tell."""


class Greeting:
    """How one server answers the question for its model.

    Args:
        target: The server.
        timeout_s: How long to ask.
        now: Time on the caller's clock, in seconds; all other times are on the same.
        share: Returns uniform numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        target: Target,
        timeout_s: float,
        *,
        now: float,
        share: Callable[[], float] = random.random,  # noqa: S311  # jitter
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._deadline = now + timeout_s
        self._share = share
        self._standing = Standing()
        self._why = ""

    def left_s(self, now: float) -> float:
        """Return the deadline of the next call."""
        return max(0.001, self._deadline - now)

    def delay_s(self, failure: Failure, now: float) -> float:
        """Return how long to wait before the next call, after a failed one.

        Raises:
            NoAnswerError: Time is up, and no kaem server has spoken.
            KaemError: What the server said, if that will not pass or time is up.
        """
        if failure.is_unreachable and failure.may_pass:
            self._why = failure.error.message.rpartition(": ")[2]
        if failure.is_deadline:
            raise self._no_answer()
        self._standing.fail(failure, now=now, patience=_PATIENCE, share=self._share(), has_progressed=False)
        if self._standing.error is not None:
            raise self._standing.error
        if self._standing.not_before >= self._deadline:
            raise self._no_answer() if failure.is_unreachable else failure.error
        return self._standing.not_before - now

    def _no_answer(self) -> NoAnswerError:
        hint = "start one with: kaem serve model.onnx"
        if self._why == "Socket closed":
            secure = "does it demand a client certificate?"
            hint = secure if self._target.is_secure else "does it speak TLS? then write grpcs://"
        proxy = self._target.proxy_variable
        if proxy is not None:
            hint = f"{proxy} is set, so the way there is through that proxy; no_proxy names hosts to reach without"
        why = f": {self._why}" if self._why else ""
        words = f"no kaem server answered at {self._target.address} within {self._timeout_s:g} s{why}"
        return NoAnswerError(RemoteError(words, hint=hint))


def models_met(targets: Sequence[Target], outcomes: Sequence[Outcome]) -> list[Model | None]:
    """Return what each server said, None for one that has not answered yet: at least one must have.

    Raises:
        KaemError: A server answered that it cannot be used, or none answered at all.
    """
    for outcome in outcomes:
        if isinstance(outcome, KaemError):
            raise outcome
    models = [outcome if isinstance(outcome, Model) else None for outcome in outcomes]
    if not any(models):
        silent = (outcome.error for outcome in outcomes if isinstance(outcome, NoAnswerError))
        raise next(silent, RemoteError(f"no kaem server answered at {targets[0].address}"))
    for target, model in zip(targets, models, strict=True):
        if model is None:
            _log.warning("%s does not answer; others do its part until it does", target.address)
    return models
