"""Benchmarks of parts run where they are named, whatever part, and say what they measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kaem.bench.report.formatting import figure

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "benchmarks" / "parts"


def measure(*words: str) -> str:
    """What pytest prints, called as a user does: not as a worker of the run that this test is part of."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_part_runs():
    printed = measure(str(PARTS), "--benchmark-disable", "-q", "-rp")
    ran = set(re.findall(r"^PASSED .*?(bench_\w+\.py)::", printed, flags=re.MULTILINE))
    assert ran == {f"bench_{part}.py" for part in ("noise", "tables", "passes", "scheduler", "transport")}
    assert ran == {path.name for path in PARTS.glob("bench_*.py")}


def test_a_part_by_itself_is_measured_saved_and_shown(tmp_path):
    saved = tmp_path / "noise.json"
    words = ("-k", "[64-", "--benchmark-max-time=0.01", f"--benchmark-json={saved}")
    printed = measure("benchmarks/parts/bench_noise.py", *words)
    benchmarks = json.loads(saved.read_text())["benchmarks"]
    assert {one["name"] for one in benchmarks} >= {"kaem, one seed", "numpy Philox"}
    for one in benchmarks:
        rate = one["extra_info"]["uniforms/s"]
        assert rate * one["stats"]["median"] == pytest.approx(64 * 33)
        assert re.search(rf"\| noise, 64 x 33 \| {one['name']} \| .* \| {figure(rate)} uniforms/s \|", printed)
