"""How many rows are ahead of a newcomer, kept up to date in constant time per change.

Under a rotation that is fair by rows, by the time a newcomer has got n rows every other job has got at most about
n of its own: so ahead of it are min(left, n) rows of each. Jobs are counted by the binary length of what they have
left, which bounds that sum from above within a factor of two however many jobs there are.
"""

from __future__ import annotations


class Backlog:
    """Rows that jobs still have to get, as counts and sums per power of two."""

    def __init__(self) -> None:
        self._classes: dict[int, tuple[int, int]] = {}  # by binary length: jobs, and the sum of what they have left
        self.rows = 0
        self.jobs = 0

    def move(self, old: int, new: int) -> None:
        """Note that a job has `new` rows left instead of `old`; 0 stands for no job."""
        if old:
            self._add(old.bit_length(), -1, -old)
        if new:
            self._add(new.bit_length(), 1, new)

    def within(self, most: int) -> int:
        """Return an upper bound of the sum over jobs of min(left, most), never more than twice that sum."""
        return sum(min(total, count * most) for count, total in self._classes.values())

    def _add(self, length: int, jobs: int, rows: int) -> None:
        count, total = self._classes.get(length, (0, 0))
        if count + jobs:
            self._classes[length] = count + jobs, total + rows
        else:
            del self._classes[length]
        self.jobs += jobs
        self.rows += rows
