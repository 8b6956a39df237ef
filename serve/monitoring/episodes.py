"""Lines of the log that are written once a minute at most, however often their trouble comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_QUIET_S = 60.0


class Episodes:
    """Says of which times of a trouble a line is due; thread-safe.

    Args:
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: float | None = None
        self._changing = threading.Lock()

    def is_line_due(self) -> bool:
        """Note one more time of the trouble; return whether there was no line of it in the last minute."""
        with self._changing:
            now = self._clock()
            if self._said is not None and now - self._said < _QUIET_S:
                return False
            self._said = now
            return True
