"""The record of one run, and the JSON it is kept in; docs/benchmarks.md describes every field.

Format versions (bump for a change that an older reader would misread):
    1   first version
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kaem.bench.statistics import Estimate
from kaem.errors import ArtifactError
from kaem.files import replacing

FORMAT = "kaem-bench"
FORMAT_VERSION = 1

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good a model's images are, as `kaem eval` measured it.

    Attributes:
        figure: Its name there: the Frechet distance extrapolated to infinitely many samples; smaller is better.
        value: The number.
        standard_error: Standard error of the extrapolation.
        network: Whose features were compared.
        num_generated: Images drawn.
        num_real: Real images they were compared with.
        weights: `sha256:` digest of the weights.
        sampling: How they were sampled.
    """

    figure: str
    value: float
    standard_error: float | None
    network: str
    num_generated: int
    num_real: int
    weights: str
    sampling: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One contestant: what it is and what does not depend on the batch.

    Attributes:
        source: Model file, checkpoint or server.
        engine: Name of the engine.
        threads: Threads asked for.
        settings: What really ran: provider, precision, versions.
        cold_s: Seconds of each start from nothing, by phase: start, import, load, first_image, total.
        peak_bytes: Largest resident memory of its process; of the client's, for a server.
        difference: Largest difference of a pixel from the first engine on the same model, where both make the
            same samples; in [0, 1].
        family: Family of the model, where it is known.
        updates: Optimiser steps that its weights have had; 0 for untrained ones, None where it is not known.
        quality: Quality of its images, where an evaluation of this very model was given.
    """

    source: str
    engine: str
    threads: int
    settings: dict[str, str]
    cold_s: tuple[dict[str, float], ...]
    peak_bytes: int
    difference: float | None = None
    family: str = ""
    updates: int | None = None
    quality: Quality | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What names it within a run."""
        return self.source, self.engine, self.threads


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRow:
    """Calls of one contestant at one batch size. Times are of whole calls, noise included.

    Attributes:
        scenario: "single", "batch" or "offline".
        source: As in `Entrant`, with the engine and the threads.
        batch: Images a call.
        calls: Timed calls.
        turns: Turns they were timed in.
        is_precise: Whether the interval of p50 became as narrow as was asked.
        warm_calls: Calls of a launch before timing began, median over launches.
        is_warm: Whether times had settled by then, in every launch.
        p50_ms: Median wall time of a call of a launch, median over launches.
        p90_ms: 90th percentile of the wall time of all calls, where they are enough for it; p99_ms likewise.
        cpu_ms: Median processor time of a call, all threads of the process, median over launches.
        images_per_s: Images over the time of the calls of a launch, median over launches.
        joules_per_image: Energy that the whole machine used during its turns, for each image, where that is counted.
        launch_p50_ms: Median wall time of each launch, in order; launch i of one row ran beside launch i of another.
        launch_cpu_ms: The same of processor time.
        quantiles_ms: Wall time at `QUANTILES`, for plotting.
        is_untrained: Whether the weights have never been trained: then only the speed of their shapes is measured.
    """

    scenario: str
    source: str
    engine: str
    threads: int
    batch: int
    calls: int
    turns: int
    is_precise: bool
    warm_calls: int
    is_warm: bool
    p50_ms: Estimate
    p90_ms: Estimate | None
    p99_ms: Estimate | None
    cpu_ms: Estimate
    images_per_s: Estimate
    joules_per_image: float | None
    launch_p50_ms: tuple[float, ...]
    launch_cpu_ms: tuple[float, ...]
    quantiles_ms: tuple[float, ...]
    is_untrained: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """Of its contestant."""
        return self.source, self.engine, self.threads


QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """Requests of one kind at one rate. Times run from the intended start; a request without its answer took for ever.

    Attributes:
        target: The server.
        rate: Requests a second that were meant to arrive, of all kinds together.
        kind: Kind of request, or "all".
        images: Images a request; 0 for "all" kinds of a mix.
        arrivals: Requests counted.
        completed: Answered whole, within the deadline.
        timed_out: Not answered whole by the deadline.
        rejected: Refused with RESOURCE_EXHAUSTED: the server said no instead of keeping one waiting.
        failed: Everything else that went wrong.
        statuses: Number of requests by gRPC status.
        sent_per_s: Requests really sent, a second.
        goodput_per_s: Requests completed, a second; images_per_s their images.
        first_ms: p50, p90 and p99 until the first chunk, each where there are requests enough.
        last_ms: The same until the last chunk.
        block_p50_ms: Median time to the last chunk in each block, in order.
        most_in_flight: Largest number of requests under way at once.
        lag_p99_ms: Actual send time minus intended one, p99; what the generator itself adds to every latency.
        generator_cpu: Share of one core that the generator used.
        is_generator_late: Whether the figures say more about the generator than about the server.
        meets: Whether the objective was met; None without one.
    """

    target: str
    rate: float
    kind: str
    images: int
    arrivals: int
    completed: int
    timed_out: int
    rejected: int
    failed: int
    statuses: dict[str, int]
    sent_per_s: float
    goodput_per_s: float
    images_per_s: float
    first_ms: tuple[Estimate | None, ...]
    last_ms: tuple[Estimate | None, ...]
    block_p50_ms: tuple[float, ...]
    most_in_flight: int
    lag_p99_ms: float
    generator_cpu: float
    is_generator_late: bool
    meets: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search for the highest rate found: the highest that met the objective, the lowest above that did not."""

    target: str
    objective: str
    highest_met: float | None
    lowest_missed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        command: The exact command.
        arguments: Its words, to run it again.
        machine: As of `describe_machine`, and what was seen while it ran.
        entrants: Contestants of the local scenarios.
        local: Their rows.
        server: Rows of the server scenario.
        searches: Searches for the highest rate.
        notes: What a reader must know: warm-up that did not settle, a generator that was late.
    """

    command: str
    arguments: tuple[str, ...]
    machine: dict[str, str]
    entrants: tuple[Entrant, ...] = ()
    local: tuple[LocalRow, ...] = ()
    server: tuple[ServerRow, ...] = ()
    searches: tuple[Search, ...] = ()
    notes: tuple[str, ...] = field(default=())


def to_json(report: Report) -> str:
    """Write a report; times without end are the word "unanswered"."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **_plain(dataclasses.asdict(report))}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_report(path: Path, report: Report) -> None:
    """Write the JSON file whole or not at all.

    Raises:
        RequestError: It cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(to_json(report), encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        ArtifactError: The file is missing, damaged, not a report, or of a newer format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"no report at {path}", hint="make one with: kaem bench model.onnx --json out.json"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path} as a report: {error}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ArtifactError(f"{path} is not a report of kaem bench")
    version = content.pop("format_version", None)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has report format {version}, this kaem reads up to {FORMAT_VERSION}", hint="upgrade kaem"
        )
    try:
        return _read(Report, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"the report {path} is damaged: {error!r}", hint="measure again") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "unanswered" if isinstance(value, float) and math.isinf(value) else value


def _read(cls: type[Record], content: dict[str, Any]) -> Record:
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in content.items()})


def _value(hint: Any, value: Any) -> Any:
    """Read a value as the type that its field declares: a record, a tuple, a table, an optional of these, a scalar."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _value(inner[0], value)
    if origin is tuple:
        return tuple(_value(inner[0], item) for item in value)
    if origin is dict:
        return {str(name): _value(inner[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast(type[Any], hint), value)
    if hint is float:
        return math.inf if value == "unanswered" else float(value)
    if type(value) is not hint:
        raise TypeError(f"{value!r} is not of type {hint.__name__}")
    return value
