"""A report as one HTML file that needs nothing else: no network, no script; light, dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from kaem.bench.record import Report
from kaem.bench.report.formatting import NO_DIFFERENCE, Table, name_of
from kaem.bench.report.plots import frontier_plot, local_plots, server_plot, start_plot
from kaem.bench.report.tables import is_missed_late, speed_of, tables_of
from kaem.files import replacing

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2129; --soft: #5b6472; --line: #d7dbe1; --band: #f4f6f8;
  --series-1: #2266c4; --series-2: #c8501b; --series-3: #157f5b; --series-4: #8a5a00; --series-5: #7b3fa8;
  --series-6: #b0306a; --series-7: #3d6f80; --series-8: #5c5c14; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e8eb; --soft: #a0a8b4; --line: #3a414c;
  --band: #1d2128; --series-1: #6ea8f5; --series-2: #f2915f; --series-3: #4fc79a; --series-4: #e0b04a;
  --series-5: #c08be8; --series-6: #ee7fae; --series-7: #83bccd; --series-8: #c3c35a; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, li, figcaption { color: var(--soft); } p.lead, ul.found li { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th { background: var(--band); font-weight: 600; } .word { text-align: left; }
td.word { overflow-wrap: anywhere; white-space: normal; min-width: 7rem; }
pre { background: var(--band); border: 1px solid var(--line); padding: .7rem .9rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; font-family: inherit; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@page { size: A4 landscape; margin: 12mm; }
@media print { :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb;
  --band: #f4f4f4; --series-1: #2266c4; --series-2: #c8501b; --series-3: #157f5b; --series-4: #8a5a00;
  --series-5: #7b3fa8; --series-6: #b0306a; --series-7: #3d6f80; --series-8: #5c5c14; }
  body { margin: 0; max-width: none; padding: 0; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: .15rem .35rem; white-space: normal; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } figure svg { max-width: 22cm; } }
"""


def write_page(path: Path, report: Report) -> None:
    """Write the page whole or not at all.

    Raises:
        BackendError: matplotlib is not installed.
        RequestError: The file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(page_of(report), encoding="utf-8")


def page_of(report: Report) -> str:
    """Return the page."""
    return page_of_all({"": report})


def page_of_all(
    reports: Mapping[str, Report], *, title: str = "kaem bench", found: Sequence[str] = (), tables: Sequence[Table] = ()
) -> str:
    """Return one page of several reports.

    Args:
        reports: By heading; not empty.
        title: Title of the page.
        found: Sentences to begin with.
        tables: Tables to begin with.
    """
    machine = next(iter(reports.values())).machine
    date, processor = (escape(machine.get(name, "")) for name in ("date", "processor"))
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}, {date}</title><style>{STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="lead">{date}, {processor}</p>',
        _list(tuple(found), "found"),
    ]
    parts += [f"<section><h2>{escape(table.title)}</h2>{_table(table)}</section>" for table in tables]
    for heading, report in reports.items():
        parts += [f"<h1>{escape(heading)}</h1>"] if heading else []
        parts += _body(report)
    return "\n".join([*parts, "</body></html>\n"])


def _body(report: Report) -> list[str]:
    parts = [f"<pre>{escape(report.command)}</pre>", _list(findings(report), "found")]
    for table in tables_of(report):
        parts += [f"<section><h2>{escape(table.title)}</h2>", _table(table)]
        parts += [
            f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, svg in _plots(table, report)
        ]
        parts.append("</section>")
    if report.notes:
        parts += ["<h2>Notes</h2>", _list(report.notes)]
    parts += ["<h2>Machine</h2>", _pairs(report.machine)]
    for entrant in report.entrants:
        parts += [f"<h2>{escape(name_of(entrant))}</h2>", _pairs(entrant.settings)]
    return parts


def findings(report: Report) -> list[str]:
    """Say in sentences what the report shows; nothing that an interval does not support."""
    said = []
    for row in report.local:
        speed = speed_of(row, report.local)
        if speed is None or speed.low is None or speed.high is None:
            continue
        first = next(one for one in report.local if (one.scenario, one.batch) == (row.scenario, row.batch))
        where = f"{row.scenario}, batch {row.batch}"
        if speed.is_shown:
            fast, slow, (low, high) = (row, first, (speed.low, speed.high))
            value = speed.value
            if value < 1:
                fast, slow, value, low, high = first, row, 1 / value, 1 / high, 1 / low
            said.append(
                f"{where}: {name_of(fast)} is {value:.3g} times as fast as {name_of(slow)} ({low:.3g} to {high:.3g})."
            )
        else:
            said.append(f"{where}: {NO_DIFFERENCE} between {name_of(row)} and {name_of(first)}.")
    for one in report.searches:
        limit = "at no rate that was tried" if one.highest_met is None else f"up to {one.highest_met:g} requests/s"
        late = (
            "; the load generator was late beyond, so the server may do better" if is_missed_late(one, report) else ""
        )
        said.append(f"{one.target} meets {one.objective} {limit}{late}.")
    return said


def _plots(table: Table, report: Report) -> list[tuple[str, str]]:
    match table.name:
        case "frontier":
            return [frontier_plot(report)]
        case "models":
            return []
        case "starts":
            return [start_plot(report.entrants)]
        case "server":
            return [server_plot(report.server)]
        case "ends" | "search":
            return []
        case scenario if any(row.scenario == scenario for row in report.local):
            return local_plots([row for row in report.local if row.scenario == scenario])
        case unknown:
            raise AssertionError(f"no plots are known for the table {unknown!r}")


def _table(table: Table) -> str:
    is_word = [name in table.words for name in table.columns]
    head = "".join(_cell("th", name, word) for name, word in zip(table.columns, is_word, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, word) for cell, word in zip(row, is_word, strict=True))}</tr>\n"
        for row in table.rows
    )
    notes = f"<p>{escape(' '.join(table.notes))}</p>" if table.notes else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>{notes}'


def _cell(tag: str, text: str, is_word: bool) -> str:
    return f"<{tag}{' class=word' if is_word else ''}>{escape(text)}</{tag}>"


def _list(items: list[str] | tuple[str, ...], name: str = "") -> str:
    if not items:
        return ""
    return f'<ul class="{name}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def _pairs(pairs: dict[str, str]) -> str:
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f"<dl>{inner}</dl>"
