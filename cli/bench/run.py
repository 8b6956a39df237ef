"""What `kaem bench` does with its options: measure, show, write, compare."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.bench.local import compare_locally, local_notes
from cli.bench.progress import progress_bar
from cli.source import is_remote
from kaem.bench.compare import change_table, check_margin, compare, differing_machines
from kaem.bench.environment import describe_machine, processor_ticks, stolen_share
from kaem.bench.options import parse_duration, parse_objective, parse_rates
from kaem.bench.record import Report, Search, ServerRow, read_report, to_json, write_report
from kaem.bench.report.formatting import Table
from kaem.bench.report.page import write_page
from kaem.bench.report.tables import closing_lines, report_markdown, tables_of
from kaem.bench.scenarios.arrivals import check_arrivals, parse_mix
from kaem.bench.scenarios.remote import Load, ServerUnderLoad, search_target
from kaem.errors import ArtifactError, ConfigError, RequestError
from kaem.files import replacing, require_place
from kaem.validation import check_range

if TYPE_CHECKING:
    from rich.console import Console

    from kaem.bench.scenarios.open_loop import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure, as words; see `cli.bench.command.bench`."""

    sources: tuple[str, ...]
    scenario: str
    engine: str
    batch: str | None
    threads: str | None
    provider: str
    seconds: float
    launches: int
    precision: float
    longest: str | None
    quality: tuple[str, ...]
    rate: str | None
    duration: str
    deadline: str
    slo: str | None
    mix: str
    seed: int

    @property
    def is_server(self) -> bool:
        """Whether a server is loaded from outside."""
        return self.scenario == "server"

    def words(self) -> tuple[str, ...]:
        """Return the command's words that measure exactly this, defaults spelled out."""
        skipped = {"sources", *(_LOCAL_ONLY if self.is_server else _SERVER_ONLY)}
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        several = {
            name: value if isinstance(value, tuple) else (value,) for name, value in pairs if name not in skipped
        }
        given = [(name, value) for name, values in several.items() for value in values if value is not None]
        return (*self.sources, *(word for name, value in given for word in (f"--{name}", str(value))))


_LOCAL_ONLY = ("engine", "batch", "threads", "provider", "seconds", "launches", "precision", "longest", "quality")
_SERVER_ONLY = ("rate", "duration", "deadline", "slo", "mix")
_WHAT = ("scenario", "seed", *_LOCAL_ONLY, *_SERVER_ONLY)


