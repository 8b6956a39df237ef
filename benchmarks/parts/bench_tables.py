"""What it costs to bake quantile tables, and to look up in them beside what others do.

    python -m pytest benchmarks/parts/bench_tables.py

Times are processor time of one thread. Baking is what `kaem export` does for every function of a prior: fit, run the
float32 graph, refine; one call is four functions of a family of `zoo.py`. Looking up is the graph of an artifact
in ONNX Runtime, 100 functions, beside those of `table_rivals.py`, which answer the same draws: compare-sum-gather less
exactly, scipy's PINV for one function alone. How exact and how large tables are is `benchmarks/tables.py`'s to say.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
from table_rivals import compare_sum_gather, own_lookup, plain_uniforms, rbf_laws, scipys_pinv
from zoo import ZOO

from kaem.noise import uniforms
from kaem_export.tables.fit_tables import SCORE_BOUND, bake

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.benchmark(timer=time.process_time)]

_FAMILIES = ("near flat", "rbf20 f 8", "morlet 5", "splines 3", "spikes 1e-3")
_COLUMNS = 100
_laws = cache(lambda: rbf_laws(_COLUMNS))


def _kaem(v):
    session = own_lookup(bake(_laws()).tables)
    return lambda: session.run(None, {"uniform": v})[0]


def _compare_sum_gather(v):
    session, plain = compare_sum_gather(_laws()), plain_uniforms(v)
    return lambda: session.run(None, {"uniform": plain})[0]


def _pinv(v):
    inverse, u = scipys_pinv(), plain_uniforms(v).astype(np.float64).reshape(-1)
    return lambda: inverse.ppf(u).reshape(v.shape)


LOOKUPS = {"kaem's graph": _kaem, "compare-sum-gather": _compare_sum_gather, "scipy's PINV": _pinv}


@pytest.mark.parametrize("family", _FAMILIES)
def bench_baking(benchmark, amount, family):
    laws = ZOO[family].laws()
    benchmark.group, benchmark.name = f"baking {len(laws)} tables", family
    baked = benchmark(bake, laws)
    assert baked.measured.score <= SCORE_BOUND
    benchmark.extra_info["kB a function"] = baked.tables.num_bytes / 1000 / len(laws)
    amount(len(laws), "functions")


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("rows", [1, 64, 256])
def bench_lookup(benchmark, amount, lookup, rows):
    v = uniforms(1, 0, rows, _COLUMNS)
    benchmark.group, benchmark.name = f"quantiles, {rows} x {_COLUMNS}", lookup
    quantiles = benchmark(LOOKUPS[lookup](v))
    assert quantiles.shape == v.shape
    # Of the first function, which all have: F is increasing, so quantiles are in the order of their uniforms.
    assert (np.diff(quantiles[plain_uniforms(v)[:, 0].argsort(), 0]) >= 0).all()
    amount(v.size, "quantiles")
