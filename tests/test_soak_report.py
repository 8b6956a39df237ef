"""The soak's slope of memory: exact on a line, and with an interval that holds the truth as often as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from soak import slope_of

seconds = np.arange(0, 900, 1.0)
value, half = slope_of(list(zip(seconds, 200 + 36 * seconds / 3600)))
assert abs(value - 36) < 1e-9 and half < 1e-9, (value, half)
held, rng = 0, np.random.default_rng(0)
for _ in range(1000):
    value, half = slope_of(list(zip(seconds, 200 - 5 * seconds / 3600 + rng.normal(size=len(seconds)))))
    held += abs(value + 5) <= half
assert 930 <= held <= 970, held
"""


def test_the_slope_is_exact_on_a_line_and_its_interval_holds_the_truth_in_95_of_100():
    done = subprocess.run([sys.executable, "-c", CODE, str(BENCHMARKS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
