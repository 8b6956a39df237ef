"""A report as tables of words: the same for the terminal, Markdown and HTML."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from kaem.bench.record import Entrant, LocalRow, Report, Search, ServerRow
from kaem.bench.report.formatting import NOT_GIVEN, Table, distance_words, figure, half_width, name_of, on_of, words_of
from kaem.bench.report.frontier import frontier_table, models_table
from kaem.bench.statistics import MIN_BLOCKS, Ratio, paired_ratio

PHASES = ("start", "import", "load", "first_image")
"""Of a start from nothing: interpreter, the engine's library, the model, the first image."""


def tables_of(report: Report) -> list[Table]:
    """Return the tables of a report that have rows, a table for each scenario first."""
    scenarios = list(dict.fromkeys(row.scenario for row in report.local))
    tables = [_local(report, scenario) for scenario in scenarios]
    if any(one.quality for one in report.entrants):
        tables += [frontier_table(report), models_table(report.entrants)]
    if report.entrants:
        tables.append(_starts(report.entrants))
    if report.server:
        targets = [row.target for row in report.server]
        rows = sorted(report.server, key=lambda row: (targets.index(row.target), row.rate))  # a search jumps about
        tables += [_times(rows), _ends(rows)]
    if report.searches:
        tables.append(_searches(report))
    return tables


def speed_of(row: LocalRow, rows: Iterable[LocalRow], *, by_cpu: bool = False) -> Ratio | None:
    """How many times as fast a row is as the first contestant at the same work; None for the first itself.

    Args:
        row: Which.
        rows: All rows of the run.
        by_cpu: Compare processor time instead of wall time.
    """
    first = next(one for one in rows if (one.scenario, one.batch) == (row.scenario, row.batch))
    if row is first:
        return None
    if by_cpu:
        return paired_ratio(first.launch_cpu_ms, row.launch_cpu_ms)
    return paired_ratio(first.launch_p50_ms, row.launch_p50_ms)


def to_markdown(table: Table) -> str:
    """Write a table in Markdown."""
    right = ["---" if name in table.words else "---:" for name in table.columns]
    rows = [table.columns, tuple(right), *(tuple(cell.replace("|", "\\|") for cell in row) for row in table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(["", *table.notes] if table.notes else [])]) + "\n"


def report_markdown(report: Report) -> str:
    """Write a whole report in Markdown: tables, notes, machine, exact command."""
    parts = ["# kaem bench", "", f"```sh\n{report.command}\n```", ""]
    for table in tables_of(report):
        parts += [f"## {table.title}", "", to_markdown(table)]
    if report.notes:
        parts += ["## Notes", "", *(f"- {note}" for note in report.notes), ""]
    parts += ["## Machine", "", *(f"- {name}: {value}" for name, value in report.machine.items())]
    for entrant in report.entrants:
        parts.append(f"- {name_of(entrant)}: {', '.join(f'{key} {value}' for key, value in entrant.settings.items())}")
    return "\n".join(parts) + "\n"


def closing_lines(report: Report) -> list[str]:
    """Say on what all was measured, what really ran, and the command that measures the same."""
    about = [(name_of(one), one.settings) for one in report.entrants]
    return [
        *(
            f"{name}: {', '.join(f'{key} {value}' for key, value in pairs.items())}."
            for name, pairs in (("Machine", report.machine), *about)
        ),
        f"Command: {report.command}",
    ]


def _local(report: Report, scenario: str) -> Table:
    rows = [row for row in report.local if row.scenario == scenario]
    qualities = {entrant.key: entrant.quality for entrant in report.entrants}
    has_quality = any(qualities.get(row.key) for row in rows)
    has_energy = any(row.joules_per_image is not None for row in rows)
    is_comparison = any(row.key != rows[0].key for row in rows)
    columns = ["model", "engine", "batch", "p50 ms", "±", "p90 ms", "p99 ms", "cpu ms", "images/s"]
    columns += ["FD"] if has_quality else []
    columns += [*(["J/image"] if has_energy else []), *(["speed", "speed by cpu"] if is_comparison else []), "calls"]
    cells = []
    for row in rows:
        model = f"{row.source} (untrained)" if row.is_untrained else row.source
        words = [model, on_of(row), str(row.batch), figure(row.p50_ms.value), half_width(row.p50_ms)]
        words += [figure(one.value if one else None) for one in (row.p90_ms, row.p99_ms)]
        words += [figure(row.cpu_ms.value), figure(row.images_per_s.value)]
        words += [distance_words(qualities.get(row.key))] if has_quality else []
        words += [figure(row.joules_per_image)] if has_energy else []
        if is_comparison:
            both = (speed_of(row, rows), speed_of(row, rows, by_cpu=True))
            words += [words_of(speed, is_first=speed is None) for speed in both]
        cells.append((*words, f"{row.calls:,}"))
    titles = {"single": "One image at a time", "batch": "Batches", "offline": "All images at once"}
    num = len(rows[0].launch_p50_ms)
    notes = [f"Intervals: 95 %, over {num} launches." if num >= MIN_BLOCKS else f"Launches: {num}; intervals need 6."]
    if is_comparison:
        notes.append(
            f"Speed: p50 of {name_of(rows[0])} over p50 of the row, launch by launch; by cpu: of processor time."
        )
    if has_quality:
        notes.append("FD: Frechet distance to real images, extrapolated; smaller is better.")
    if not has_energy:
        notes.append("Energy: this machine reports none.")
    return Table(
        name=scenario,
        title=titles[scenario],
        columns=tuple(columns),
        rows=tuple(cells),
        words=("model", "engine", "speed", "speed by cpu"),
        notes=tuple(notes),
    )


