"""One caller, whole calls: contestants interleaved in one run.

The clock is shared by everything else on the machine, so models are compared only within one run. Every launch
starts all contestants anew, each in a process of its own; then time is cut into short turns, and each round gives
every (contestant, scenario, batch size) one turn, in a fresh random order. A slow moment then falls on all of them
alike, and what is luck of one process shows in the spread between launches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from kaem.bench.energy import Counter, open_counters
from kaem.bench.record import QUANTILES, Entrant, LocalRow
from kaem.bench.scenarios.process import Contestant, Process
from kaem.bench.scenarios.worker import SETTLE_SHARE, TURN_S
from kaem.bench.statistics import MIN_BLOCKS, Estimate, Floats, gives_percentile, median_estimate, quantile_estimates
from kaem.errors import RequestError, VerificationError
from kaem.sampler import Images

MAX_STRETCH = 2
"""At most this many times the launches that were asked for, while an interval is still too wide."""

DEFAULT_BATCHES = {"single": (1,), "batch": (1, 8, 64, 256), "offline": (1024,)}
"""Batch sizes of each scenario. Offline: all images are wanted at once, and an engine cuts them as it likes."""

MAX_DIFFERENCE = 0.02
"""Largest difference of a pixel in [0, 1] between engines on one model: 5 of 255 levels; more is another model."""

_CHECKED_ROWS = 16

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much to measure.

    Attributes:
        seconds: Timed seconds of every row, at least, over all launches.
        launches: Starts of every contestant from nothing, at least; an interval needs 6.
        precision: Half-width of the interval of p50, relative to it, at which measuring may stop.
        seed: Seed of the noise and of the order of the turns.
        longest_s: Batch sizes whose call would take longer are left out; never the smallest of a contestant.

    Raises:
        RequestError: A value is out of range.
    """

    seconds: float = 1.0
    launches: int = 9
    precision: float = 0.02
    seed: int = 0
    longest_s: float = float("inf")

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise RequestError(f"seconds is {self.seconds}; it must be positive")
        if not self.longest_s > 0:
            raise RequestError(f"longest call is {self.longest_s} s; it must be positive")
        if not 0 < self.precision < 1:
            raise RequestError(f"precision is {self.precision}, outside 0 .. 1", hint="0.02 is 2 percent")
        if self.launches < 1:
            raise RequestError(f"launches is {self.launches}; at least 1 is needed")


@dataclass(slots=True)
class _Lane:
    """What has been measured of one contestant at one batch size; times by launch."""

    contestant: Contestant
    scenario: str
    batch: int
    wall_ms: list[Floats] = field(default_factory=list)
    cpu_ms: list[Floats] = field(default_factory=list)
    warm_calls: list[int] = field(default_factory=list)
    is_warm: bool = True
    next_start: int = 0
    turns: int = 0
    joules: float = 0.0
    counted: int = 0

    def p50(self) -> Estimate:
        return median_estimate([float(np.median(block)) for block in self.wall_ms])

    def is_precise(self, precision: float) -> bool:
        p50 = self.p50()
        return p50.low is not None and p50.high is not None and p50.high - p50.low <= 2 * precision * p50.value


@dataclass(slots=True)
class _Field:
    """The contestants of a run, and what launching them has shown."""

    contestants: Sequence[Contestant]
    settings: dict[int, dict[str, str]] = field(default_factory=dict)
    cold_s: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    peak_bytes: dict[int, int] = field(default_factory=dict)
    differences: dict[int, float] = field(default_factory=dict)

    def entrants(self) -> list[Entrant]:
        return [
            Entrant(
                source=contestant.job.source,
                engine=contestant.job.engine,
                threads=contestant.job.threads,
                settings=self.settings[id(contestant)],
                cold_s=tuple(self.cold_s[id(contestant)]),
                peak_bytes=self.peak_bytes[id(contestant)],
                difference=self.differences.get(id(contestant)),
            )
            for contestant in self.contestants
        ]


