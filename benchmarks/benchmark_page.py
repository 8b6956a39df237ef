"""Records of measurements, benchmarks/records/*.json, and the page that is generated from them.

    python benchmarks/benchmark_page.py                                        # write docs/benchmark-results.md
    python benchmarks/benchmark_page.py cpu=runs/bench/cpu.json                # first keep this report as a record
    python benchmarks/benchmark_page.py server=server.json --about "Server and load generator on a core each."

A record is `about`, a sentence on how the measurement was made, and `blocks`. A block is one of

    {"table": title, "columns": [...], "words": [columns aligned to the left], "rows": [[...]], "notes": [...]}
    {"text": paragraph}    {"items": [...]}    {"command": [lines]}    {"fold": title, "blocks": [...]}

Cells are the text that was printed, so no figure is rounded twice. Reports come from `kaem bench --json`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kaem.bench.record import Report, read_report
from kaem.bench.report.formatting import Table, name_of
from kaem.bench.report.page import findings
from kaem.bench.report.tables import tables_of, to_markdown

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PAGE = ROOT / "docs" / "benchmark-results.md"
TITLES = {
    "peers": "KAEM beside its peers, on a processor",
    "cpu": "On a processor",
    "gpu": "On a GPU",
    "server": "A server under load",
    "parts": "The parts",
}
"""Headings of the page in their order, by the name of the record."""
INTRODUCTION = """# Benchmark results

`benchmarks/benchmark_page.py` writes this page from the records in `benchmarks/records`; do not edit it.
[Benchmarks](benchmarks.md) says how each figure is measured and what it means.
"""

Block = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*", metavar="NAME=REPORT", help=f"NAME is one of {', '.join(TITLES)}")
    parser.add_argument("--about", default="", help="how these reports were measured, in a sentence")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    options = parser.parse_args()
    reports = dict(word.partition("=")[::2] for word in options.reports)
    if unknown := reports.keys() - TITLES.keys():
        parser.error(f"the page has no place for {', '.join(sorted(unknown))}; names are {', '.join(TITLES)}")
    blocks = {name: blocks_of(read_report(Path(path))) for name, path in reports.items()}
    for name, found in blocks.items():
        write_record(options.records / f"{name}.json", found, about=options.about)
    options.page.write_text(render_page(options.records), encoding="utf-8")


def write_record(path: Path, blocks: Sequence[Block], *, about: str = "") -> None:
    """Write a record; a row of a table stands on one line where its cells hold no brackets."""
    text = json.dumps({"about": about, "blocks": blocks}, indent=1, ensure_ascii=False)
    rows = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    one_line = rows.sub(lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(one_line + "\n", encoding="utf-8")


def render_page(records: Path) -> str:
    """Return the page of all records in a folder."""
    parts = [INTRODUCTION]
    for name, title in TITLES.items():
        if (path := records / f"{name}.json").is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {title}", "", *([record["about"], ""] if record["about"] else [])]
            parts += [line for block in record["blocks"] for line in _render_block(block)]
    return "\n".join(parts).rstrip("\n") + "\n"


def block_of_table(table: Table) -> Block:
    """Return a table as a block of a record."""
    return {
        "table": table.title,
        "columns": table.columns,
        "words": table.words,
        "rows": table.rows,
        "notes": table.notes,
    }


def blocks_of(report: Report) -> list[Block]:
    """Return tables, findings, notes, machine and command as blocks of a record."""
    blocks: list[Block] = [block_of_table(table) for table in tables_of(report)]
    if said := [*findings(report), *report.notes]:
        blocks.append({"items": said})
    blocks.append({"text": f"Machine: {', '.join(f'{name} {value}' for name, value in report.machine.items())}."})
    for entrant in report.entrants:
        settings = ", ".join(f"{name} {value}" for name, value in entrant.settings.items() if name != "numerics")
        blocks.append({"text": f"{name_of(entrant)}: {settings}."})
    return [*blocks, {"fold": "Command", "blocks": [{"command": [report.command]}]}]


def _render_block(block: Block) -> list[str]:
    match block:
        case {"table": title, "columns": columns, "words": words, "rows": rows, "notes": notes}:
            cells = tuple(tuple(row) for row in rows)
            table = Table(
                name="", title=title, columns=tuple(columns), rows=cells, words=tuple(words), notes=tuple(notes)
            )
            return [*([f"**{title}**", ""] if title else []), to_markdown(table)]
        case {"text": text}:
            return [text, ""]
        case {"items": items}:
            return [*(f"- {item}" for item in items), ""]
        case {"command": lines}:
            return ["```sh", *lines, "```", ""]
        case {"fold": title, "blocks": inner}:
            lines = [line for one in inner for line in _render_block(one)]
            return [f"<details><summary>{title}</summary>", "", *lines, "</details>", ""]
    raise ValueError(f"a record holds a block of no known kind: {sorted(block)}")


if __name__ == "__main__":
    main()
