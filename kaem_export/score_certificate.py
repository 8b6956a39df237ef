"""How good quantiles are as float32 numbers: their scores, and their relative errors in the tails.

The score of a quantile z of u is

    |F(z) - u| / (max(2^-24, tolerance) + p(z) ulp(z)),

at most 1 where u is right to the tolerance, or z to one float. In the tails u itself is small; there it is

    (|F(z) - u| - p(z) ulp(z)) / min(u, 1 - u),    at least 0.

F, 1 - F and p come from whoever checks, not from whoever made the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Figure
from kaem_export.bake import SCORE_BOUND, score
from kaem_export.chebyshev_cdf import Float64

SCORE_999_BOUND = 1.0
_TAILS = (("tail_error", 1e-6, 1e-3), ("far_tail_error", 1e-8, 1e-2))
"""Figure, least min(u, 1 - u) that it speaks of, and its bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Quantiles of one function, with the truth at each: all of shape (N,).

    Attributes:
        signed: v, u = v mod 1, float32.
        z: What the graph made of them, float32.
        cdf: F(z).
        survival: 1 - F(z), to its own relative precision.
        density: p(z).
    """

    signed: NDArray[np.float32]
    z: NDArray[np.float32]
    cdf: Float64
    survival: Float64
    density: Float64


def score_figures(quantiles: list[Quantiles], tolerance: float, *, tails: bool = True) -> tuple[Figure, ...]:
    """Return the largest score, the one that 99.9 % stay below, and the errors in both tails.

    Args:
        quantiles: Of every function.
        tolerance: What the tables were made for.
        tails: Whether the truth is relatively precise in the tails.
    """
    parts = [score(part.cdf, part.survival, part.density, part.signed, part.z, tolerance) for part in quantiles]
    scores, errors, roundings = (np.concatenate(column) for column in zip(*parts, strict=True))
    wanted = f"|F(z) - u| / ({max(tolerance, 2.0**-24):.1e} + p(z) ulp(z)) of float32 latents z, F and p independent"
    figures = [
        Figure(name="score", value=float(scores.max()), bound=SCORE_BOUND, meaning=f"max {wanted}"),
        Figure(
            name="score_999",
            value=float(np.quantile(scores, 0.999)),
            bound=SCORE_999_BOUND,
            meaning="what 99.9 % of the scores stay below",
        ),
    ]
    if not tails:
        return tuple(figures)
    distance = np.abs(np.concatenate([part.signed for part in quantiles]).astype(np.float64))
    relative = np.where(np.isnan(errors), np.nan, np.maximum(errors - roundings, 0.0)) / distance
    return (
        *figures,
        *(
            Figure(
                name=name,
                value=float(relative[distance >= least].max()),
                bound=bound,
                meaning=f"max (|F(z) - u| - p(z) ulp(z)) / min(u, 1 - u) where >= {least:.0e}, both tails",
            )
            for name, least, bound in _TAILS
        ),
    )
