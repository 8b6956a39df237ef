"""What the noise of samples costs, by rows, beside numpy's own generators.

    python -m pytest benchmarks/parts/bench_noise.py

One call draws the uniforms of some rows, float32, on one thread; times are processor time. `kaem, one seed` is what a
local sampler draws, `kaem, a seed a row` what a server draws for a batch of many requests. numpy's generators give
other numbers and know no row by its index; they show what the promise of rows costs.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from kaem import noise

_DIM = 33
_ROWS = (1, 8, 64, 256, 1024)


def _own(rows: int):
    return lambda: noise.uniforms(7, 123, rows, _DIM)


def _own_at(rows: int):
    seeds, indices = np.arange(rows, dtype=np.uint64), np.full(rows, 123, np.uint64)
    return lambda: noise.uniforms_at(seeds, indices, _DIM)


def _numpy(bits: type[np.random.BitGenerator]):
    def source(rows: int):
        generator = np.random.Generator(bits(1))
        return lambda: generator.random((rows, _DIM), np.float32)

    return source


SOURCES = {
    "kaem, one seed": _own,
    "kaem, a seed a row": _own_at,
    "numpy Philox": _numpy(np.random.Philox),
    "numpy PCG64": _numpy(np.random.PCG64),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rows", _ROWS)
@pytest.mark.benchmark(timer=time.process_time)
def bench_uniforms(benchmark, amount, source, rows):
    benchmark.group, benchmark.name = f"noise, {rows} x {_DIM}", source
    drawn = benchmark(SOURCES[source](rows))
    assert drawn.shape == (rows, _DIM)
    assert drawn.dtype == np.float32
    amount(rows * _DIM, "uniforms")
