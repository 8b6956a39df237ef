"""How fast samplers are: latency percentiles and throughput, models interleaved in one run.

The clock is shared by everything else on the machine, so models are compared only within one run: time is cut
into short turns, and each round gives every (model, batch size) pair one turn, in a fresh random order. A slow
moment then falls on all of them alike.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from kaem.errors import RequestError
from kaem.sampler import Sampler

TURN_S = 0.05
"""Length of one turn: long against a context switch, short against the moods of a shared machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Calls of one model at one batch size; latencies in milliseconds, wall time of one whole call each."""

    model: str
    batch: int
    latencies_ms: tuple[float, ...] = field(repr=False)

    @property
    def calls(self) -> int:
        """Number of timed calls."""
        return len(self.latencies_ms)

    @property
    def images_per_s(self) -> float:
        """Images of all timed calls over their total time."""
        return 1e3 * self.batch * self.calls / sum(self.latencies_ms)

    def percentile_ms(self, percent: float) -> float:
        """Latency below which `percent` of the calls stayed, in milliseconds."""
        return float(np.percentile(self.latencies_ms, percent))


def measure(
    samplers: Mapping[str, Sampler],
    batches: Sequence[int],
    *,
    seconds: float,
    seed: int = 0,
    on_round: Callable[[float], None] = lambda _: None,
) -> list[Measurement]:
    """Time `sampler.sample(batch, seed, start)` for every model and batch size, interleaved.

    Args:
        samplers: Models by the name to report; local or remote.
        batches: Batch sizes, each at least 1.
        seconds: Timed seconds for each pair, after one untimed warm-up turn; every pair gets at least 3 calls.
        seed: Of the noise, and of the order of the turns.
        on_round: Called after each round with the finished share, in [0, 1].

    Returns:
        One measurement per pair, in the order of `samplers`, then `batches`.

    Raises:
        RequestError: No batch size, one below 1, or a time that is not positive.
    """
    if not batches or min(batches) < 1:
        raise RequestError(f"batch sizes are {list(batches)}; each must be at least 1")
    if not seconds > 0:
        raise RequestError(f"seconds is {seconds}; it must be positive")
    pairs = [(name, batch) for name in samplers for batch in batches]
    latencies: dict[tuple[str, int], list[float]] = {pair: [] for pair in pairs}
    starts = dict.fromkeys(pairs, 0)
    order = random.Random(seed)  # noqa: S311  (the order of turns is no secret)

    def turn(pair: tuple[str, int]) -> list[float]:
        name, batch = pair
        taken: list[float] = []
        while sum(taken) < 1e3 * TURN_S:
            begin = time.perf_counter()
            samplers[name].sample(batch, seed, starts[pair])
            taken.append(1e3 * (time.perf_counter() - begin))
            starts[pair] += batch
        return taken

    for pair in pairs:
        turn(pair)
    is_done = False
    while not is_done:
        for pair in order.sample(pairs, len(pairs)):
            latencies[pair] += turn(pair)
        shares = [min(sum(taken) / (1e3 * seconds), len(taken) / 3) for taken in latencies.values()]
        is_done = min(shares) >= 1
        on_round(min(1.0, *shares))
    return [Measurement(model=name, batch=batch, latencies_ms=tuple(latencies[name, batch])) for name, batch in pairs]


def describe_machine() -> dict[str, str]:
    """Return what a reader must know to place the figures: processor, cores, load, versions, date."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy", "grpcio"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load before": f"{load:.2f}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
