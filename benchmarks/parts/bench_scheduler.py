"""What the server's scheduler costs by itself: no network, and a model that computes next to nothing.

    python -m pytest benchmarks/parts/bench_scheduler.py

The model is real: one small product in ONNX Runtime, five uniforms to 64 pixels, on one thread, warmed up as a server
does. Costs of a batch beside `no scheduler` are those of planning it, of many sources instead of one, and of copying
rows into chunks; costs of a request are those of being let in, planned, handed to the thread of the engine and back
into the event loop. Times are on the clock, for threads waiting for each other are what is measured; processor
time, of all threads, stands beside them.
"""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from artifacts import write_small_artifact
from metered import Metered
from tiny_server import Scheduled, tiny_server

from kaem.engines.cpu import LocalSampler
from serve.scheduling.batch_costs import CostTable
from serve.scheduling.demand import Bounds, Demand
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.sources import Seeded, draw

_BATCH = 256
_SHAPE = (1, 8, 8)
_PLANNED = 64
_CPU = "µs of processor time each"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = write_small_artifact(tmp_path_factory.mktemp("tiny") / "tiny.onnx", image_shape=_SHAPE)
    with LocalSampler(path, workers=1) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def server(engine):
    with tiny_server(engine, max_batch=_BATCH) as running:
        yield running


def _decoded(engine, rows):
    """What the engine alone makes of one seed's rows: what a scheduler's batch is measured against."""
    return engine.decode(draw([(Seeded(7, 0), 0, rows)], rows, engine.manifest.noise_dim))


def _passive(engine):
    """A scheduler that computes when it is told to, one batch size, and no thread."""
    return Scheduler(CostTable({_PLANNED: 1e-4}), noise_dim=engine.manifest.noise_dim, bounds=Bounds())


def _submitted(scheduler, jobs, rows):
    demand = Demand(rows=rows, row_bytes=256, chunk_rows=rows, window=rows)
    return [scheduler.submit(Seeded(seed, 0), demand, convert=lambda images: images) for seed in range(jobs)]


def bench_batch_without_a_scheduler(benchmark, amount, engine):
    benchmark.group, benchmark.name = f"a batch of {_PLANNED} rows", "no scheduler"
    assert benchmark(_decoded, engine, _PLANNED).shape == (_PLANNED, *_SHAPE)
    amount(1, "batches")


@pytest.mark.parametrize(("jobs", "rows"), [(1, _PLANNED), (64, 1), (4096, 1), (4096, 64)])
def bench_batch(benchmark, amount, engine, jobs, rows):
    """One decision: which rows of those that wait go next; the batch is computed, its rows are handed over."""
    benchmark.group, benchmark.name = f"a batch of {_PLANNED} rows", f"waiting: {jobs:,} requests of {rows}"

    def waiting():
        scheduler = _passive(engine)
        return (scheduler, _submitted(scheduler, jobs, rows)), {}

    def decide(scheduler, waiting):
        assert scheduler.run_next(engine.decode)
        return waiting

    first = benchmark.pedantic(decide, setup=waiting, rounds=15, warmup_rounds=2)[0]
    assert first.ticket.planned > 0
    amount(1, "batches")


def bench_admission(benchmark, amount, engine):
    """1,000 one-row requests are let in."""
    benchmark.group, benchmark.name = "letting in", "1,000 requests of 1"
    jobs = benchmark.pedantic(_submitted, setup=lambda: ((_passive(engine), 1000, 1), {}), rounds=15, warmup_rounds=2)
    assert len(jobs) == 1000
    amount(1000, "requests")


def bench_requests_without_a_scheduler(benchmark, amount, engine):
    benchmark.group, benchmark.name = "1,024 requests of one row", "no scheduler"
    call = Metered(lambda: [_decoded(engine, 1) for _ in range(1024)])
    assert len(benchmark(call)) == 1024
    benchmark.extra_info[_CPU] = 1e6 * call.seconds / 1024
    amount(1024, "requests")


@pytest.mark.parametrize("callers", [1, 8, 64, 512])
def bench_requests(benchmark, amount, server, callers):
    """Each caller asks for its next row when it has the last: the more callers, the more rows share a batch."""
    benchmark.group, benchmark.name = "1,024 requests of one row", f"callers: {callers}"
    server.batches.clear()
    call = Metered(lambda: server.run(server.ask(callers, 1024 // callers)))
    assert len(benchmark(call)) == 1024
    benchmark.extra_info |= {"rows a batch": float(np.mean(server.batches)), _CPU: 1e6 * call.seconds / 1024}
    amount(1024, "requests")


def bench_stream_without_a_scheduler(benchmark, amount, engine):
    benchmark.group, benchmark.name = "16,384 rows", "no scheduler"
    call = Metered(lambda: [_decoded(engine, _BATCH) for _ in range(16_384 // _BATCH)])
    assert len(benchmark(call)) == 16_384 // _BATCH
    benchmark.extra_info[_CPU] = 1e6 * call.seconds / 16_384
    amount(16_384, "images")


@pytest.mark.parametrize("streams", [1, 4, 64])
def bench_streams(benchmark, amount, server, streams):
    """Bulk requests, read chunk by chunk by readers that are never slow."""
    benchmark.group, benchmark.name = "16,384 rows", f"streams: {streams}"
    server.batches.clear()
    call = Metered(lambda: server.run(server.read(streams, 16_384 // streams)))
    assert benchmark(call) == 16_384
    benchmark.extra_info |= {"rows a batch": float(np.mean(server.batches)), _CPU: 1e6 * call.seconds / 16_384}
    amount(16_384, "images")


@pytest.mark.parametrize("streams", [0, 1, 16])
def bench_mix(benchmark, amount, server: Scheduled, streams):
    """Eight interactive callers beside bulk streams without end, which take what is left."""
    benchmark.group, benchmark.name = "256 requests of one row, callers: 8", f"bulk streams beside them: {streams}"
    rounds = itertools.count(1)

    async def mixed():
        number = next(rounds)
        readers = [asyncio.create_task(server.read_on()) for _ in range(streams)]
        assert len(await server.ask(8, 32)) == 256
        for reader in readers:
            reader.cancel()
        ends = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
        return number

    server.batches.clear()
    call = Metered(lambda: server.run(mixed()))
    asked = 256 * benchmark(call)
    bulk = (sum(server.batches) - asked) / asked
    benchmark.extra_info |= {"bulk images a request": bulk, _CPU: 1e6 * call.seconds / 256}
    amount(256, "requests")