def measure(
    contestants: Sequence[Contestant],
    batches: Mapping[str, Sequence[int]],
    effort: Effort,
    *,
    on_progress: Progress = lambda share, text: None,
) -> tuple[list[Entrant], list[LocalRow]]:
    """Measure every contestant at every batch size of every scenario, interleaved.

    Args:
        contestants: What to compare.
        batches: Batch sizes by scenario, each at least 1.
        effort: How much to measure.
        on_progress: Called with the finished share, in [0, 1], and what is being done.

    Returns:
        What each contestant is, and a row for each (contestant, scenario, batch size), in that order.

    Raises:
        RequestError: No batch size, or one below 1.
        VerificationError: Two engines make different images of one model.
        KaemError: A contestant cannot be opened, or fails.
    """
    sizes = [size for group in batches.values() for size in group]
    if not sizes or min(sizes) < 1:
        raise RequestError(f"batch sizes are {sizes}; each must be at least 1")
    entered = _Field(contestants)
    lanes = [
        _Lane(contestant, scenario, batch)
        for contestant in contestants
        for scenario, group in batches.items()
        for batch in group
    ]
    order = random.Random(effort.seed)  # noqa: S311  (the order of turns is no secret)
    counters = open_counters()
    most = MAX_STRETCH * effort.launches
    if most < MIN_BLOCKS:  # no interval either way: a quick look
        most = effort.launches
    for launch in range(most):
        if launch >= effort.launches and all(lane.is_precise(effort.precision) for lane in lanes):
            break
        total = effort.launches if launch < effort.launches else most
        on_progress(launch / total, f"launch {launch + 1} of {effort.launches} to {most}")
        _launch(entered, lanes, effort, order, counters)
    on_progress(1.0, "done")
    return entered.entrants(), [_row(lane, effort, has_energy=bool(counters)) for lane in lanes]


def _launch(
    entered: _Field, lanes: list[_Lane], effort: Effort, order: random.Random, counters: Sequence[Counter]
) -> None:
    """Start every contestant, warm every lane, and take turns until each has had its share of the time.

    The first launch takes those lanes out of `lanes` whose calls would take too long.
    """
    with ExitStack() as stack:
        processes: dict[int, Process] = {}
        for contestant in order.sample(entered.contestants, len(entered.contestants)):
            key = id(contestant)
            processes[key] = process = stack.enter_context(Process(contestant))
            entered.cold_s.setdefault(key, []).append(process.cold_s)
            entered.settings[key] = process.settings
        if not lanes[0].wall_ms:
            entered.differences = _differences([processes[id(one)] for one in entered.contestants], effort.seed)
        typical_s: dict[int, float] = {}
        # At the first launch ascending, for a size tells how long the next would take.
        is_first = not lanes[0].wall_ms
        for lane in sorted(lanes, key=lambda one: one.batch) if is_first else order.sample(lanes, len(lanes)):
            if is_first and _would_take_s(lane, lanes, typical_s) > effort.longest_s:
                continue
            warm = processes[id(lane.contestant)].ask("warm", batch=lane.batch, seed=effort.seed)
            lane.warm_calls.append(warm["calls"])
            lane.is_warm = lane.is_warm and warm["is_settled"]
            typical_s[id(lane)] = warm["typical_s"]
        lanes[:] = [lane for lane in lanes if id(lane) in typical_s]
        settled = {key: seconds < SETTLE_SHARE * TURN_S for key, seconds in typical_s.items()}
        spent = dict.fromkeys(map(id, lanes), 0.0)
        turns: dict[int, list[tuple[Floats, Floats]]] = {id(lane): [] for lane in lanes}
        while min(spent.values()) < 1e3 * effort.seconds / effort.launches:
            for lane in order.sample(lanes, len(lanes)):
                wall, cpu = _turn(lane, processes[id(lane.contestant)], effort.seed, counters, settle=settled[id(lane)])
                turns[id(lane)].append((wall, cpu))
                spent[id(lane)] += float(wall.sum())
        for lane in lanes:
            lane.wall_ms.append(np.concatenate([wall for wall, _ in turns[id(lane)]]))
            lane.cpu_ms.append(np.concatenate([cpu for _, cpu in turns[id(lane)]]))
        for key, process in processes.items():
            peak = process.ask("peak")["peak_bytes"]
            entered.peak_bytes[key] = max(entered.peak_bytes.get(key, 0), peak)


