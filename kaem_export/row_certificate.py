"""Whether a row depends on its batch: other sizes, other positions, other threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Figure, Manifest
from kaem.runtime import LocalSampler
from kaem_export.probes import probe_uniforms

BRANCH_BOUND = 1e-5
"""Largest difference of a row between the two forms of a graph with a large-batch branch: rounding of both."""

BATCHES = (1, 2, 3, 5, 7, 8, 15, 16, 31, 33, 64, 100, 127, 128, 255, 256)
_WORKERS = (2, 3)


def row_figures(sampler: LocalSampler, artifact: Path, batches: Sequence[int] = BATCHES) -> tuple[Figure, Figure]:
    """Compare samples alone in their batch with the same samples in company and on several threads.

    Args:
        sampler: The loaded artifact, on one worker.
        artifact: Its file.
        batches: Sizes; each at the start, in the middle and at the end of a row of probes, in order and reversed.
    """
    num = max(batches)
    uniform = probe_uniforms(sampler.manifest.noise_dim, max(2, -(-num // 2)))[:num]  # tails come in pairs
    alone = np.concatenate([sampler.decode(row[None]) for row in uniform]).astype(np.float32)
    places = [
        (first, size, step)
        for size in batches
        for first in sorted({0, (num - size) // 2, num - size})
        for step in ((1, -1) if size > 1 and first == 0 else (1,))
    ]
    moved = [
        _difference(sampler, uniform[first : first + size][::step], alone[first : first + size][::step])
        for first, size, step in places
    ]
    threaded = []
    for workers in _WORKERS:
        with LocalSampler(artifact, workers=workers) as other:
            threaded += [_difference(other, uniform[:size], alone[:size]) for size in (num, num - 1) if size]
    bound = _bound(sampler.manifest)
    forms = "" if bound == 0.0 else ", small and large batches being computed by two forms"
    return (
        Figure(
            name="row_difference",
            value=float(np.max(moved)),
            bound=bound,
            meaning=f"max difference of one sample between batch sizes and positions{forms or '; 0 means equal bits'}",
        ),
        Figure(
            name="thread_difference",
            value=float(np.max(threaded)),
            bound=bound,
            meaning=f"max difference of one sample between 1, 2 and 3 worker threads{forms or '; 0 means equal bits'}",
        ),
    )


def _difference(sampler: LocalSampler, uniform: NDArray[np.float32], alone: NDArray[np.float32]) -> float:
    return float(np.abs(sampler.decode(uniform).astype(np.float32) - alone).max())


def _bound(manifest: Manifest) -> float:
    if manifest.compilation.get("large_batch_rows", 0) > 1:
        return {"float32": BRANCH_BOUND, "uint8": 1.0}[manifest.image_type]  # a pixel on the edge of two levels
    return 0.0
