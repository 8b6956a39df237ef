"""How long a client puts up with a server, and how long it waits before it asks again."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kaem.errors import ConfigError

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
