"""What one caller may use: samples a second, and requests at a time.

Samples are paid for afterwards: a request is let in while its caller owes nothing, then takes on all its samples as
debt, which its rate pays off. So no request is too large for a rate, a long stream is never cut in its middle, and
the average over any time is kept but for the last request. What was not sent in the end is not owed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from kaem.errors import RemoteError
from serve.statuses import RefusedError

_BURST_S = 1.0  # what may be saved up, in seconds of the rate
_CONCURRENCY_RETRY_S = 0.2  # nobody knows when a running request will end


class Allowance:
    """Of one caller; thread-safe.

    Args:
        name: Name of the caller.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._rate: float | None = None
        self._saved = 0.0  # samples; a debt where negative
        self._since = clock()
        self._num_inside = 0
        self._changing = threading.Lock()

    @property
    def num_inside(self) -> int:
        """Requests being answered."""
        return self._num_inside

    def enter(self, *, rate: float | None, concurrency: int | None) -> None:
        """Count a request in.

        Args:
            rate: Samples a second; None for no limit.
            concurrency: Requests at a time; None for no limit.

        Raises:
            RefusedError: RESOURCE_EXHAUSTED with RetryInfo, one of the limits is reached.
        """
        with self._changing:
            if concurrency is not None and self._num_inside >= concurrency:
                raise _refused(
                    f"{self._name!r} has {self._num_inside} requests running; at most {concurrency} may",
                    quota="token_concurrency",
                    retry_after_s=_CONCURRENCY_RETRY_S,
                )
            if rate is not None:
                self._pay(rate)
                if self._saved <= 0:
                    raise _refused(
                        f"{self._name!r} has used its {rate:g} samples a second",
                        quota="token_rate",
                        retry_after_s=(1 - self._saved) / rate,
                    )
            self._rate = rate
            self._num_inside += 1

    def leave(self) -> None:
        """Count a request out."""
        with self._changing:
            self._num_inside -= 1

    def charge(self, samples: int) -> None:
        """Take samples on as debt; a negative number gives them back."""
        with self._changing:
            self._saved -= samples

    def _pay(self, rate: float) -> None:
        now = self._clock()
        most = max(1.0, _BURST_S * rate)
        if self._rate is None:  # it had no limit until now
            self._saved = most
        self._saved = min(most, self._saved + rate * (now - self._since))
        self._since = now


def _refused(message: str, *, quota: str, retry_after_s: float) -> RefusedError:
    error = RemoteError(message, hint="wait, or ask whoever runs the server for more")
    return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, error, quota=quota, retry_after_s=retry_after_s)
