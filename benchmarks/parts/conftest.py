"""What all parts share: how much a call does, and a table in Markdown behind that of pytest-benchmark."""

from __future__ import annotations

import os

import pytest

from kaem.bench.environment import describe_machine
from kaem.bench.report.formatting import figure

# As kaem_train does, but before any part imports torch by itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MACHINE = pytest.StashKey[dict[str, str]]()
_NAMED = ("date", "processor", "cores", "load before", "numpy", "onnxruntime", "grpcio")
_ROW = "figure"


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
    machine = config.stash[_MACHINE]
    terminalreporter.section("in Markdown")
    terminalreporter.write_line(", ".join(f"{name} {machine[name]}" for name in _NAMED if name in machine))
    terminalreporter.write_line("\n| what | | median, µs | half its IQR | rate | |\n|---|---|---:|---:|---:|---|")
    for row in rows:
        terminalreporter.write_line(f"| {' | '.join(row)} |")


def _text(value: object) -> str:
    return figure(value) if isinstance(value, float) else str(value)
