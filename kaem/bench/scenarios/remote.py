"""The server scenario: rates of an open loop against a kaem server, and the highest rate that meets an objective."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from kaem.bench.record import Search, ServerRow
from kaem.bench.scenarios.arrivals import Arrival, Kind, poisson_arrivals
from kaem.bench.scenarios.open_loop import (
    COMPLETED,
    REJECTED,
    TIMED_OUT,
    CallError,
    RequestOutcome,
    Watch,
    drive,
    run_precisely,
)
from kaem.bench.statistics import (
    MAX_BLOCKS,
    MIN_BEYOND,
    Estimate,
    Floats,
    gives_percentile,
    quantile_estimates,
)
from kaem.client import connect
from kaem.client.addresses import parse_targets
from kaem.client.connection import channel_options
from kaem.errors import RemoteError, RequestError
from kaem.protocol import kaem_pb2

WARM_SHARE = 0.1
"""The first tenth of a run is sent but not counted: connections open, queues fill, caches warm."""

LATE_LAG_MS = 1.0
LATE_SHARE = 0.1
BUSY_CPU = 0.9
"""A generator is late if its p99 lag is more than a millisecond and a tenth of p50, or if it used this much of a core
and sent less than 98 % of the requests that were due in time."""

SEARCH_FACTOR = 1.1
"""The search ends when the lowest rate that missed is at most this many times the highest that met."""

_PERCENTS = (50, 90, 99)
_SAMPLE = "/kaem.v1.Sampler/Sample"
_STREAM = "/kaem.v1.Sampler/StreamSamples"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyObjective:
    """A percentile of the time to the last chunk, over all requests that arrived, and its limit in milliseconds."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.limit_ms:g} ms"

    def is_met(self, times_ms: Floats) -> bool:
        """Whether at least this percentage of the requests stayed within the limit; an unanswered one did not."""
        return bool(np.mean(times_ms <= self.limit_ms) >= self.percent / 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How a server is loaded.

    Attributes:
        mix: Kinds of requests.
        duration_s: Seconds of arrivals at each rate.
        deadline_s: Seconds after it was due at which a request has failed.
        seed: Seed of the arrivals and of the samples asked for.
        objective: What a rate must meet, or None.

    Raises:
        RequestError: A value is not positive, or a percentile needs more requests than could arrive.
    """

    mix: tuple[Kind, ...]
    duration_s: float = 20.0
    deadline_s: float = 1.0
    seed: int = 0
    objective: LatencyObjective | None = None

    def __post_init__(self) -> None:
        for name in ("duration_s", "deadline_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise RequestError(f"{name.removesuffix('_s')} is {getattr(self, name):g} s; it must be positive")
        if self.objective is not None and self.objective.limit_ms > 1e3 * self.deadline_s:
            raise RequestError(
                f"the objective {self.objective} lies beyond the deadline of {self.deadline_s:g} s",
                hint="give a longer --deadline",
            )


Watcher = Callable[[float, Watch], None]
"""Told the rate and what can be seen of it, a few times a second."""


class ServerUnderLoad:
    """A kaem server under load.

    Args:
        address: `grpc://host:port`.
        seed: Seed of the samples asked for.
        timeout_s: How long to wait for the server to be ready.

    Raises:
        KaemError: No kaem server answers there.
    """

    def __init__(self, address: str, *, seed: int, timeout_s: float = 10.0) -> None:
        with connect(address, timeout_s=timeout_s) as sampler:
            self.model = sampler.manifest.name
            self.image_bytes = sampler.manifest.image_bytes
            self.numerics_id = sampler.numerics_id
            self.max_sample_rows = sampler.max_sample_rows
        self.address = address
        [self._server] = parse_targets(address)
        self._seed = seed

    def run(self, rate: float, load: Load, on_watch: Watcher = lambda rate, watch: None) -> list[ServerRow]:
        """Load the server at one rate.

        Returns:
            A row for all requests together, and one for each kind where there are several.

        Raises:
            RemoteError: The server cannot be reached at all.
        """
        arrivals = poisson_arrivals(rate, load.duration_s, load.mix, load.seed)
        outcomes, most, cpu = self._drive(rate, arrivals, load, on_watch)
        outcomes = [one for one in outcomes if one.arrival.at_s >= WARM_SHARE * load.duration_s]
        if not outcomes:
            raise RequestError(
                f"at {rate:g}/s nothing arrives in {load.duration_s:g} s",
                hint="give a higher rate or a longer duration",
            )
        if {one.status for one in outcomes} == {"UNAVAILABLE"}:
            raise RemoteError(f"{self.address} has stopped answering", hint="check that `kaem serve` still runs there")
        kinds: list[Kind | None] = [None, *(load.mix if len(load.mix) > 1 else ())]
        return [
            row_of(outcomes, kind, target=self.address, rate=rate, load=load, most_in_flight=most, cpu=cpu)
            for kind in kinds
            if kind is None or any(one.arrival.kind == kind for one in outcomes)
        ]

    def _drive(
        self, rate: float, arrivals: list[Arrival], load: Load, on_watch: Watcher
    ) -> tuple[list[RequestOutcome], int, float]:
        watch = Watch(len(arrivals))

        async def report() -> None:
            while True:
                on_watch(rate, watch)
                await asyncio.sleep(0.25)

        async def main() -> list[RequestOutcome]:
            options = channel_options(self._server)
            async with grpc.aio.insecure_channel(self._server.address, options) as channel:
                await asyncio.wait_for(channel.channel_ready(), timeout=10)
                reporter = asyncio.create_task(report())
                try:
                    return await drive(arrivals, self._caller(channel), deadline_s=load.deadline_s, watch=watch)
                finally:
                    reporter.cancel()

        try:
            outcomes, cpu = run_precisely(main)
        except TimeoutError:
            raise RemoteError(f"no kaem server answers at {self.address}", hint="is it still running?") from None
        on_watch(rate, watch)
        return outcomes, watch.most_in_flight, cpu

    def _caller(self, channel: grpc.aio.Channel) -> Callable[[Arrival, float], AsyncIterator[int]]:
        # Answers are left as bytes until their arrival has been timed.
        write = kaem_pb2.SampleRequest.SerializeToString
        sample = channel.unary_unary(_SAMPLE, request_serializer=write, response_deserializer=None)
        stream = channel.unary_stream(_STREAM, request_serializer=write, response_deserializer=None)

        async def call(arrival: Arrival, left_s: float) -> AsyncIterator[int]:
            request = kaem_pb2.SampleRequest(
                seed=self._seed,
                start_index=arrival.start,
                count=arrival.kind.images,
                expected_numerics_id=self.numerics_id,
            )
            try:
                if arrival.kind.images <= self.max_sample_rows:
                    yield kaem_pb2.Chunk.FromString(await sample(request, timeout=left_s)).count
                else:
                    async for message in stream(request, timeout=left_s):
                        yield kaem_pb2.Chunk.FromString(message).count
            except grpc.aio.AioRpcError as error:
                raise CallError(error.code().name) from None

        return call


def row_of(
    outcomes: Sequence[RequestOutcome],
    kind: Kind | None,
    *,
    target: str,
    rate: float,
    load: Load,
    most_in_flight: int,
    cpu: float,
) -> ServerRow:
    """Return the figures of the requests of one kind, or of all.

    Args:
        outcomes: Outcomes of the counted part of one run.
        kind: Which, or None for all.
        target: The server.
        rate: Rate of all arrivals.
        load: How the server was loaded.
        most_in_flight: Largest number of calls in flight during the run.
        cpu: Share of one core that the generator used.
    """
    chosen = [one for one in outcomes if kind is None or one.arrival.kind == kind]
    begin, end = WARM_SHARE * load.duration_s, load.duration_s
    due = np.array([one.arrival.at_s for one in chosen])
    first = 1e3 * (np.array([math.inf if one.first_s is None else one.first_s for one in chosen]) - due)
    last = 1e3 * (np.array([math.inf if one.last_s is None else one.last_s for one in chosen]) - due)
    lag = 1e3 * (np.array([one.sent_s for one in chosen]) - due)
    stretch = np.minimum((due - begin) / (end - begin) * MAX_BLOCKS, MAX_BLOCKS - 1).astype(int)
    statuses: dict[str, int] = {}
    for one in chosen:
        statuses[one.status] = statuses.get(one.status, 0) + 1
    completed = statuses.get(COMPLETED, 0)
    rejected, timed_out = statuses.get(REJECTED, 0), statuses.get(TIMED_OUT, 0)
    images = sum(one.arrival.kind.images for one in chosen if one.status == COMPLETED)
    lag_p99 = float(np.quantile(lag, 0.99))
    sent_in_time = sum(1 for one in chosen if one.sent_s <= end)
    median = float(np.median(last))
    goal = load.objective if kind is None else None
    if goal is not None and not gives_percentile(goal.percent, len(chosen)):
        goal = None
    return ServerRow(
        target=target,
        rate=rate,
        kind=kind.name if kind else "all" if len(load.mix) > 1 else load.mix[0].name,
        images=kind.images if kind else 0 if len(load.mix) > 1 else load.mix[0].images,
        arrivals=len(chosen),
        completed=completed,
        timed_out=timed_out,
        rejected=rejected,
        failed=len(chosen) - completed - rejected - timed_out,
        statuses=statuses,
        sent_per_s=sent_in_time / (end - begin),
        goodput_per_s=completed / (end - begin),
        images_per_s=images / (end - begin),
        first_ms=_percentiles(first, stretch),
        last_ms=_percentiles(last, stretch),
        block_p50_ms=tuple(float(np.median(last[stretch == part])) for part in np.unique(stretch)),
        most_in_flight=most_in_flight,
        lag_p99_ms=lag_p99,
        generator_cpu=cpu,
        is_generator_late=is_late(lag_p99, median, cpu, sent_in_time / len(chosen)),
        meets=goal.is_met(last) if goal is not None else None,
    )


def is_late(lag_p99_ms: float, p50_ms: float, cpu: float, sent_share: float) -> bool:
    """Whether the generator, rather than the server, shapes the figures, by the rule at the top of this file."""
    return (lag_p99_ms > LATE_LAG_MS and lag_p99_ms > LATE_SHARE * p50_ms) or (cpu > BUSY_CPU and sent_share < 0.98)


def search_rate(
    meets: Callable[[float], bool], known: Sequence[tuple[float, bool]], *, lowest: float = 1.0, highest: float = 1e5
) -> tuple[float | None, float | None]:
    """Find the highest rate that meets an objective: double until one misses, then halve the gap on a log scale.

    Args:
        meets: Runs one rate.
        known: Rates run already and whether they met it.
        lowest: Rate below which nothing is tried.
        highest: Rate above which nothing is tried.

    Returns:
        The highest rate that met it and the lowest above it that did not; None where there is none.
    """
    tried = dict(known)
    while True:
        missed = min((rate for rate, met in tried.items() if not met), default=None)
        met = max((rate for rate, ok in tried.items() if ok and (missed is None or rate < missed)), default=None)
        if met is None and missed is None:
            following = max(10.0, lowest)
        elif missed is None:
            following = 2.0 * (met or 0.0)
        elif met is None:
            following = max(lowest, missed / 2.0)
        elif missed <= SEARCH_FACTOR * met:
            return met, missed
        else:
            following = math.sqrt(met * missed)
        following = max(lowest, float(f"{following:.3g}"))
        if not lowest <= following <= highest or following in tried:
            return met, missed
        tried[following] = meets(following)


def lowest_judged(objective: LatencyObjective, duration_s: float) -> float:
    """Lowest rate at which enough requests are counted in a run to speak of the objective's percentile."""
    requests = 1.2 * MIN_BEYOND * 100 / (100 - objective.percent)  # a fifth more: their number is itself random
    return max(1.0, float(math.ceil(requests / ((1 - WARM_SHARE) * duration_s))))


def search_target(
    target: ServerUnderLoad, rows: list[ServerRow], load: Load, on_watch: Watcher = lambda rate, watch: None
) -> Search:
    """Search on from the rates that were run; every further rate's rows are appended to `rows`.

    Raises:
        RequestError: There is no objective.
    """
    if load.objective is None:
        raise RequestError("a search needs an objective", hint="give --slo p99=50ms")

    def meets(rate: float) -> bool:
        found = target.run(rate, load, on_watch)
        rows.extend(found)
        return bool(found[0].meets)

    known = [(row.rate, row.meets) for row in rows if row.target == target.address and row.meets is not None]
    met, missed = search_rate(meets, known, lowest=lowest_judged(load.objective, load.duration_s))
    return Search(target=target.address, objective=str(load.objective), highest_met=met, lowest_missed=missed)


def _percentiles(times_ms: Floats, stretch: np.ndarray) -> tuple[Estimate | None, ...]:
    blocks = [times_ms[stretch == part] for part in np.unique(stretch)]
    estimates = quantile_estimates(blocks, [percent / 100 for percent in _PERCENTS])
    return tuple(
        estimate if gives_percentile(percent, len(times_ms)) else None
        for percent, estimate in zip(_PERCENTS, estimates, strict=True)
    )
