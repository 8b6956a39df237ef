"""What a server puts around a model, from the warm-up to its lanes, without the network: calls are coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np

from serve.calls.call_options import CallOptions
from serve.calls.submit import Submitter, converting
from serve.catalog.model import limits_of, start_model, warm_engines
from serve.devices.engine import Engine
from serve.events import Observer
from serve.scheduling.sources import Seeded
from serve.settings import ServeSettings

_AS_USUAL = CallOptions(priority="", is_partial_welcome=False, timeout_s=None)
_KEEP = converting(to_bytes=False)
_WITHOUT_END = 1 << 40


class _Batches(Observer):
    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_batch(self, *, size: int, rows: int, seconds: float) -> None:
        self.rows.append(rows)


class Scheduled:
    """A warm model in an event loop that runs only during `run`.

    Attributes:
        batches: Rows of every batch so far.
    """

    def __init__(self, runner: asyncio.Runner, engine: Engine, max_batch: int) -> None:
        self._runner = runner
        self._settings = ServeSettings()
        self._submitter = Submitter(self._settings)
        self._row_bytes = engine.manifest.image_bytes
        observer = _Batches()
        self.batches = observer.rows
        warmth = warm_engines([engine], max_batch)

        async def start():
            return start_model(
                [engine],
                warmth,
                name=engine.manifest.name,
                version=1,
                limits=limits_of(engine.manifest, self._settings.max_chunk_bytes),
                bounds=self._settings.bounds,
                observer=observer,
            )

        self._model = runner.run(start())

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Run the loop until a call is answered."""
        return self._runner.run(call)

    async def ask(self, callers: int, requests: int) -> list[np.ndarray]:
        """Return one image for each of so many requests of so many callers, who wait for every answer."""

        async def caller(seed: int) -> list[np.ndarray]:
            return [await self._one(seed, index) for index in range(requests)]

        answers = await asyncio.gather(*(caller(seed) for seed in range(callers)))
        return [images for answer in answers for images in answer]

    async def read(self, streams: int, rows: int) -> int:
        """Read so many streams of so many rows at the same time; return the number of images."""
        return sum(await asyncio.gather(*(self._stream(seed, rows) for seed in range(streams))))

    async def read_on(self) -> None:
        """Read a stream until cancelled."""
        await self._stream(0, _WITHOUT_END)

    async def close(self) -> None:
        await self._model.close()

    async def _one(self, seed: int, index: int) -> np.ndarray:
        source = Seeded(seed, index)
        async with self._submitter.whole(
            self._model, source, 1, row_bytes=self._row_bytes, convert=_KEEP, call_options=_AS_USUAL
        ) as job:
            return await anext(job)

    async def _stream(self, seed: int, rows: int) -> int:
        async with self._submitter.stream(
            self._model,
            Seeded(seed, 0),
            rows,
            chunk_rows=self._model.info.limits.max_sample_rows,
            row_bytes=self._row_bytes,
            convert=_KEEP,
            call_options=_AS_USUAL,
        ) as job:
            return sum([len(images) async for images in job])


@contextlib.contextmanager
def tiny_server(engine: Engine, *, max_batch: int) -> Iterator[Scheduled]:
    """Warm an engine up, start its scheduler and lanes, and stop them in the end."""
    with asyncio.Runner() as runner:
        running = Scheduled(runner, engine, max_batch)
        try:
            yield running
        finally:
            runner.run(running.close())
