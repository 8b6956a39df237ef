"""Whether a row depends on its batch: other sizes, other positions, other threads.

Uniforms at which a graph is measured.

The noise: `kaem.noise` against the known answers of Random123, whose generator it implements.

What philox4x32-10 makes of three counters and keys, as published with the library of Salmon et al. (2011).

A tensor inside an artifact's graph, computed by the artifact's own nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.artifact import Figure, Manifest
from kaem.engines.cpu import LocalSampler
from kaem.engines.padding import calls, joined
from kaem.engines.session import open_session
from kaem.noise import philox4x32, uniforms

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


_SEED = 2506_14167


def probe_uniforms(dim: int, num: int) -> NDArray[np.float32]:
    """Signed uniforms, shape (2 num, D): half of them random, half spread evenly over log |v| in both tails."""
    depth = np.geomspace(2.0**-33, 0.5, num // 2)[:, None] * np.ones(dim)
    tails = np.concatenate([depth, -depth]).astype(np.float32)
    return np.concatenate([uniforms(_SEED, 0, num, dim), tails])


def tail_uniforms(dim: int, num: int, seed: int = _SEED) -> NDArray[np.float32]:
    """Signed uniforms, shape (num, D): random, but one of every row is in a tail, from 2^-7 down to 2^-33.

    What really occurs, in contrast to rows whose uniforms all are extreme at once.
    """
    rows = uniforms(seed, 0, num, dim)
    depth = np.geomspace(2.0**-33, 2.0**-7, num)
    index = np.arange(num)
    rows[index, index % dim] = np.where(index // dim % 2, depth, -depth)
    return rows


_KNOWN_ANSWERS = (
    ((0x00000000,) * 4, (0x00000000,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def noise_mismatches() -> Figure:
    """Count the words that differ from the known answers, and the uniforms of seed 0, index 0 that are not theirs."""
    wrong = 0
    for counter, key, answer in _KNOWN_ANSWERS:
        drawn = philox4x32(np.array(counter, np.uint32)[:, None], key)[:, 0]
        wrong += int(np.count_nonzero(drawn != np.array(answer, np.uint32)))
    signed = [word - (word >> 31 << 32) for word in _KNOWN_ANSWERS[0][2]]
    wanted = [np.float32((word + 0.5) * 2.0**-32) for word in signed]
    wrong += int(np.count_nonzero(uniforms(0, 0, 1, 4)[0] != wanted))
    return Figure(
        name="noise_mismatches",
        value=float(wrong),
        bound=0.0,
        meaning="words of noise that differ from the known answers of Random123 (philox4x32-10)",
    )


def inner_tensor(artifact: Path, name: str, uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a graph's tensor `name` holds for some uniforms, running no node that it does not need."""
    model = ir.load(artifact)
    part = ir.convenience.extract(model.graph, inputs=["uniform"], outputs=[name])
    part.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    content = ir.to_proto(ir.Model(part, ir_version=model.ir_version)).SerializeToString()
    session = open_session(content, "cpu", source=str(artifact))
    rows = part.inputs[0].shape
    fixed = rows[0] if rows is not None and isinstance(rows[0], int) else 0
    pieces = calls(uniform, (fixed,) if fixed else (), most=len(uniform))
    found = joined([session.run([name], {"uniform": piece})[0] for piece in pieces], len(uniform))
    return np.asarray(found, np.float32)
