"""The threads that compute: one per engine, each running batch after batch of one scheduler.

A lane plans each batch itself, at the moment it can compute it: it never waits for the event loop, and a request that
arrives or is cancelled meanwhile still counts for the next batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from serve.batches import Decode
from serve.scheduler import Scheduler


class Lanes:
    """Running lanes of a scheduler.

    Args:
        scheduler: Whose batches are computed.
        decoders: `decode` of each engine.
    """

    def __init__(self, scheduler: Scheduler, decoders: Sequence[Decode]) -> None:
        self._scheduler = scheduler
        self._threads = [
            threading.Thread(target=self._run, args=(decode,), name=f"kaem-batch-{number}")
            for number, decode in enumerate(decoders)
        ]
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Close the scheduler and wait for the batches that are being computed."""
        self._scheduler.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _run(self, decode: Decode) -> None:
        while self._scheduler.run_next(decode, wait=True):
            pass
