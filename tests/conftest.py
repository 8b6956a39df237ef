from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

# As kaem_train does, but before any test module imports torch by itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Nor does a test ask the data hub, whose client reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from artifacts import write_small_artifact

# Servers of tests are on this machine; where a proxy is set for the rest of the world, plain clients must not use it.
for variable in ("no_proxy", "NO_PROXY"):
    os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), "127.0.0.1", "localhost", "::1")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes unless -m names it, whatever else -m says; let workers begin with long files."""
    if "soak" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if "PYTEST_XDIST_WORKER" in os.environ:
        # A long file that is begun last is waited for alone: files with slow tests first, then those with many.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        num_tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path not in slow, -num_tests[item.path], item.path))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests say they saw (`tests/faults`)."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    seen = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, text in report.user_properties
        if key == "saw"
    ]
    if seen:
        terminalreporter.section("what was seen")
        terminalreporter.write("\n".join(sorted(seen)) + "\n")


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grey model: D = 5, images (1, 8, 8)."""
    return write_small_artifact(tmp_path_factory.mktemp("small") / "small.onnx")


@pytest.fixture(scope="session")
def rgb_artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small colour model: D = 3, images (3, 6, 4)."""
    path = tmp_path_factory.mktemp("small-rgb") / "rgb.onnx"
    return write_small_artifact(path, noise_dim=3, image_shape=(3, 6, 4), seed=1)
