"""What jobs have learned of the servers of one client: who kept silent is left alone for a while by those that follow.

A server that hangs accepts calls and never answers. Each job would find that out by itself, after the longest silence
that it puts up with, every time its turn to be asked first comes. So a silence is remembered, and the server is avoided
for a while: for five seconds, or for as long as the silence was if a job had less time, and twice as long after each
further silence. Then it is tried by one call at a time, which waits a few seconds only; its first answer clears it.

Nobody is avoided where nobody else is left to ask.
"""

from __future__ import annotations

import math

_FIRST_S, _LONGEST_S = 5.0, 120.0
_TRIAL_S = 5.0  # of silence, of a call to a server that has kept silent before


class Reputation:
    """The servers of one client, by their numbers; times are on the clock of its jobs, in seconds.

    Jobs of several threads may use it at once: each change is one assignment, and a lost one costs a trial.

    Args:
        num: Number of servers.
    """

    def __init__(self, num: int) -> None:
        self._silences = [0] * num
        self._avoided_until = [0.0] * num

    def note_silence(self, target: int, now: float, silent_s: float = math.inf) -> None:
        """Note that a server was silent for the whole of the time that it was given.

        Args:
            target: Number of the server.
            now: Time of the note.
            silent_s: Length of the silence, where it was shorter than the longest that a job puts up with.
        """
        silences = self._silences[target]
        self._avoided_until[target] = now + min(_LONGEST_S, min(_FIRST_S, silent_s) * 2.0 ** min(silences, 16))
        self._silences[target] = silences + 1

    def note_answer(self, target: int) -> None:
        """Note that a server answered: what was before is forgiven."""
        if self._silences[target]:
            self._silences[target], self._avoided_until[target] = 0, 0.0

    def note_call(self, target: int, now: float) -> None:
        """Note that a server is asked: one in doubt is avoided by everybody else until this call has tried it."""
        if self._silences[target]:
            self._avoided_until[target] = max(self._avoided_until[target], now + _TRIAL_S)

    def avoided_until(self, target: int) -> float:
        """Return the time until which a server should not be asked while there are others; it may have passed."""
        return self._avoided_until[target]

    def is_in_doubt(self, target: int) -> bool:
        """Whether a server has answered nothing since it last kept silent."""
        return bool(self._silences[target])

    def longest_silence_s(self, target: int, patience_s: float) -> float:
        """Return how long a server may keep silent while there are others, `patience_s` if it is not in doubt."""
        return min(patience_s, _TRIAL_S) if self._silences[target] else patience_s
