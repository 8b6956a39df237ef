"""Wrong tokens cost time: whoever guesses from one address is answered late, and of one guess a second.

A wrong token is answered when its address has paid for it, a second each; a few are free, for a person who mistypes or
a client whose token was just renewed. Right tokens never wait, wherever they come from: to look them up costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_COST_S = 1.0
_FREE = 5
_LONGEST_S = 30.0  # for an answer
_MOST_ADDRESSES = 4096  # that are remembered
_MOST_WAITING = 1024  # at a time: each holds a call


class Guesses:
    """Knows from which addresses wrong tokens come; for the event loop.

    Attributes:
        num_waiting: Calls that wait for their answer.

    Args:
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_at: dict[str, float] = {}  # when each address will have paid for all its guesses
        self.num_waiting = 0

    def delay_s(self, peer: str) -> float:
        """Note a wrong token; return the seconds after which it may be answered.

        Args:
            peer: Address and port that it comes from.
        """
        now, address = self._clock(), peer.rpartition(":")[0]
        paid_at = max(self._paid_at.pop(address, now), now) + _COST_S
        self._paid_at[address] = paid_at  # at the end of the table, whose first are forgotten first
        if len(self._paid_at) > _MOST_ADDRESSES:
            del self._paid_at[next(iter(self._paid_at))]
        if self.num_waiting >= _MOST_WAITING:
            return 0.0
        return min(max(0.0, paid_at - now - _FREE * _COST_S), _LONGEST_S)
