"""Send requests when they are due, whatever became of the earlier ones, and time each from when it was due.

A server that stalls for a second is then charged with the wait of everybody who came in that second. What the
generator itself is late by is recorded beside it: it is part of every latency, and must be small to mean nothing.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kaem.bench.scenarios.arrivals import Arrival

COMPLETED = "OK"
TIMED_OUT = "DEADLINE_EXCEEDED"
REJECTED = "RESOURCE_EXHAUSTED"

Result = TypeVar("Result")


class CallError(Exception):
    """A request ended with a gRPC status other than OK.

    Args:
        status: The status' name.
    """

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


Call = Callable[[Arrival, float], AsyncIterator[int]]
"""Sends one request, given the seconds until its deadline; yields the images of each chunk, raises `CallError`."""


@dataclass(slots=True)
class RequestOutcome:
    """What became of one request; times in seconds from the start of the run.

    Attributes:
        arrival: The request.
        sent_s: When it was really sent; it was due at `arrival.at_s`.
        first_s: When its first chunk was here, None if it never was.
        last_s: When all its images were here within the deadline, None if they never were.
        status: Name of its gRPC status.
    """

    arrival: Arrival
    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    status: str = COMPLETED


@dataclass(slots=True)
class Watch:
    """What can be seen while a run goes on.

    Attributes:
        total: Requests of the run.
        sent: Requests sent.
        in_flight: Number of these that have not ended yet.
        most_in_flight: Largest such number so far.
        statuses: Ended requests by status.
    """

    total: int
    sent: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    statuses: dict[str, int] = field(default_factory=dict)


async def drive(
    arrivals: Sequence[Arrival], call: Call, *, deadline_s: float, watch: Watch | None = None
) -> list[RequestOutcome]:
    """Send every arrival when it is due and wait for all to end.

    Time is the event loop's, so that a test may run it on a clock of its own.

    Args:
        arrivals: In the order of their times.
        call: Sends one.
        deadline_s: Seconds after its due time at which a request has failed.
        watch: Kept up to date.

    Returns:
        An outcome for each arrival, in order.
    """
    loop = asyncio.get_running_loop()
    watch = watch or Watch(len(arrivals))
    outcomes: list[RequestOutcome] = []
    tasks: set[asyncio.Task[None]] = set()
    zero = loop.time()
    for arrival in arrivals:
        # Also where it is late already: others must get to run.
        await asyncio.sleep(max(0.0, zero + arrival.at_s - loop.time()))
        outcome = RequestOutcome(arrival, sent_s=loop.time() - zero)
        outcomes.append(outcome)
        watch.sent += 1
        task = loop.create_task(_follow(outcome, call, zero, deadline_s, watch))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    return outcomes


async def _follow(outcome: RequestOutcome, call: Call, zero: float, deadline_s: float, watch: Watch) -> None:
    """Make one call and write down what became of it."""
    loop, arrival = asyncio.get_running_loop(), outcome.arrival
    watch.in_flight += 1
    watch.most_in_flight = max(watch.most_in_flight, watch.in_flight)
    images = 0
    try:
        outcome.sent_s = loop.time() - zero
        left = zero + arrival.at_s + deadline_s - loop.time()
        if left <= 0:
            raise CallError(TIMED_OUT)  # the generator itself came too late; its lag says so
        async with asyncio.timeout(left):
            async with aclosing(call(arrival, left)) as chunks:  # type: ignore[type-var]  # calls are generators
                async for num in chunks:
                    images += num
                    if outcome.first_s is None:
                        outcome.first_s = loop.time() - zero
        if images != arrival.kind.images:
            raise CallError("DATA_LOSS")
        outcome.last_s = loop.time() - zero
    except TimeoutError:
        outcome.status = TIMED_OUT
    except CallError as error:
        outcome.status = error.status
    finally:
        watch.in_flight -= 1
        watch.statuses[outcome.status] = watch.statuses.get(outcome.status, 0) + 1


def run_precisely(main: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Result, float]:
    """Run a coroutine in a loop whose timers are exact, without pauses for garbage; return it and its share of a core.

    asyncio's usual selectors round waiting up to whole milliseconds; `select` takes microseconds.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            cpu, wall = time.process_time(), time.perf_counter()
            result = runner.run(main())
            return result, (time.process_time() - cpu) / (time.perf_counter() - wall)
    finally:
        if was_enabled:
            gc.enable()
