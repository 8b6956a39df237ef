"""Promises of reports: what is written is read back, claims need intervals, the page needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kaem.bench.compare import compare, differing_machines
from kaem.bench.record import (
    QUANTILES,
    Entrant,
    LocalRow,
    Quality,
    Report,
    Search,
    ServerRow,
    read_report,
    write_report,
)
from kaem.bench.report.formatting import NO_DIFFERENCE, NOT_GIVEN, TOO_FEW, figure, half_width
from kaem.bench.report.tables import report_markdown, tables_of
from kaem.bench.statistics import Estimate, median_estimate
from kaem.errors import ArtifactError, RequestError

COLD = {"start": 0.1, "import": 0.2, "load": 0.3, "first_image": 0.01, "total": 0.61}


def local_row(source, medians, batch=1, **more):
    medians = tuple(medians)
    fields = {
        "scenario": "batch",
        "source": source,
        "engine": "onnxruntime",
        "threads": 1,
        "batch": batch,
        "calls": 900,
        "turns": 18,
        "is_precise": True,
        "warm_calls": 30,
        "is_warm": True,
        "p50_ms": median_estimate(medians),
        "p90_ms": Estimate(2.0, 1.9, 2.1),
        "p99_ms": None,
        "cpu_ms": median_estimate(medians),
        "images_per_s": median_estimate([1e3 * batch / median for median in medians]),
        "joules_per_image": None,
        "launch_p50_ms": medians,
        "launch_cpu_ms": medians,
        "quantiles_ms": tuple(float(value) for value in np.linspace(0.5, 3, len(QUANTILES))),
    }
    return LocalRow(**{**fields, **more})


def server_row(rate, last):
    estimates = tuple(Estimate(value, 0.95 * value, 1.05 * value) for value in last)
    return ServerRow(
        target="grpc://host:1",
        rate=rate,
        kind="interactive",
        images=1,
        arrivals=1000,
        completed=990,
        timed_out=5,
        rejected=3,
        failed=2,
        statuses={"OK": 990, "DEADLINE_EXCEEDED": 5, "RESOURCE_EXHAUSTED": 3, "INTERNAL": 2},
        sent_per_s=rate,
        goodput_per_s=0.99 * rate,
        images_per_s=0.99 * rate,
        first_ms=estimates,
        last_ms=estimates,
        block_p50_ms=(1.0,) * 20,
        most_in_flight=7,
        lag_p99_ms=0.2,
        generator_cpu=0.3,
        is_generator_late=False,
        meets=True,
    )


def report(local=(), server=(), **more):
    names = dict.fromkeys(row.source for row in local)
    entrants = [
        Entrant(
            source=name, engine="onnxruntime", threads=1, settings={"provider": "CPU"}, cold_s=(COLD,) * 9, peak_bytes=9
        )
        for name in names
    ]
    fields = {
        "command": "kaem bench a.onnx",
        "arguments": ("a.onnx",),
        "machine": {"date": "today", "processor": "<x>"},
    }
    return Report(**{**fields, **more}, entrants=tuple(entrants), local=tuple(local), server=tuple(server))


STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99]
FULL = report(
    local=[local_row(name, [scale * batch**0.5 * one for one in STEADY], batch)
           for name, scale in (("a.onnx", 1.0), ("b|<b>.onnx", 1.3)) for batch in (1, 8)],
    server=[server_row(100.0, (1.0, 2.0, 3.0)), server_row(200.0, (2.0, 5.0, math.inf))],
    searches=(Search(target="grpc://host:1", objective="p99 <= 50 ms", highest_met=100.0, lowest_missed=None),),
    notes=("a note",),
)  # fmt: skip


def test_a_report_is_read_back_as_it_was(tmp_path):
    write_report(tmp_path / "r.json", FULL)
    assert read_report(tmp_path / "r.json") == FULL
    assert "Infinity" not in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no report at"),
        ("{", "cannot read"),
        ("[]", "not a report"),
        ('{"format": "kaem-bench", "format_version": 99}', "format 99"),
        ('{"format": "kaem-bench", "format_version": 1}', "damaged"),
        ('{"format": "kaem-bench", "format_version": 1, "command": 3, "arguments": [], "machine": {}}', "damaged"),
    ],
)
def test_what_is_not_a_report_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=said):
        read_report(path)


def test_every_field_of_the_json_is_described_in_the_documentation():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
    for cls in (Report, Entrant, Quality, LocalRow, ServerRow, Search):
        for field in dataclasses.fields(cls):
            assert f"`{field.name}`" in page, field.name


def test_a_ratio_is_printed_only_where_its_interval_leaves_out_one():
    noisy = [1.1, 0.9, 1.2, 0.8, 1.0, 1.1, 0.9, 1.05, 0.95]
    rows = [local_row("a", STEADY), local_row("b", [1.5 * one for one in STEADY]), local_row("c", noisy)]
    table = tables_of(report(local=rows))[0]
    speeds = [row[table.columns.index("speed")] for row in table.rows]
    assert speeds[0] == "1"
    assert speeds[1].startswith("0.667 (")
    assert speeds[2] == NO_DIFFERENCE
    few = tables_of(report(local=[local_row("a", STEADY[:4]), local_row("b", [9.0] * 4)]))[0]
    assert few.rows[1][few.columns.index("speed")] == TOO_FEW


def test_a_missing_percentile_is_a_dash_and_an_unanswered_one_is_said():
    local, _, server, *_ = tables_of(FULL)
    assert local.rows[0][local.columns.index("p99 ms")] == "-"
    assert server.rows[1][server.columns.index("last p99 ms")] == "no answer"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (1234567.0, "1,234,567"), (99.96, "100.0"), (0.0, "0"), (None, "-")]
)
def test_figures_have_three_digits(value, text):
    assert figure(value) == text


def test_markdown_holds_every_table_and_the_command():
    text = report_markdown(FULL)
    assert "kaem bench a.onnx" in text
    assert "b\\|<b>.onnx" in text
    for table in tables_of(FULL):
        assert f"## {table.title}" in text


def test_a_slower_model_is_flagged_and_an_equal_one_is_not():
    old = report(local=[local_row("m", STEADY)])
    assert {change.verdict for change in compare(old, old)} == {NO_DIFFERENCE}
    slow = report(local=[local_row("m", [1.3 * one for one in STEADY])])
    assert {change.verdict for change in compare(old, slow)} == {"slower"}
    assert {change.verdict for change in compare(slow, old)} == {"faster"}
    assert {change.verdict for change in compare(old, slow, margin=0.5)} == {NO_DIFFERENCE}
    noisy = report(local=[local_row("m", [1.3, 0.9, 1.6, 0.8, 1.2, 1.4, 0.7, 1.3, 1.5])])
    assert {change.verdict for change in compare(old, noisy)} == {NO_DIFFERENCE}
    few = report(local=[local_row("m", [2.0] * 5)])
    assert {change.verdict for change in compare(old, few)} == {TOO_FEW}


def test_servers_are_compared_by_rate_and_percentile():
    old = report(server=[server_row(100.0, (1.0, 2.0, 3.0))])
    new = report(server=[server_row(100.0, (1.0, 2.0, math.inf)), server_row(300.0, (9.0, 9.0, 9.0))])
    changes = {change.what.rsplit(" ", 1)[1]: change.verdict for change in compare(old, new)}
    assert changes == {"p50": NO_DIFFERENCE, "p90": NO_DIFFERENCE, "p99": "slower"}


def test_one_model_each_is_compared_whatever_it_is_called():
    old, new = report(local=[local_row("old.onnx", STEADY)]), report(local=[local_row("new.onnx", STEADY)])
    assert compare(old, new)
    both = report(local=[local_row("x.onnx", STEADY), local_row("y.onnx", STEADY)])
    with pytest.raises(RequestError, match="nothing in common"):
        compare(old, both)


def test_another_machine_is_named():
    there = dataclasses.replace(FULL, machine={**FULL.machine, "processor": "other"})
    assert differing_machines(FULL, FULL) == []
    assert differing_machines(FULL, there) == ["processor: <x> then, other now"]


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "path", "use", "image", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in ("meta", "path", "use", "image", "br"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_needs_no_network_and_takes_its_colours_from_the_reader():
    pytest.importorskip("matplotlib")
    from kaem.bench.report.page import page_of

    html = page_of(FULL)
    page = _Page()
    page.feed(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert html.count("<svg") >= 5
    assert not re.search(r"(?:fill|stroke): #", drawn)
    assert "a.onnx (onnxruntime, 1 thread) is 1.3 times as fast as b|<b>.onnx" in "".join(page.text)


def test_quality_stands_beside_speed_and_untrained_weights_are_labelled(tmp_path):
    quality = Quality(
        figure="frechet_infinity",
        value=2.5,
        standard_error=0.04,
        network="classifier",
        num_generated=1000,
        num_real=900,
        weights="sha256:1",
        sampling="kaem",
    )
    good, bare = FULL.entrants
    entrants = (
        dataclasses.replace(good, family="kaem", updates=3000, quality=quality),
        dataclasses.replace(bare, updates=0),
    )
    local = tuple(dataclasses.replace(row, is_untrained=row.source == bare.source) for row in FULL.local)
    shown = dataclasses.replace(FULL, entrants=entrants, local=local)
    write_report(tmp_path / "r.json", shown)
    assert read_report(tmp_path / "r.json") == shown
    text = report_markdown(shown)
    assert "| a.onnx | onnxruntime, 1 thread | 1 |" in text
    assert "| b\\|<b>.onnx (untrained) | onnxruntime, 1 thread | 1 |" in text
    assert "| a.onnx | kaem | 3,000 | kaem | 2.50 ± 0.04 | 1,000 / 900 | classifier |" in text
    assert "| b\\|<b>.onnx | - | untrained | - | - | - | - |" in text
    frontier = text[text.index("## Quality against speed") :]
    assert "| a.onnx | onnxruntime, 1 thread | 2.50 ± 0.04 |" in frontier
    pytest.importorskip("matplotlib")
    from kaem.bench.report.page import page_of

    page = page_of(shown)
    assert "Frechet distance over images" in page
    assert "(onnxruntime, 1 thread, untrained)" in page


def test_the_json_names_its_format():
    from kaem.bench.record import to_json

    content = json.loads(to_json(FULL))
    assert (content["format"], content["format_version"]) == ("kaem-bench", 1)


def test_a_width_is_given_only_of_times_that_end():
    assert half_width(Estimate(10.0, 9.0, 11.0)) == "10.0 %"
    assert half_width(Estimate(10.0, 9.0, math.inf)) == NOT_GIVEN
    assert half_width(Estimate(math.inf, math.inf, math.inf)) == NOT_GIVEN


@pytest.mark.parametrize("is_late", [False, True])
def test_a_search_that_a_late_generator_ended_says_so(is_late):
    pytest.importorskip("matplotlib")
    from kaem.bench.report.page import findings

    rows = [dataclasses.replace(server_row(rate, (1.0, 2.0, 3.0)), is_generator_late=is_late) for rate in (50.0, 56.0)]
    search = Search(target="grpc://host:1", objective="p99 <= 50 ms", highest_met=50.0, lowest_missed=56.0)
    ended = report(server=rows, searches=(search,))
    table = next(table for table in tables_of(ended) if table.name == "search")
    assert table.rows[0][3] == ("56.0 LATE" if is_late else "56.0")
    assert any("the server may do better" in note for note in table.notes) == is_late
    assert any("up to 50 requests/s; the load generator was late" in said for said in findings(ended)) == is_late
