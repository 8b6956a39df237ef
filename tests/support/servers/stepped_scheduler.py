"""A scheduler without threads and with a clock of its own: time passes when a test says so."""

from __future__ import annotations

import asyncio

import numpy as np

from serve.events import Observer
from serve.scheduling.batch_costs import CostTable, power_sizes
from serve.scheduling.demand import Bounds, Demand
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.sources import Given


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Recorder(Observer):
    """Every event as (name, what it was told)."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *args, **kwargs: self.events.append((name, kwargs or args))

    def of(self, name):
        return [told for event, told in self.events if event == name]


def rows_of(job, first, rows):
    """Uniforms that say whose they are: (job, index)."""
    return np.stack([np.full(rows, job, np.float32), np.arange(first, first + rows, dtype=np.float32)], axis=1)


class Stepped:
    """A scheduler, its clock, its observer, and a decoder that gives each row back as an image.

    Args:
        max_batch: Rows of the largest batch.
        seconds: Cost of a batch by its rows; every batch moves the clock by it.
    """

    def __init__(self, *, max_batch=8, seconds=lambda size: 0.0, lanes=1, **bounds):
        self.clock, self.observer = Clock(), Recorder()
        self.seconds = seconds
        self.scheduler = Scheduler(
            CostTable({size: seconds(size) for size in power_sizes(max_batch)}),
            noise_dim=2,
            bounds=Bounds(**bounds),
            lanes=lanes,
            observer=self.observer,
            clock=self.clock,
        )
        self.batches = []

    def submit(self, job, rows, *, chunk_rows=3, window=6, row_bytes=8, **demand):
        return self.scheduler.submit(
            Given(rows_of(job, 0, rows)),
            Demand(rows=rows, row_bytes=row_bytes, chunk_rows=chunk_rows, window=window, **demand),
            convert=lambda images: images,
        )

    def decode(self, uniform):
        self.batches.append(uniform.copy())
        self.clock.now += self.seconds(len(uniform))
        return uniform.reshape(-1, 1, 1, 2).copy()

    def step(self, decode=None):
        return self.scheduler.run_next(decode or self.decode)


async def next_chunk(job):
    """The job's next chunk, or None if it has none yet."""
    task = asyncio.ensure_future(anext(job))
    while not task.done():
        await asyncio.sleep(0)
        if not task.done() and not job.has_chunks and not job.has_failed:
            task.cancel()
            await asyncio.wait([task])
            return None
    return task.result()
