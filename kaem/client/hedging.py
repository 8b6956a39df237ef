"""Hedging: when an answer is late, ask a second server for the same and take whichever comes first."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from kaem.errors import ConfigError

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
