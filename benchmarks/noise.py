"""What the noise of a sample costs, by rows and width, beside numpy's own generators.

    python benchmarks/noise.py
    python benchmarks/noise.py --rows 1,64,1024 --dim 33 --rounds 31

Rows are measured in turn, round after round in random order, in processor time of one thread. Prints a Markdown table;
a ratio is given only where its 95 % interval leaves out 1.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np

from kaem import noise
from kaem.bench.cells import figure, words_of
from kaem.bench.environment import describe_machine
from kaem.bench.statistics import median_estimate, paired_ratio

TURN_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64,256,1024")
    parser.add_argument("--dim", type=int, default=33, help="uniforms of a row")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    machine = describe_machine()
    print(", ".join(f"{name} {machine[name]}" for name in ("date", "processor", "load before", "numpy")))
    print("\n| rows | kaem.noise ms | million uniforms/s | numpy Philox / kaem | numpy PCG64 / kaem |")
    print("|---|---:|---:|---|---|")
    for rows in map(int, arguments.rows.split(",")):
        times = measured(rows, arguments.dim, arguments.rounds)
        own = times["kaem"]
        typical = median_estimate(own).value
        cells = [str(rows), figure(1e3 * typical), figure(rows * arguments.dim / typical / 1e6)]
        cells += [words_of(paired_ratio(times[name], own)) for name in ("philox", "pcg64")]
        print(f"| {' | '.join(cells)} |")


def measured(rows: int, dim: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of a call, by generator and round."""
    philox, pcg64 = np.random.Generator(np.random.Philox(1)), np.random.Generator(np.random.PCG64(1))
    calls = {
        "kaem": lambda: noise.uniforms(7, 123, rows, dim),
        "philox": lambda: philox.random((rows, dim), np.float32),
        "pcg64": lambda: pcg64.random((rows, dim), np.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            calls[name]()
            begin, num = time.process_time(), 0
            while time.process_time() - begin < TURN_S:
                calls[name]()
                num += 1
            times[name].append((time.process_time() - begin) / num)
    return times


if __name__ == "__main__":
    main()
