"""The page of results is what its generator writes from the records, and a report becomes a record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_page import PAGE, RECORDS, TITLES, render_page, write_record

from kaem.bench.record import Report, Search, write_report

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "benchmark_page.py"


def test_the_page_is_what_the_generator_writes():
    assert render_page(RECORDS) == PAGE.read_text(encoding="utf-8"), "run: make docs"
    assert {path.stem for path in RECORDS.glob("*.json")} <= TITLES.keys()


def test_the_page_of_methods_stays_short():
    assert len((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split()) <= 3000


def test_a_report_becomes_a_record_and_its_section_of_the_page(tmp_path):
    search = Search(target="grpc://h:1", objective="p99 <= 50 ms", highest_met=80.0, lowest_missed=88.0)
    report = Report(command="kaem bench x", arguments=("x",), machine={"processor": "one"}, searches=(search,))
    write_report(tmp_path / "r.json", report)
    records, page = tmp_path / "records", tmp_path / "page.md"
    write_record(records / "cpu.json", [{"text": "kept"}])
    command = [sys.executable, str(SCRIPT), "--records", str(records), "--page", str(page)]
    subprocess.run([*command, f"server={tmp_path / 'r.json'}", "--about", "Two cores."], check=True)
    text = page.read_text()
    assert "## On a processor\n\nkept\n\n## A server under load\n\nTwo cores.\n" in text
    assert "**Highest rate that meets the objective**" in text
    assert "| grpc://h:1 | p99 <= 50 ms | 80.0 | 88.0 |" in text
    assert "Machine: processor one." in text
    assert "```sh\nkaem bench x\n```" in text
    subprocess.run(command, check=True)  # from the records alone: nothing changes
    assert page.read_text() == text
    done = subprocess.run([*command, f"c={tmp_path / 'r.json'}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no place for c" in done.stderr
    assert page.read_text() == text


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    rows = [["a", "[64, 32]"], ["{b}", "c\nd"]]
    block = {"table": "t", "columns": ["x", "y"], "words": ["x"], "rows": rows, "notes": []}
    write_record(tmp_path / "r.json", [block], about="how")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"about": "how", "blocks": [block]}


def test_an_unknown_block_is_an_error(tmp_path):
    write_record(tmp_path / "cpu.json", [{"tabel": "t"}])
    with pytest.raises(ValueError, match="tabel"):
        render_page(tmp_path)
