"""Throughput by batch size, TF32 and CUDA graphs, written to benchmarks/results-gpu.md with the hardware and the date.

Noise and images stay on the GPU. It measures and asserts no speed. The model is $KAEM_GPU_MODEL, or a graph of the
size that the preset `svhn` has, with random weights.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from gpu.bound import Bound, cuda_session

from kaem.noise import uniforms

pytestmark = pytest.mark.gpu

ROWS = (1, 8, 64, 256, 1024)
RUNS = 200
MODES = {
    "float32": {},
    "float32, CUDA graph": {"cuda_graph": True},
    "float32, channels last": {"channels_last": True},
    "TF32": {"tf32": True},
    "TF32, CUDA graph": {"tf32": True, "cuda_graph": True},
}
RESULTS = Path(__file__).parents[2] / "benchmarks"


def _model() -> tuple[str, bytes]:
    named = os.environ.get("KAEM_GPU_MODEL")
    if named:
        return named, Path(named).read_bytes()
    from kaem_export import compile as compilation
    from kaem_export.graph import build_graph
    from kaem_export.prior_tables import tabulate
    from kaem_train.model.kaem import Kaem
    from kaem_train.settings import load_config

    model = Kaem(load_config("svhn", [])).eval()
    tables = tabulate(model.prior).tables
    graph = build_graph(tables, model.generator, "uint8", compilation._frame(model.prior))
    return "preset svhn, random weights, uint8", graph.SerializeToString()


def test_throughput_by_batch_size_and_mode(gpu):
    name, content = _model()
    times: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(2):  # twice, modes interleaved, so that a clock that drifts shows
        for mode, options in MODES.items():
            session = cuda_session(content, **options)
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
