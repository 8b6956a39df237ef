"""The u-error of an artifact's normal draws: |Phi(x(u)) - u|, on the very nodes that draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.special import ndtr

from kaem.artifact import Figure
from kaem_export.proof.rows import inner_tensor, probe_uniforms
from kaem_export.proof.scores import Quantiles, score_figures
from kaem_export.tables.leaves import TOLERANCE
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND

_PROBES = 200_000


def normal_figures(artifact: Path, noise_dim: int, name: str) -> tuple[Figure, ...]:
    """Measure the draws that a graph calls `name`, tails included, against scipy's Phi in float64.

    Args:
        artifact: The ONNX file.
        noise_dim: D.
        name: Name of a tensor (N, M), M at most D: the draws of the first M uniforms.
    """
    uniform = probe_uniforms(noise_dim, max(50, _PROBES // noise_dim))
    draws = inner_tensor(artifact, name, uniform)
    signed = np.where(uniform < 0.5, uniform, uniform - np.float32(1))[:, : draws.shape[1]].reshape(-1)
    x = draws.reshape(-1).astype(np.float64)
    u_error = Figure(
        name="u_error",
        value=float(np.abs(ndtr(x) - np.mod(signed.astype(np.float64), 1.0)).max()),
        bound=NORMAL_U_ERROR_BOUND,
        meaning="max |Phi(x(u)) - u|: the graph's normal draws against the normal distribution in float64",
    )
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    quantiles = Quantiles(signed=signed, z=draws.reshape(-1), cdf=ndtr(x), survival=ndtr(-x), density=density)
    return (u_error, *score_figures([quantiles], TOLERANCE))