def _would_take_s(lane: _Lane, lanes: Sequence[_Lane], typical_s: Mapping[int, float]) -> float:
    """Return how long a call may take, from the contestant's largest smaller size; 0 for its smallest."""
    smaller = [one for one in lanes if one.contestant is lane.contestant and one.batch < lane.batch]
    if not smaller:
        return 0.0
    known = [one for one in smaller if id(one) in typical_s]
    largest = max(known, key=lambda one: one.batch)
    return typical_s[id(largest)] * lane.batch / largest.batch


def _turn(
    lane: _Lane, process: Process, seed: int, counters: Sequence[Counter], *, settle: bool
) -> tuple[Floats, Floats]:
    """Return the wall and processor times of one turn, in milliseconds."""
    for counter in counters:
        counter.joules()
    turn = process.ask("turn", batch=lane.batch, seed=seed, start=lane.next_start, settle=settle)
    lane.joules += sum(counter.joules() for counter in counters)
    lane.counted += len(turn["wall_ms"]) + settle
    lane.turns += 1
    lane.next_start = turn["next"]
    return np.asarray(turn["wall_ms"]), np.asarray(turn["cpu_ms"])


def _differences(processes: Sequence[Process], seed: int) -> dict[int, float]:
    """Compare the images of all engines on one model with those of its first, before anything is timed."""
    first: dict[str, tuple[str, Images]] = {}
    found = {}
    for process in processes:
        job = process.contestant.job
        if process.has_own_noise:
            continue
        images = process.images(_CHECKED_ROWS, seed)
        if job.source not in first:
            first[job.source] = job.engine, images
            continue
        name, expected = first[job.source]
        if images.shape != expected.shape or images.dtype != expected.dtype:
            raise VerificationError(
                f"{job.engine} makes {images.dtype} images of shape {images.shape} of {job.source}, "
                f"{name} {expected.dtype} of {expected.shape}"
            )
        scale = 255.0 if images.dtype == np.uint8 else 1.0
        largest = float(np.abs(images.astype(np.float64) - expected).max() / scale)
        if not largest <= MAX_DIFFERENCE:
            raise VerificationError(
                f"{job.engine} and {name} differ by {largest:.3g} in a pixel of {job.source}; "
                f"{MAX_DIFFERENCE:g} is the limit",
                hint="a speed is only compared between engines that make the same images",
            )
        found[id(process.contestant)] = largest
    return found


def _row(lane: _Lane, effort: Effort, *, has_energy: bool) -> LocalRow:
    job = lane.contestant.job
    calls = sum(map(len, lane.wall_ms))
    p90, p99 = quantile_estimates(lane.wall_ms, (0.9, 0.99))
    cpu = [float(np.median(block)) for block in lane.cpu_ms]
    speeds = [1e3 * lane.batch * len(block) / float(block.sum()) for block in lane.wall_ms]
    return LocalRow(
        scenario=lane.scenario,
        source=job.source,
        engine=job.engine,
        threads=job.threads,
        batch=lane.batch,
        calls=calls,
        turns=lane.turns,
        is_precise=lane.is_precise(effort.precision),
        warm_calls=int(np.median(lane.warm_calls)),
        is_warm=lane.is_warm,
        p50_ms=lane.p50(),
        p90_ms=p90 if gives_percentile(90, calls) else None,
        p99_ms=p99 if gives_percentile(99, calls) else None,
        cpu_ms=median_estimate(cpu),
        images_per_s=median_estimate(speeds),
        joules_per_image=lane.joules / (lane.batch * lane.counted) if has_energy else None,
        launch_p50_ms=tuple(float(np.median(block)) for block in lane.wall_ms),
        launch_cpu_ms=tuple(cpu),
        quantiles_ms=tuple(float(value) for value in np.quantile(np.concatenate(lane.wall_ms), QUANTILES)),
    )
