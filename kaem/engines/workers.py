"""Threads that share a batch by rows, each with its own share of the processors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np

MOST_WORKERS = 1024
"""More threads than any machine has cores for would only take memory, or not be started at all."""


def row_workers(num: int) -> ThreadPoolExecutor:
    """Return a pool of `num` threads that run side by side.

    Left alone, Linux may wake two of them on one processor while another is idle and leave them there for longer than
    a batch takes, which then takes as long as on one thread (seen on virtual machines). So the processors that this
    process may use are dealt out core by core, and every thread stays on its share; more threads than processors go
    anywhere.
    """
    processors = by_core(os.sched_getaffinity(0))
    if not 1 < num <= len(processors):
        return ThreadPoolExecutor(num, thread_name_prefix="kaem-rows")
    shares: SimpleQueue[set[int]] = SimpleQueue()
    for share in np.array_split(processors, num):
        shares.put({int(processor) for processor in share})
    return ThreadPoolExecutor(num, thread_name_prefix="kaem-rows", initializer=_stay_on, initargs=(shares,))


def by_core(processors: Iterable[int], topology: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Order processors so that those of one core, which share its arithmetic, follow each other.

    Args:
        processors: Their numbers.
        topology: Where Linux describes them; those it does not describe are cores of their own.
    """

    def core(processor: int) -> int:
        try:
            siblings = (topology / f"cpu{processor}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = ""
        first = re.match(r"\d+", siblings)
        return processor if first is None else int(first[0])

    return sorted(processors, key=lambda processor: (core(processor), processor))


def _stay_on(shares: SimpleQueue[set[int]]) -> None:
    """Keep the calling thread on the next share."""
    with suppress(OSError):  # a processor has been taken away since, or a sandbox forbids it: only speed depends on it
        os.sched_setaffinity(0, shares.get_nowait())
