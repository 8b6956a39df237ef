"""Keep freed megabyte blocks inside the process while it works, and give them back to the system when it idles.

A server allocates and frees arrays and messages of about 1 MiB for every chunk. glibc serves such sizes with
mmap, so each one costs hundreds of page faults; kept in the heap, one stream costs half the processor time.
But forty slow readers leave 300 MiB behind, in holes that no trim threshold closes; `malloc_trim` does.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a worker process has no calls, and does not load gRPC
    from serve.calls.interceptor import Gate

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_MMAP_THRESHOLD_BYTES = 32 << 20  # the most that every glibc accepts
_TRIM_THRESHOLD_BYTES = 512 << 20
_IDLE_S = 2.0


def keep_large_blocks() -> None:
    """Raise the thresholds of glibc's malloc for this process; does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


async def release_when_idle(gate: Gate) -> None:
    """Give freed blocks back to the system whenever no call has come or run for a while."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    entered = released = 0
    while trim is not None:
        await asyncio.sleep(_IDLE_S)
        is_idle, entered = gate.num_inside == 0 and gate.num_entered == entered, gate.num_entered
        if is_idle and entered != released:
            await asyncio.to_thread(trim, 0)
            released = entered
