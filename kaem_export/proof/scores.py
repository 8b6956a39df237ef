"""How good quantiles are as float32 numbers: their scores, and their relative errors in the tails.

The score of a quantile z of u is

    |F(z) - u| / (max(2^-24, tolerance) + p(z) ulp(z)),

at most 1 where u is right to the tolerance, or z to one float. In the tails u itself is small; there it is

    (|F(z) - u| - 1.25 p(z) ulp(z)) / min(u, 1 - u),    at least 0,

1.25 floats being what a score may make of them.

F, 1 - F and p come from whoever checks, not from whoever made the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Figure
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.fit_tables import SCORE_BOUND, TAILS, beyond_floats, score

SCORE_999_BOUND = 1.0


Float32 = NDArray[np.float32]


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

    def u_error(self) -> float:
        """Return the largest |F(z) - u|; NaN where a quantile is none."""
        return float(np.max(np.abs(np.where(self.signed < 0, self.survival + self.signed, self.cdf - self.signed))))


def signed_uniforms(uniform: Float32) -> Float32:
    """Return v in [-1/2, 1/2] of the same u = v mod 1."""
    return np.asarray(np.where(uniform < 0.5, uniform, uniform - np.float32(1)), np.float32)


def score_figures(quantiles: list[Quantiles], tolerance: float, *, tails: bool = True) -> tuple[Figure, ...]:
    """Return the largest score, the one that 99.9 % stay below, and the errors in both tails.

    Args:
        quantiles: Quantiles of every function.
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
    relative = beyond_floats(errors, roundings) / distance
    return (
        *figures,
        *(
            Figure(
                name=name,
                value=float(relative[distance >= least].max()),
                bound=bound,
                meaning=f"max (|F(z) - u| - {SCORE_BOUND} p(z) ulp(z)) / min(u, 1 - u) where that is >= {least:.0e}",
            )
            for name, least, bound in TAILS
        ),
    )
