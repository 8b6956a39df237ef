"""The threads that compute: one per engine, each running batch after batch of one scheduler.

A lane plans each batch itself, at the moment it can compute it: it never waits for the event loop, and a request that
arrives or is cancelled meanwhile still counts for the next batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from serve.scheduling.batch import Decode
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.sources import DecodeBoth


class Lanes:
    """Running lanes of a scheduler.

    Args:
        scheduler: Whose batches are computed.
        decoders: `decode` of each engine.
        both: What gives latent vectors too, of each engine that has it.
    """

    def __init__(
        self, scheduler: Scheduler, decoders: Sequence[Decode], both: Sequence[DecodeBoth | None] | None = None
    ) -> None:
        self._scheduler = scheduler
        pairs = zip(decoders, both or [None] * len(decoders), strict=True)
        self._threads = [
            threading.Thread(target=self._run, args=pair, name=f"kaem-batch-{number}")
            for number, pair in enumerate(pairs)
        ]
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Close the scheduler and wait for the batches that are being computed."""
        self._scheduler.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _run(self, decode: Decode, both: DecodeBoth | None) -> None:
        while self._scheduler.run_next(decode, both, wait=True):
            pass
