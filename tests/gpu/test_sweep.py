"""Throughput by batch size, precision and CUDA graphs, written to benchmarks/results-gpu.md with hardware and date.

Noise and images stay on the GPU. It measures and asserts no speed. The network is that of docs/benchmarks.md's goals,
with random weights, or $KAEM_GPU_MODEL as it is.
"""

from __future__ import annotations

import datetime
import json
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from gpu.bound import Bound, cuda_session
from gpu.network import sweep_graphs

from kaem.noise import uniforms

pytestmark = pytest.mark.gpu

ROWS = (1, 8, 64, 256, 1024, 4096)
RUNS = 200
MODES = {
    "float32": ("float32", {}),
    "float32, CUDA graph": ("float32", {"cuda_graph": True}),
    "float32, channels last": ("float32", {"channels_last": True}),
    "TF32": ("float32", {"tf32": True}),
    "TF32, CUDA graph": ("float32", {"tf32": True, "cuda_graph": True}),
    "float16": ("float16", {}),
    "float16, CUDA graph": ("float16", {"cuda_graph": True}),
}
RESULTS = Path(__file__).parents[2] / "benchmarks"


def test_throughput_by_batch_size_and_mode(gpu):
    name, graphs = sweep_graphs()
    modes = {mode: about for mode, about in MODES.items() if about[0] in graphs}
    times: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(2):  # twice, modes interleaved, so that a clock that drifts shows
        for mode, (precision, options) in modes.items():
            session = cuda_session(graphs[precision], **options)
            for rows in ROWS:
                bound = Bound(session, rows, records=options.get("cuda_graph", False))
                bound.run(uniforms(1, 0, rows, session.get_inputs()[0].shape[1]))
                for _ in range(20):
                    bound.again()
                laps = []
                for _ in range(RUNS):
                    begin = time.perf_counter()
                    bound.again()
                    laps.append(time.perf_counter() - begin)
                times.setdefault((mode, rows), []).append(laps)
    rows_of_table = [
        {
            "mode": mode,
            "rows": rows,
            "median_ms": [1e3 * float(np.median(laps)) for laps in both],
            "p99_ms": [1e3 * float(np.quantile(laps, 0.99)) for laps in both],
            "images_per_s": [rows / float(np.median(laps)) for laps in both],
        }
        for (mode, rows), both in times.items()
    ]
    assert all(np.isfinite(row["images_per_s"]).all() for row in rows_of_table)
    about = {
        "gpu": gpu.name,
        "driver": gpu.driver,
        "onnxruntime-gpu": metadata.version("onnxruntime-gpu"),
        "model": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "runs": RUNS,
    }
    (RESULTS / "results-gpu.json").write_text(json.dumps({**about, "results": rows_of_table}, indent=1) + "\n")
    lines = [
        "# Throughput on a GPU",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "Noise and images stay on the GPU; two passes, both shown.",
        "",
        "| mode | batch | median ms | p99 ms | images/s |",
        "|---|---|---|---|---|",
    ]
    for row in rows_of_table:
        cells = (" / ".join(f"{value:.4g}" for value in row[key]) for key in ("median_ms", "p99_ms", "images_per_s"))
        lines.append(f"| {row['mode']} | {row['rows']} | {' | '.join(cells)} |")
    (RESULTS / "results-gpu.md").write_text("\n".join(lines) + "\n")
