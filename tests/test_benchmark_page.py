"""The script that puts measured tables into a page rewrites its own place only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kaem.bench.record import Report, Search, write_report

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "benchmark_page.py"


def test_tables_are_put_between_their_markers_and_nowhere_else(tmp_path):
    search = Search(target="grpc://h:1", objective="p99 <= 50 ms", highest_met=80.0, lowest_missed=88.0)
    report = Report(command="kaem bench x", arguments=("x",), machine={"processor": "one"}, searches=(search,))
    write_report(tmp_path / "r.json", report)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: a -->\nold\n<!-- end -->\nbetween\n<!-- table: b -->\nkept\n<!-- end -->\n")
    command = [sys.executable, str(SCRIPT), str(page)]
    for _ in range(2):  # a second time changes nothing
        subprocess.run([*command, f"a={tmp_path / 'r.json'}"], check=True)
    text = page.read_text()
    assert text.startswith("before\n<!-- table: a -->\n**Highest rate that meets the objective**")
    assert "| grpc://h:1 | p99 <= 50 ms | 80.0 | 88.0 |" in text
    assert text.endswith("<!-- end -->\nbetween\n<!-- table: b -->\nkept\n<!-- end -->\n")
    assert "old" not in text
    done = subprocess.run([*command, f"c={tmp_path / 'r.json'}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no place for the table 'c'" in done.stderr