def _starts(entrants: Sequence[Entrant]) -> Table:
    rows = []
    for entrant in entrants:
        phases = [statistics.median(one[phase] for one in entrant.cold_s) for phase in PHASES]
        totals = [one["total"] for one in entrant.cold_s]
        words = [entrant.source, on_of(entrant), *(figure(value) for value in phases)]
        words += [f"{figure(statistics.median(totals))} ({figure(min(totals))} to {figure(max(totals))})"]
        words.append(figure(entrant.peak_bytes / (1 << 20)))
        words.append(NOT_GIVEN if entrant.difference is None else f"{entrant.difference:.1e}")
        rows.append(tuple(words))
    columns = ("model", "engine", "start s", "import s", "load s", "first image s", "total s", "peak MiB", "difference")
    return Table(
        name="starts",
        title="From nothing to the first image, and memory",
        columns=columns,
        rows=tuple(rows),
        words=("model", "engine"),
        notes=(
            f"Medians over fresh processes ({len(entrants[0].cold_s)}), files cached; total with its range.",
            "Difference: largest of a pixel in [0, 1] from the first engine on the same model.",
        ),
    )


def _times(rows: Sequence[ServerRow]) -> Table:
    columns = ["server", "rate/s", "requests", "first p50 ms", "first p99 ms", "last p50 ms", "±"]
    columns += ["last p90 ms", "last p99 ms", "lag p99 ms", "objective"]
    cells = []
    for row in rows:
        first, last = ([figure(one.value if one else None) for one in times] for times in (row.first_ms, row.last_ms))
        median = row.last_ms[0]
        words = [row.target, f"{row.rate:g}", row.kind, first[0], first[2], last[0]]
        words += [NOT_GIVEN if median is None else half_width(median), *last[1:]]
        words += [figure(row.lag_p99_ms) + (" LATE" if row.is_generator_late else "")]
        words += [NOT_GIVEN if row.meets is None else "met" if row.meets else "missed"]
        cells.append(tuple(words))
    return Table(
        name="server",
        title="Server, open loop: times",
        columns=tuple(columns),
        rows=tuple(cells),
        words=("server", "requests", "objective"),
        notes=(
            "Times run from the moment a request was due, over all that arrived; one without its answer took for ever.",
            "LATE: the load generator, not the server, shapes this row.",
        ),
    )


def _ends(rows: Sequence[ServerRow]) -> Table:
    columns = ["server", "rate/s", "requests", "arrived", "completed", "rejected", "timed out", "failed"]
    columns += ["sent/s", "goodput/s", "images/s", "in flight"]
    cells = []
    for row in rows:
        counts = (row.arrivals, row.completed, row.rejected, row.timed_out, row.failed)
        words = [row.target, f"{row.rate:g}", row.kind, *(f"{count:,}" for count in counts)]
        words += [figure(value) for value in (row.sent_per_s, row.goodput_per_s, row.images_per_s)]
        cells.append((*words, f"{row.most_in_flight:,}"))
    return Table(
        name="ends",
        title="Server, open loop: what became of the requests",
        columns=tuple(columns),
        rows=tuple(cells),
        words=("server", "requests"),
        notes=("Goodput: requests answered whole within the deadline. Rejected: refused with RESOURCE_EXHAUSTED.",),
    )


def _searches(report: Report) -> Table:
    rows = [
        (
            one.target,
            one.objective,
            figure(one.highest_met),
            f"{figure(one.lowest_missed)}{' LATE' if is_missed_late(one, report) else ''}",
        )
        for one in report.searches
    ]
    is_late = any(is_missed_late(one, report) for one in report.searches)
    return Table(
        name="search",
        title="Highest rate that meets the objective",
        columns=("server", "objective", "highest met, /s", "lowest missed, /s"),
        rows=tuple(rows),
        words=("server", "objective"),
        notes=("LATE: the load generator was late at that rate, so the server may do better.",) if is_late else (),
    )


def is_missed_late(search: Search, report: Report) -> bool:
    """Whether the lowest rate that missed was one at which the generator, not only the server, took time."""
    return any(
        row.is_generator_late
        for row in report.server
        if (row.target, row.rate) == (search.target, search.lowest_missed)
    )
