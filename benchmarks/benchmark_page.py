"""Put the tables of `kaem bench --json` reports into a page between its markers.

    python benchmarks/benchmark_page.py docs/benchmarks.md cpu=runs/bench/cpu.json server=runs/bench/server.json

The page holds a pair of comments for every name, `<!-- table: cpu -->` and `<!-- end -->`; what stands between them
is rewritten, the prose around stays as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from kaem.bench.record import Report, read_report
from kaem.bench.report.formatting import name_of
from kaem.bench.report.page import findings
from kaem.bench.report.tables import tables_of, to_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    arguments = parser.parse_args()
    blocks = {}
    for word in arguments.reports:
        name, _, path = word.partition("=")
        blocks[name] = block_of(read_report(Path(path)))
    try:
        put_blocks(arguments.page, blocks)
    except LookupError as error:
        parser.error(str(error.args[0]))


def put_blocks(page: Path, blocks: Mapping[str, str]) -> None:
    """Rewrite what stands between the markers of these names.

    Raises:
        LookupError: The page has no place of such a name; nothing is written.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise LookupError(f"{page} has no place for the table {name!r}")
        text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    page.write_text(text, encoding="utf-8")


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
