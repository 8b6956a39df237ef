"""What a batch costs: measured seconds for each size that the engine is warmed for, and the choices that follow.

Only these sizes are ever run; fewer rows are padded up to one of them. So the sizes measured, captured and checked
before the first request are the sizes that requests meet.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping

_HALF_LIFE_S = 5.0  # of what a size has cost more, or less, than at the start: nothing else says that it is over
_WEIGHT = 0.1  # of a new observation: a table that follows the machine's load within some twenty batches
_MOST_TIMES = 4  # what is known: one batch that had to wait for a lost device, or a suspended machine, is no rule
_HAND_OVER_S = 5e-4  # between two batches: planning, drawing the next rows, waking readers
_KNEE = 0.95  # of the best rows per second: what is gained beyond is paid for in everybody's latency


def power_sizes(max_rows: int) -> tuple[int, ...]:
    """Return the powers of two below `max_rows`, and `max_rows`."""
    return (*(1 << power for power in range((max_rows - 1).bit_length())), max_rows)


class CostTable:
    """Seconds of a batch by its size: those measured at the start, moved by the batches that run.

    A price that keeps batches of its size from running would never be corrected by one. So prices fall back to those of
    the start with time, and an idle server is priced by those alone. Where even those are too high, because the machine
    was busy at the start, batches that are run for nothing else correct them, see `serve.scheduling.probes`.

    Args:
        seconds: Measured time of one batch for each size, at least one size.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = dict(sorted(seconds.items()))
        self._first = dict(self._seconds)
        self._settled_at = -math.inf
        self.sizes = tuple(self._seconds)

    @property
    def largest(self) -> int:
        """Rows of the largest batch."""
        return self.sizes[-1]

    def fitting(self, rows: int) -> int:
        """Return the smallest size that holds `rows` rows, at most the largest."""
        return self.sizes[min(bisect_left(self.sizes, rows), len(self.sizes) - 1)]

    def best(self, waiting: int) -> int:
        """Return the size to run now when `waiting` rows, at least 1, could go.

        Padding 65 rows up to 128 may take longer than a batch of 64 and another of 1; the table knows.
        """
        if waiting >= self.largest:  # full batches by the thousand may wait, and this is asked before each
            return self.largest
        padded, below = self.fitting(waiting), self._below(waiting)
        return below if below and self._split(waiting) < self._seconds[padded] else padded

    def batch_seconds(self, size: int) -> float:
        """Return the time of one batch of a size in the table."""
        return self._seconds[size]

    def seconds(self, rows: int, *, is_idle: bool = False) -> float:
        """Return the time of `rows` rows, one batch after the other; on an idle server as it was at the start."""
        table = self._first if is_idle else self._seconds
        whole, rest = divmod(rows, self.largest)
        return whole * table[self.largest] + (table[self.fitting(rest)] if rest else 0.0)

    def sizes_of(self, rows: int) -> set[int]:
        """Return the sizes that the time of `rows` rows consists of."""
        whole, rest = divmod(rows, self.largest)
        return ({self.largest} if whole else set()) | ({self.fitting(rest)} if rest else set())

    def settle(self, now: float) -> None:
        """Let the prices fall back to those of the start, for the time that has passed; `now` in seconds."""
        if now <= self._settled_at:
            return
        left = 0.5 ** ((now - self._settled_at) / _HALF_LIFE_S)
        for size, first in self._first.items():
            self._seconds[size] = first + left * (self._seconds[size] - first)
        self._settled_at = now

    def _split(self, rows: int) -> float:
        """Return the time of a batch of the largest size that `rows` rows fill, and of the rest at its best."""
        best, spent = math.inf, 0.0
        while below := self._below(rows):
            spent += self._seconds[below]
            rows -= below
            best = min(best, spent + (self._seconds[self.fitting(rows)] if rows else 0.0))
        return best

    def _below(self, rows: int) -> int:
        """Return the largest size that `rows` rows fill, or 0."""
        place = bisect_right(self.sizes, rows)
        return self.sizes[place - 1] if place else 0

    def observe(self, size: int, seconds: float) -> None:
        """Let a batch that has just run correct the table."""
        known = self._seconds[size]
        self._seconds[size] += _WEIGHT * (min(seconds, max(_MOST_TIMES * known, _HAND_OVER_S)) - known)

    def probe(self, size: int, seconds: float) -> bool:
        """Let a batch that was run to be measured, beside no other, lower the price of the start; whether it did."""
        self.observe(size, seconds)
        is_lower = seconds < self._first[size]
        if is_lower:
            self._first[size] = seconds
        return is_lower

    def up_to_the_knee(self, least: int) -> CostTable:
        """Return the table without the sizes that hardly improve the rows per second of a smaller one.

        Args:
            least: The largest size stays at least so large: on a busy machine small batches look better than they
                are, because they are done before anybody else has the processor.
        """
        rates = {size: size / (seconds + _HAND_OVER_S) for size, seconds in self._seconds.items()}
        good = (size for size in self.sizes if size >= least and rates[size] >= _KNEE * max(rates.values()))
        knee = next(good, self.largest)
        return CostTable({size: self._seconds[size] for size in self.sizes if size <= knee})
