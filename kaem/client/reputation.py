"""What jobs have learned of the servers of one client: who kept silent is left alone for a while by those that follow.

A server that hangs accepts calls and never answers. Each job would find that out by itself, after the longest silence
that it puts up with, every time its turn to be asked first comes. So a silence is remembered: the server is asked again
after five seconds, and twice as long after each further silence, then by calls that wait a few seconds only; its first
answer clears it. Where all servers are in disgrace, all are asked as if none were.
"""

from __future__ import annotations

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

    def note_silence(self, target: int, now: float) -> None:
        """Note that a server let the longest silence pass."""
        silences = self._silences[target]
        self._avoided_until[target] = now + min(_LONGEST_S, _FIRST_S * 2.0 ** min(silences, 16))
        self._silences[target] = silences + 1

    def note_answer(self, target: int) -> None:
        """Note that a server answered: what was before is forgiven."""
        if self._silences[target]:
            self._silences[target], self._avoided_until[target] = 0, 0.0

    def first_moments(self, now: float) -> list[float]:
        """Return when each server may be asked by a job that begins now."""
        if all(until > now for until in self._avoided_until):
            return [now] * len(self._avoided_until)
        return [max(now, until) for until in self._avoided_until]

    def longest_silence_s(self, target: int, patience_s: float) -> float:
        """Return how long a server may keep silent, where `patience_s` is what others may."""
        is_doubted = self._silences[target] and not all(self._silences)
        return min(patience_s, _TRIAL_S) if is_doubted else patience_s
