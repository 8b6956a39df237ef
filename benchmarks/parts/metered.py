"""Processor time of calls that are timed on the clock: what a busy machine distorts least."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Metered:
    """A call that counts what all threads of this process spend on it.

    Args:
        call: Takes no arguments.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._seconds: list[float] = []

    def __call__(self) -> Any:
        begin = time.process_time()
        result = self._call()
        self._seconds.append(time.process_time() - begin)
        return result

    @property
    def seconds(self) -> float:
        """Median processor time of a call."""
        return float(np.median(self._seconds))
