"""What all parts share: how much a call does, and a table in Markdown behind that of pytest-benchmark.

With `--record` the table becomes the record of docs/benchmark-results.md.
"""

from __future__ import annotations

import os

import pytest
from benchmark_page import PAGE, RECORDS, block_of_table, render_page, write_record

from kaem.bench.environment import describe_machine
from kaem.bench.report.formatting import Table, figure
from kaem.bench.report.tables import to_markdown

# As kaem_train does, but before any part imports torch by itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MACHINE = pytest.StashKey[dict[str, str]]()
_NAMED = ("date", "processor", "cores", "load before", "numpy", "onnxruntime", "grpcio")
_ROW = "figure"
_COLUMNS = ("what", "", "median, µs", "half its IQR", "rate", "")


@pytest.fixture
def amount(benchmark, request):
    """Say what one call does, `amount(64, "images")`: its rate is saved with the times, and shown."""
    said = {}

    def say(num: float, unit: str) -> None:
        said[unit] = num

    yield say
    if benchmark.stats is None:  # with --benchmark-disable
        return
    stats = benchmark.stats.stats
    rates = {f"{unit}/s": num / stats.median for unit, num in said.items()}
    benchmark.extra_info |= rates
    cells = (
        benchmark.group or "",
        benchmark.name,
        figure(1e6 * stats.median),
        f"{50 * stats.iqr / stats.median:.1f} %",
        ", ".join(f"{figure(rate)} {unit}" for unit, rate in rates.items()),
        ", ".join(f"{name} {_text(value)}" for name, value in benchmark.extra_info.items() if name not in rates),
    )
    request.node.user_properties.append((_ROW, cells))


@pytest.fixture(scope="module")
def one_thread():
    """Let torch, NumPy and SciPy compute on one thread, as exporting does."""
    from kaem_export.one_thread import one_thread as limited

    with limited():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="keep the table, write docs/benchmark-results.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MACHINE] = describe_machine()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [
        cells
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, cells in report.user_properties
        if name == _ROW
    ]
    if not rows:
        return
    machine = ", ".join(f"{name} {value}" for name, value in config.stash[_MACHINE].items() if name in _NAMED)
    table = Table(name="parts", title="", columns=_COLUMNS, rows=tuple(rows), words=("what", ""))
    terminalreporter.section("in Markdown")
    terminalreporter.write_line(f"{machine}\n\n{to_markdown(table)}")
    if config.getoption("--record"):
        write_record(RECORDS / "parts.json", [{"text": machine}, block_of_table(table)])
        PAGE.write_text(render_page(RECORDS), encoding="utf-8")


def _text(value: object) -> str:
    return figure(value) if isinstance(value, float) else str(value)
