"""How many rows are ahead of a newcomer, kept up to date in constant time per change.

Under a rotation that is fair by rows, by the time a newcomer has got n rows every other job has got at most about
n of its own: so ahead of it are min(left, n) rows of each. Jobs are counted by the binary length of what they have
left, which bounds that sum from above within a factor of two however many jobs there are.
"""

from __future__ import annotations


class Backlog:
    """Rows that jobs still have to get, as counts and sums per power of two."""

    def __init__(self) -> None:
        self._counts = [0] * 66
        self._sums = [0] * 66
        self.rows = 0
        self.jobs = 0

    def move(self, old: int, new: int) -> None:
        """Note that a job has `new` rows left instead of `old`; 0 stands for no job."""
        if old:
            self._counts[old.bit_length()] -= 1
            self._sums[old.bit_length()] -= old
        if new:
            self._counts[new.bit_length()] += 1
            self._sums[new.bit_length()] += new
            self.jobs += 1
        self.jobs -= bool(old)
        self.rows += new - old

    def within(self, most: int) -> int:
        """Return an upper bound of the sum over jobs of min(left, most), never more than twice that sum."""
        return sum(min(total, count * most) for count, total in zip(self._counts, self._sums, strict=True))
