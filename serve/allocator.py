"""Keep freed megabyte blocks inside the process instead of giving them back to the system.

A server allocates and frees arrays and messages of about 1 MiB for every chunk. glibc serves such sizes with
mmap, so each one costs hundreds of page faults; kept in the heap, one stream costs half the processor time.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_MMAP_THRESHOLD_BYTES = 32 << 20  # the most that every glibc accepts
_TRIM_THRESHOLD_BYTES = 512 << 20


def keep_large_blocks() -> None:
    """Raise the thresholds of glibc's malloc for this process; does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
