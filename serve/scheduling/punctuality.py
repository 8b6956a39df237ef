"""How far estimates of a busy server have to be stretched for the answers to be on time.

An estimate prices batches. Between them the same processors read calls, make answers and refuse others, and the more
they refuse, the longer everything takes: no table of batches knows by how much. So every answer is compared with what
was estimated when its call was let in, and the factor is moved until one in two hundred takes longer:

    log f  <-  log f + c 0.995   after an answer that took longer than f times its estimate
    log f  <-  log f - c 0.005   after any other

Nothing is learned while nothing is let in, so the factor also falls with time, by half of its excess every ten seconds;
and it does not count for a call that comes to an idle server.
"""

from __future__ import annotations

import math

LEAST, MOST = 1.2, 4.0
"""Bounds of the factor: batches vary a little on an idle server too; beyond the other it is no estimate any more."""

_STEP = 0.05
_LATE = 0.005
_HALF_LIFE_S = 10.0


class Punctuality:
    """The factor of one class of requests."""

    def __init__(self) -> None:
        self._factor = LEAST
        self._at = -math.inf

    def factor(self, now: float) -> float:
        """Return the factor by which an estimate is multiplied at the time `now`, in seconds on any clock."""
        if math.isinf(self._at):
            return LEAST
        excess: float = (self._factor - LEAST) * 0.5 ** ((now - self._at) / _HALF_LIFE_S)
        return LEAST + excess

    def note(self, estimated_s: float, taken_s: float, now: float) -> None:
        """Learn from an answer.

        Args:
            estimated_s: Seconds that its batches and those before them were to take, without a factor.
            taken_s: Seconds that it took; infinity where its deadline passed first.
            now: Time, in seconds on the clock of `factor`.
        """
        before = self.factor(now)
        is_late = taken_s > before * estimated_s
        moved = before * math.exp(_STEP * (1.0 - _LATE if is_late else -_LATE))
        self._factor, self._at = min(max(moved, LEAST), MOST), now