def run(
    options: BenchOptions,
    *,
    given: Collection[str],
    compare_with: Path | None,
    margin: float,
    json: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> None:
    """Measure, show and write; exit 1 if a comparison supports that something has become slower.

    Args:
        options: What to measure.
        given: Names of the options that the user wrote, as against their defaults.
        compare_with: An earlier report.
        margin: Relative change that a comparison ignores.
        json: Where to write the report, `-` for standard output.
        markdown: The same as Markdown.
        html: The same as a page.

    Raises:
        RequestError: Something was asked for that cannot be done, or an option that would be ignored was given.
    """
    from rich.console import Console

    old = read_report(compare_with) if compare_with else None  # this and what follows: before anything costs time
    _refuse_ignored(options, given, is_compared=old is not None)
    check_margin(margin)
    for path in (json, markdown, html):
        if path is not None and path != Path("-"):
            require_place(path)
    if html:
        _require_matplotlib()
    console = Console() if sys.stdout.isatty() else Console(width=160)
    report = _obtain(options, old)
    if json == Path("-"):
        typer.echo(to_json(report), nl=False)
        console = Console(stderr=True)
    for table in tables_of(report):
        _print(console, table)
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    for line in closing_lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json and json != Path("-"):
        write_report(json, report)
    if markdown:
        with replacing(markdown) as draft:
            draft.write_text(report_markdown(report), encoding="utf-8")
    if html:
        write_page(html, report)
    if old is not None and not _compare(console, old, report, margin):
        raise typer.Exit(1)


def _refuse_ignored(options: BenchOptions, given: Collection[str], *, is_compared: bool) -> None:
    """Refuse what would silently do nothing: the user believes that it was measured so."""

    def written(names: Sequence[str]) -> str:
        return ", ".join(f"--{name}" for name in names if name in given)

    if "margin" in given and not is_compared:
        raise RequestError("--margin is of a comparison", hint="add: --compare old.json")
    if is_compared and (not options.sources or _is_report(options.sources)) and (words := written(_WHAT)):
        raise RequestError(
            f"the report says what is measured, so {words} would change nothing",
            hint="name the models to measure them otherwise: kaem bench model.onnx --compare old.json",
        )
    if options.is_server and (words := written(_LOCAL_ONLY)):
        raise RequestError(f"{words}: not of the scenario server", hint="leave it out, or choose another --scenario")
    if not options.is_server and (words := written(_SERVER_ONLY)):
        raise RequestError(f"{words}: only of the scenario server", hint="add: --scenario server")


def _is_report(sources: Sequence[str]) -> bool:
    return len(sources) == 1 and sources[0].endswith(".json")


def _obtain(options: BenchOptions, old: Report | None) -> Report:
    """Return the report that was named, or measure: what was asked, or what the earlier report measured."""
    sources = options.sources
    if _is_report(sources):
        if old is None:
            raise RequestError(f"{sources[0]} is a report", hint="compare it: kaem bench --compare old.json new.json")
        return read_report(Path(sources[0]))
    if not sources and old is None:
        raise RequestError("no model is named", hint="write: kaem bench model.onnx")
    return _measured(options if sources else _options_of(old))


def _options_of(old: Report | None) -> BenchOptions:
    from typer.main import get_command

    from cli.main import app

    if old is None:
        raise AssertionError("there is an earlier report wherever no model is named")
    command: Any = get_command(app)
    try:
        given = command.commands["bench"].make_context("bench", list(old.arguments)).params
    except Exception as error:  # the command line's own classes
        raise ArtifactError(f"the earlier report's command cannot be read: {error}") from None
    names = [field.name for field in dataclasses.fields(BenchOptions) if field.name != "sources"]
    lists = {name: tuple(given[name] or ()) for name in ("sources", "quality")}
    return BenchOptions(**{**{name: given[name] for name in names}, **lists})


def _measured(options: BenchOptions) -> Report:
    if len(set(options.sources)) < len(options.sources):
        raise RequestError(f"a model is named twice: {', '.join(options.sources)}")
    check_range(1, options.seed, 0)
    words = options.words()
    machine = describe_machine()
    ticks = processor_ticks()
    results = _load_servers(options, machine) if options.is_server else compare_locally(options)
    machine["load after"] = f"{os.getloadavg()[0]:.2f}"
    machine["stolen by the hypervisor"] = f"{100 * stolen_share(ticks, processor_ticks()):.1f} %"
    report = Report(command=shlex.join(["kaem", "bench", *words]), arguments=words, machine=machine, **results)
    return dataclasses.replace(report, notes=tuple(_notes(report, options)))


def _load_servers(options: BenchOptions, machine: dict[str, str]) -> dict[str, Any]:
    """Measure the server scenario; return the fields of the report that it fills, and note in `machine` who served."""
    for source in options.sources:
        if not is_remote(source):
            hint = f"start one: kaem serve {shlex.quote(source)}"
            raise RequestError(f"the scenario server needs a server (grpc://host:port), not {source}", hint=hint)
    rates = parse_rates(options.rate) if options.rate else ()
    if not rates and options.slo is None:
        raise RequestError(
            "the scenario server needs rates or an objective", hint="give --rate 200,400 or --slo p99=50ms"
        )
    load = Load(
        mix=parse_mix(options.mix),
        duration_s=parse_duration(options.duration, "duration"),
        deadline_s=parse_duration(options.deadline, "deadline"),
        seed=options.seed,
        objective=parse_objective(options.slo) if options.slo else None,
    )
    for rate in rates:  # all of them before the first is measured
        check_arrivals(rate, load.duration_s)
    rows: list[ServerRow] = []
    searches: list[Search] = []
    with progress_bar("loading") as update:

        def on_watch(rate: float, watch: Watch) -> None:
            ends = ", ".join(f"{num:,} {status}" for status, num in sorted(watch.statuses.items()))
            update(watch.sent / max(1, watch.total), f"{rate:g}/s: {watch.in_flight:,} in flight; {ends}")

        for source in options.sources:
            target = ServerUnderLoad(source, seed=options.seed)
            machine[f"served by {source}"] = f"{target.model}, numerics {target.numerics_id}"
            for rate in rates:
                rows += target.run(rate, load, on_watch)
            if load.objective is not None:
                searches.append(search_target(target, rows, load, on_watch))
    return {"server": tuple(rows), "searches": tuple(searches)}


def _notes(report: Report, options: BenchOptions) -> list[str]:
    """Say what keeps a reader from trusting a row."""
    notes = local_notes(report, options)
    first_of = {(row.target, row.rate): row for row in reversed(report.server)}  # of all kinds together
    notes += [
        f"{row.target} at {row.rate:g}/s: the load generator was late (p99 {row.lag_p99_ms:.1f} ms, "
        f"{100 * row.generator_cpu:.0f} % of a core); its lag is in every time."
        for row in reversed(first_of.values())
        if row.is_generator_late
    ]
    return notes


def _compare(console: Console, old: Report, new: Report, margin: float) -> bool:
    """Print the comparison and return whether nothing has become slower."""
    changes = compare(old, new, margin=margin)
    for difference in differing_machines(old, new):
        console.print(f"not the same machine: {difference}", highlight=False, markup=False)
    _print(console, change_table(changes, margin))
    slower = [change for change in changes if change.verdict == "slower"]
    for change in slower:
        console.print(f"slower: {change.what}", highlight=False, markup=False)
    return not slower


def _print(console: Console, table: Table) -> None:
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", caption=" ".join(table.notes), caption_justify="left")
    for index, name in enumerate(table.columns):
        shown.add_column(
            name, justify="left" if name in table.words else "right", no_wrap=index > 0, overflow="fold", min_width=3
        )
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)


def _require_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the HTML page needs matplotlib", hint="run: pip install 'kaem[bench]'")
