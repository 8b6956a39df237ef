"""One caller in `kaem bench`: which models run on which engines, and what keeps a reader from trusting a row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.bench.progress import progress_bar
from cli.source import is_remote
from kaem.bench.options import parse_counts, parse_duration
from kaem.bench.quality import Subject, attach, read_evaluation, subject_of
from kaem.bench.record import Entrant, Quality, Report
from kaem.bench.report.formatting import name_of
from kaem.bench.scenarios.engines import NAMES, TORCH_NAMES, EngineJob
from kaem.bench.scenarios.local import DEFAULT_BATCHES, Effort, measure
from kaem.bench.scenarios.process import OWN_ENGINES, Contestant
from kaem.engines.processors import count_processors
from kaem.errors import ArtifactError, ConfigError, RequestError

if TYPE_CHECKING:
    from cli.bench.run import BenchOptions

TORCH_ENGINES = "kaem_export.targets.torch_engine"
"""Named, not imported: only the process of a contestant on torch loads it."""

MAX_BATCH = 1_048_576
MAX_THREADS = 1024


def compare_locally(options: BenchOptions) -> dict[str, Any]:
    """Measure the local scenarios; return the fields of the report that they fill."""
    scenarios = options.scenario.split(",")
    for name in scenarios:
        if name not in DEFAULT_BATCHES or scenarios.count(name) > 1:
            known = "single, batch, offline (separated by commas), or server; each once, server alone"
            raise RequestError(f"cannot read scenario {options.scenario!r}", hint=f"known are {known}")
    batches = {name: DEFAULT_BATCHES[name] for name in scenarios}
    if options.batch is not None:
        chosen = parse_counts(options.batch, "batch sizes", MAX_BATCH)
        batches = {name: sizes if name == "single" else chosen for name, sizes in batches.items()}
    effort = Effort(
        seconds=options.seconds,
        launches=options.launches,
        precision=options.precision,
        seed=options.seed,
        longest_s=math.inf if options.longest is None else parse_duration(options.longest, "the longest call"),
    )
    subjects = _subjects(options.sources)
    contestants = _contestants(options, subjects)
    qualities = attach([read_evaluation(Path(path)) for path in options.quality], list(subjects.values()))
    with progress_bar("measuring") as update:
        entrants, rows = measure(contestants, batches, effort, on_progress=update)
    introduced = [_introduced(one, subjects[one.source], qualities) for one in entrants]
    untrained = {one.key for one in introduced if one.updates == 0}
    rows = [dataclasses.replace(row, is_untrained=row.key in untrained) for row in rows]
    return {"entrants": tuple(introduced), "local": tuple(rows)}


def _introduced(entrant: Entrant, subject: Subject, qualities: Mapping[str, Quality]) -> Entrant:
    """Add what the model says of itself, or its engine says of it, and its quality."""
    said = entrant.settings.get("updates")
    updates = int(said) if subject.updates is None and said is not None else subject.updates
    quality = qualities.get(entrant.source)
    return dataclasses.replace(entrant, family=subject.family, updates=updates, quality=quality)


def _subjects(sources: Sequence[str]) -> dict[str, Subject]:
    for source in sources:
        if not is_remote(source) and not Path(source).exists():
            raise ArtifactError(f"no model file at {source}", hint="make one with: kaem export ckpt.pt -o model.onnx")
    return {source: subject_of(source) for source in sources}


def _can_run(engine: str, source: str, subject: Subject) -> bool:
    """Whether an engine runs a file at all; what it knows nothing about, it shall try."""
    if engine == "diffusers" and subject.family:
        return subject.family in ("ddim", "ddpm")
    return engine in TORCH_NAMES or not source.endswith(".pt")


def _contestants(options: BenchOptions, subjects: Mapping[str, Subject]) -> list[Contestant]:
    """Every source on every engine that can run it, with every number of threads."""
    engines = options.engine.split(",")
    for name in engines:
        if name not in NAMES:
            raise ConfigError(f"unknown engine {name!r}", hint=f"choose among: {', '.join(NAMES)}")
    if len(set(engines)) < len(engines):
        raise RequestError(f"an engine is named twice: {options.engine}")
    threads = options.threads or str(count_processors())
    numbers = parse_counts(threads, "numbers of threads", MAX_THREADS)
    found = []
    for source in options.sources:
        if is_remote(source):
            found.append(Contestant(job=EngineJob(engine="server", source=source, threads=1)))
            continue
        able = [name for name in engines if _can_run(name, source, subjects[source])]
        if not able and source.endswith(".pt"):
            raise RequestError(f"{source} is a checkpoint, which only torch runs", hint="add: --engine torch-eager")
        if not able:
            raise RequestError(
                f"{source} is a model of the family {subjects[source].family}, which none of the engines runs: "
                f"{options.engine}",
                hint="add: --engine onnxruntime",
            )
        found += [
            Contestant(
                job=EngineJob(engine=name, source=source, threads=number, provider=options.provider),
                module=TORCH_ENGINES if name in TORCH_NAMES else OWN_ENGINES,
            )
            for name in able
            for number in numbers
        ]
    return found


def local_notes(report: Report, options: BenchOptions) -> list[str]:
    """Say what keeps a reader from trusting a row, and which rows are missing."""
    notes = [
        f"{name_of(one)}: these weights have never been trained; only the speed of their shapes is measured."
        for one in report.entrants
        if one.updates == 0
    ]
    done = {(row.key, row.scenario, row.batch) for row in report.local}
    scenarios = dict.fromkeys((row.scenario, row.batch) for row in report.local)
    notes += [
        f"{name_of(one)}: {scenario} {batch} was left out, a call would have taken longer than {options.longest}."
        for one in report.entrants
        for scenario, batch in scenarios
        if (one.key, scenario, batch) not in done
    ]
    for row in report.local:
        where = f"{name_of(row)}, {row.scenario} {row.batch}"
        if not row.is_warm:
            notes.append(f"{where}: times had not settled when timing began.")
        if not row.is_precise and options.launches >= 6:
            notes.append(f"{where}: p50 is not known to within {100 * options.precision:g} %.")
    return notes
