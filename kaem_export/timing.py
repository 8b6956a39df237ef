"""How long graphs take, compared so that a busy machine cannot decide the comparison.

All graphs run in turn, in a new random order every round, each on one thread whose own processor time is counted: time
that other processes take is not in it. What is reported of two graphs is the median over rounds of the ratio within a
round, with a 95 % interval from the order statistics, which assumes nothing about how times are distributed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kaem.backend import open_session
from kaem.noise import uniforms

_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median and the ends of its 95 % interval."""

    median: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval does not hold a value."""
        return not self.low <= value <= self.high


def estimate(samples: NDArray[np.float64]) -> Estimate:
    """Return the median of samples (R,) with the interval that holds the true one in 95 of 100 repetitions.

    With fewer than six samples no such interval exists; it is then the whole line.
    """
    from scipy import stats  # slow to load, and few exports measure anything

    ordered = np.sort(samples)
    rank = int(stats.binom.ppf(0.025, len(ordered), 0.5))
    if rank < 1:
        return Estimate(median=float(np.median(ordered)), low=-np.inf, high=np.inf)
    return Estimate(median=float(np.median(ordered)), low=float(ordered[rank - 1]), high=float(ordered[-rank]))


def thread_seconds(
    models: Sequence[onnx.ModelProto],
    batch: int,
    *,
    seconds: float,
    least_rounds: int = 9,
    rows_per_call: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Time graphs of one input and an output `image` against each other.

    Args:
        models: Graphs with the same input.
        batch: Rows to compute.
        seconds: About how long to measure.
        rows_per_call: For every graph how many rows one call may have, 0 for all of them; by default all for all.
        least_rounds: But never fewer rounds than these.

    Returns:
        Processor seconds of every round and graph: shape (R, models).
    """
    source = models[0].graph.input[0]
    rows = uniforms(_SEED, 0, batch, source.type.tensor_type.shape.dim[1].dim_value)
    sessions = [open_session(model.SerializeToString(), "cpu", source="the graph") for model in models]
    limits = rows_per_call or [0] * len(models)
    calls = [
        partial(_in_parts, session, source.name, rows, limit or batch)
        for session, limit in zip(sessions, limits, strict=True)
    ]
    return interleaved(calls, time.thread_time, seconds=seconds, least_rounds=least_rounds)


def _in_parts(session: Any, name: str, rows: NDArray[np.float32], limit: int) -> None:
    for first in range(0, len(rows), limit):
        session.run(["image"], {name: rows[first : first + limit]})


def interleaved(
    calls: Sequence[Callable[[], object]],
    clock: Callable[[], float],
    *,
    seconds: float,
    least_rounds: int = 9,
    rest: float = 0.0,
) -> NDArray[np.float64]:
    """Run every call once a round, in a new random order each: clock readings (R, calls), without two first rounds.

    Args:
        calls: What is compared.
        clock: Seconds, of the thread or on the wall.
        seconds: How long to go on.
        least_rounds: However long that takes.
        rest: Seconds of sleep before every call, until threads of the one before that spin have given up.
    """
    order = np.random.default_rng(_SEED)
    rounds: list[NDArray[np.float64]] = []
    begin = time.monotonic()
    while len(rounds) < least_rounds + 2 or time.monotonic() - begin < seconds:
        row = np.empty(len(calls))
        for index in order.permutation(len(calls)):
            if rest:
                time.sleep(rest)
            before = clock()
            calls[index]()
            row[index] = clock() - before
        rounds.append(row)
    return np.array(rounds[2:])


def speedup(seconds: NDArray[np.float64], graph: int, baseline: int) -> Estimate:
    """Return how many times faster one graph is than another, from times as above."""
    return estimate(seconds[:, baseline] / seconds[:, graph])
