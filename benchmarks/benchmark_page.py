"""Put the tables of `kaem bench --json` reports into a page between its markers.

    python benchmarks/benchmark_page.py docs/benchmarks.md cpu=runs/bench/cpu.json server=runs/bench/server.json

The page holds a pair of comments for every name, `<!-- table: cpu -->` and `<!-- end -->`; what stands between them
is rewritten, the prose around stays as it is.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from kaem.bench.page import findings
from kaem.bench.record import Report, read_report
from kaem.bench.tables import name_of, tables_of, to_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    arguments = parser.parse_args()
    text = arguments.page.read_text(encoding="utf-8")
    for word in arguments.reports:
        name, _, path = word.partition("=")
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            parser.error(f"{arguments.page} has no place for the table {name!r}")
        block = block_of(read_report(Path(path)))
        text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    arguments.page.write_text(text, encoding="utf-8")


def block_of(report: Report) -> str:
    """Return tables, findings, notes, machine and command in Markdown."""
    parts = []
    for table in tables_of(report):
        parts += [f"**{table.title}**", "", to_markdown(table)]
    parts += [f"- {sentence}" for sentence in (*findings(report), *report.notes)]
    machine = [f"{name} {value}" for name, value in report.machine.items()]
    parts += ["", f"Machine: {', '.join(machine)}.", ""]
    for entrant in report.entrants:
        settings = ", ".join(f"{name} {value}" for name, value in entrant.settings.items() if name != "numerics")
        parts += [f"{name_of(entrant)}: {settings}.", ""]
    parts += ["<details><summary>Command</summary>", "", f"```sh\n{report.command}\n```", "", "</details>", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
