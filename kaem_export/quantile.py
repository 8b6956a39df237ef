"""Distributions to quantile tables: z = F^-1(u) by one lookup and one multiply-add.

For a signed uniform v (u = v mod 1) the table has LEVELS levels of K equal cells of u each. Level 0 spans all of
(0, 1); level l repeats the same cells 128^l times finer on the two tails |v| < 128^-l / 2 of total mass 128^-l,
and the finest level that contains v is used. Inside a cell the quantile is interpolated linearly, so F(T(u))
and u always lie in the same cell: the u-error is below 1 / K for any distribution whatever, far below it where
the density is smooth, and in the tails it stays below 1 / (128^l K). K and 128 are powers of two, so scaling a
float32 uniform and splitting off the fraction are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from kaem_export.collapse import Float64, LatentDistributions

TABLE_CELLS = 4096
"""K; at 8 bytes a cell and three levels a coordinate's table takes 96 KiB."""

U_ERROR_BOUND = 1.05 / TABLE_CELLS
"""What linear interpolation between exact quantiles can be off at most, and 5 % for float32 latents."""

LEVELS = 3
LEVEL_SCALE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileTables:
    """Piecewise linear quantile functions of Q coordinates.

    Cell `k` of level `l` begins at u = k / (K 128^l) for k < K / 2 (lower tail) and at u = 1 - (K - k) / (K 128^l)
    for k >= K / 2 (upper tail), which is where floor(v K 128^l) mod K points.

    Attributes:
        left: Shape (Q, LEVELS, K), float32, the quantile at the lower end of each cell.
        width: Shape (Q, LEVELS, K), float32, what it gains up to the upper end; never negative.
    """

    left: NDArray[np.float32]
    width: NDArray[np.float32]


def quantile_tables(distributions: LatentDistributions, cells: int = TABLE_CELLS) -> QuantileTables:
    """Tabulate the quantile functions of Q distributions.

    Args:
        distributions: Cumulative masses on cell edges.
        cells: K, a power of two.

    Returns:
        Tables that never descend and never leave the support.
    """
    if cells < 2 or cells & (cells - 1):
        raise ValueError(f"cells is {cells}; it must be a power of two")
    tails = [np.arange(cells // 2 + 1) / (cells * LEVEL_SCALE**level) for level in range(LEVELS)]
    shape = (len(distributions.edges), LEVELS, cells)
    left, width = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for q, (edges, cdf) in enumerate(zip(distributions.edges, distributions.cdf, strict=True)):
        quantile = _inverse(edges, cdf)
        for level, tail in enumerate(tails):
            for half, u in ((slice(None, cells // 2), tail), (slice(cells // 2, None), 1 - tail[::-1])):
                knots = np.maximum.accumulate(quantile(u).astype(np.float32))
                left[q, level, half] = knots[:-1]
                width[q, level, half] = np.diff(knots)
    return QuantileTables(left=left, width=width)


class _inverse:  # noqa: N801  (reads as a function: it is one, with its interpolant prepared once)
    """The quantile function of one tabulated CDF, monotone cubic between the tabulated points."""

    def __init__(self, edges: Float64, cdf: Float64) -> None:
        # Flat stretches of the CDF are jumps of its inverse: keep the right end of each, and stop where the CDF
        # first reaches 1, for beyond lies no mass. Flat means less than 2^-50 of it: far below the finest cell,
        # and slopes of dz/dF stay finite.
        steps = np.floor(cdf * 2.0**50)
        end = int(np.argmax(steps >= steps[-1])) + 1
        edges, cdf = edges[:end], cdf[:end]
        keep = np.append(np.diff(steps[:end]) > 0, True)
        self._low, self._high = edges[keep][0], edges[-1]
        self._interpolant = PchipInterpolator(cdf[keep], edges[keep])

    def __call__(self, u: Float64) -> Float64:
        return np.clip(self._interpolant(u), self._low, self._high)
