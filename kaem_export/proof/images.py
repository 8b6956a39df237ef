"""The images of an artifact: parity with torch, sameness in every batch, the range of their intensities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.errors import ArtifactError
from kaem_export.proof.intensities import range_figure
from kaem_export.proof.rows import noise_mismatches, probe_uniforms, row_figures, tail_uniforms
from kaem_export.rewrite.int8 import MOST_ERROR, PROBES
from kaem_train.config.settings import Config
from kaem_train.model.generators.onnx_generator import OnnxGenerator

PARITY_BOUND = 1e-5
"""Largest difference of an intensity in [0, 1] between ONNX Runtime and torch, both in float32."""

PARITY_BOUNDS = {"float32": PARITY_BOUND, "float16": 2e-2, "int8": MOST_ERROR}
"""The same by the precision of the generator. With float16 two thousandths of the range are common and a steep sigmoid
makes more of them; what int8 promises is its signal-to-noise ratio, and this bound, at samples of
which one latent is in a tail, only that no pixel is lost."""

_PARITY_ROWS = 256
_USUAL_LATENT = 16.0
"""Size of a latent up to which `PARITY_BOUND` holds: what a layer rounds grows with what it is given."""


def generator_figures(
    sampler: LocalSampler, artifact: Path, config: Config, generator: torch.nn.Module
) -> tuple[Figure, ...]:
    """Measure the images that a generator makes of an artifact's latents.

    Args:
        sampler: The loaded artifact, on one worker.
        artifact: Its file.
        config: Configuration of the checkpoint.
        generator: Generator of the checkpoint, in float32 and evaluation mode.
    """
    figures = (image_parity(sampler, generator), *row_figures(sampler, artifact), noise_mismatches())
    match config.generator.kind:
        case "cnn" | "kan" | "onnx":
            return figures  # ours end in a sigmoid, and a finished decoder is clipped in its file
        case "module":
            return *figures, range_figure(sampler, generator)
        case _:
            assert_never(config.generator.kind)


def image_parity(sampler: LocalSampler, generator: torch.nn.Module) -> Figure:
    """max |onnx - torch| of the images decoded from the same latents; of a finished decoder, itself alone."""
    precision = sampler.manifest.compilation.get("precision", "float32")
    match precision:
        case "int8":  # whose units fit what occurs, and that is not every uniform extreme at once
            uniform = tail_uniforms(sampler.manifest.noise_dim, PROBES)
        case "float32" | "float16":
            uniform = probe_uniforms(sampler.manifest.noise_dim, _PARITY_ROWS)
        case _:
            raise ArtifactError(f"the manifest of {sampler.manifest.name} states no known precision, but {precision!r}")
    latents = sampler.latents(uniform)
    with torch.no_grad():
        expected = generator(torch.from_numpy(latents)).clamp(0.0, 1.0).numpy()
    images = sampler.decode(uniform)
    bound = PARITY_BOUNDS[precision]
    if precision == "float32":
        bound *= _parity_scale(latents)
    if sampler.manifest.image_type == "uint8":
        images, bound = images / np.float32(255), bound + 0.5 / 255  # rounding to 8 bits is part of the graph
    return Figure(
        name="image_parity",
        value=float(np.abs(images - expected).max()),
        bound=bound,
        meaning="max |onnx - decoder alone| over images of the same latents, both in ONNX Runtime"
        if isinstance(generator, OnnxGenerator)
        else f"max |onnx - torch| over images of the same latents, intensities in [0, 1], generator in {precision}",
    )


def _parity_scale(latents: NDArray[np.float32]) -> float:
    """Return how many times as large as usual the largest latent is, as a power of two, so that machines agree."""
    largest = float(np.abs(latents).max())
    return 2.0 ** math.ceil(math.log2(largest / _USUAL_LATENT)) if _USUAL_LATENT < largest < math.inf else 1.0
