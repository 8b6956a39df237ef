"""Which sizes of batches are to be measured again: those whose price has refused a call that nothing else delays.

A price from the start may be too high: something else ran on the machine while the server warmed up. A call that is
refused for it runs no batch, so nobody would ever find out. The size is noted instead, and a lane that has nothing to
do runs a batch of it, seldom enough that whoever comes meanwhile hardly notices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

EVERY_S = 2.0
"""Between two probes, at least."""

MOST_TIMES = 100
"""By which a price may be too high: a million samples in a millisecond are refused without a probe."""


class Probes:
    """Sizes that are to be measured again."""

    def __init__(self) -> None:
        self._wanted: dict[int, None] = {}  # in the order in which they were asked for
        self._at = -math.inf

    def want(self, sizes: Iterable[int]) -> None:
        """Ask for batches of these sizes, each once."""
        self._wanted.update(dict.fromkeys(sizes))

    def delay_s(self, now: float) -> float:
        """Return the seconds until a batch may be run, 0 for now; infinity if none is asked for."""
        return max(0.0, self._at + EVERY_S - now) if self._wanted else math.inf

    def next(self, now: float) -> int:
        """Return the size that is to be run now; there must be one."""
        size = next(iter(self._wanted))
        del self._wanted[size]
        self._at = now
        return size
