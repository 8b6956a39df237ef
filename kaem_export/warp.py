"""Distributions to warps of the normal: z = T(x), T = F^-1 o Phi, with x the normal quantile of the uniform.

An experts prior has K Q distributions, thousands of them, so a table of each must be small. In u a quantile
function rises without limit at both ends, and a small table cannot follow it. In x it is nearly a straight line,
tails included, for every density with a Gaussian part (exactly one where there is nothing else). So one table of
the normal quantile, as fine as those of `quantile.py`, is shared by all, and each distribution has a short table
of cubic pieces on equal cells of x over [-6.5, 6.5]; float32 uniforms reach 6.4.

Every piece rises monotonically between exact quantiles, so F(T(x)) and Phi(x) lie in the same cell: the u-error is
below the mass of a cell, 0.4 times its width, for any distribution whatever. Where T is smooth it falls
with the fourth power of the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, ndtri

from kaem_export.collapse import Float64, LatentDistributions
from kaem_export.quantile import LEVEL_SCALE, LEVELS, TABLE_CELLS, QuantileTables

REACH = 6.5
BUDGET_BYTES = 12_000_000
WANTED_U_ERROR = 2e-5
LEAST_CELLS = 8
ENOUGH_CELLS = 128
"""However few the cells are, the error is looked for as in this many."""

MOST_CELLS = 4096
_BYTES_PER_CELL = 16
_PROBES = np.array([0.2, 0.5, 0.8])
_LEAST_MASS = 1e-12
_LEAST_STEP = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpTables:
    """Piecewise cubic T of R distributions.

    Attributes:
        coefficients: Shape (R, J, 4), float32: T = a0 + a1 t + a2 t^2 + a3 t^3 in cell j, where
            (x + REACH) J / (2 REACH) = j + t.
        u_error: Estimate of the largest |Phi(x) - F(T(x))|, from three points or more of every cell.
    """

    coefficients: NDArray[np.float32]
    u_error: float

    @property
    def u_error_bound(self) -> float:
        """What the graph's u-error must stay under: twice the estimate and a cell of the normal table.

        Never more than the proved bound, the largest mass of a cell; 5 % are for float32 arithmetic.
        """
        proved = 2 * REACH / self.coefficients.shape[1] / math.sqrt(2 * math.pi)
        return float(1.05 * (min(2 * self.u_error, proved) + 1 / TABLE_CELLS))


def warp_tables(distributions: LatentDistributions, *, budget_bytes: int = BUDGET_BYTES) -> WarpTables:
    """Tabulate T of R distributions on the fewest cells that reach a u-error of 2e-5.

    The number of cells J, one for all, starts at 8, enough for straight lines, and doubles up to 4096 as long as all
    tables together stay within the budget, which never forces it below 128. What is reached then is for the certificate
    to say.
    """
    rows = list(zip(distributions.edges, distributions.cdf, strict=True))
    cells, most = LEAST_CELLS, _most_cells(len(rows), budget_bytes)
    pieces = []
    for edges, cdf in rows:
        warp = _Warp(edges, cdf)
        found = _pieces(warp, cells)
        while found[1] > WANTED_U_ERROR and cells < most:
            cells *= 2
            found = _pieces(warp, cells)
        pieces.append(found)
    for row, (edges, cdf) in enumerate(rows):  # those that came before the most demanding one
        if len(pieces[row][0]) < cells:
            pieces[row] = _pieces(_Warp(edges, cdf), cells)
    return WarpTables(coefficients=np.stack([table for table, _ in pieces]), u_error=max(error for _, error in pieces))


def _most_cells(num_rows: int, budget_bytes: int) -> int:
    most = ENOUGH_CELLS
    while most < MOST_CELLS and 2 * most * num_rows * _BYTES_PER_CELL <= budget_bytes:
        most *= 2
    return most


def normal_table() -> QuantileTables:
    """Return the one table of the normal quantile, clipped to [-REACH, REACH], that all warps share."""
    left, width = np.empty((2, 1, LEVELS, TABLE_CELLS), np.float32)
    for level in range(LEVELS):
        tail = np.arange(TABLE_CELLS // 2 + 1) / (TABLE_CELLS * LEVEL_SCALE**level)
        lower = np.maximum(ndtri(tail), -REACH).astype(np.float32)
        knots = np.stack([lower, -lower[::-1]])
        left[0, level], width[0, level] = knots[:, :-1].reshape(-1), np.diff(knots, axis=1).reshape(-1)
    return QuantileTables(left=left, width=width)


def _pieces(warp: _Warp, cells: int) -> tuple[NDArray[np.float32], float]:
    """Return the cubic pieces (J, 4) of one distribution and an estimate of their largest u-error."""
    x, step = np.linspace(-REACH, REACH, cells + 1, retstep=True)
    value = np.maximum.accumulate(warp(x))
    # Fritsch and Carlson: a cubic whose end slopes are at most three times its mean slope is monotone.
    rise = np.diff(value)
    least = np.minimum(np.append(rise, rise[-1]), np.insert(rise, 0, rise[0]))
    gain = np.clip(step * warp.slope(x), 0.0, 3.0 * least)
    begin, end = gain[:-1], gain[1:]
    pieces = np.stack([value[:-1], begin, 3.0 * rise - 2.0 * begin - end, begin + end - 2.0 * rise], axis=-1)
    parts = max(1, ENOUGH_CELLS // cells)
    within = (np.arange(parts)[:, None] + _PROBES) / parts  # (parts, probes), places in a cell
    probes = x[:-1, None, None] + step * within
    offset = np.abs(np.polynomial.polynomial.polyval(within, pieces.T, tensor=True) - warp(probes))
    # dz = T' dx and du = phi(x) dx, with T' the mean slope of the part.
    ends = warp(np.linspace(-REACH, REACH, cells * parts + 1))
    rise = np.maximum(np.diff(ends), _LEAST_STEP).reshape(cells, parts, 1)
    mass = step / parts * np.exp(-0.5 * probes**2) / math.sqrt(2.0 * math.pi)
    return pieces.astype(np.float32), float((mass * np.minimum(offset / rise, 1.0)).max())


class _Warp:
    """T of one tabulated CDF, monotone cubic in x between the tabulated points."""

    def __init__(self, edges: Float64, cdf: Float64) -> None:
        self._edges, self._cdf = edges, cdf
        known = (cdf > _LEAST_MASS) & (cdf < 1.0 - _LEAST_MASS)
        points = np.where(cdf[known] < 0.5, ndtri(cdf[known]), -ndtri(1.0 - cdf[known]))
        # Flat stretches of the CDF are jumps of T: keep the right end of each.
        rises = np.append(np.diff(points) > _LEAST_STEP, True)
        self._low, self._high = points[0], points[-1]
        self._interpolant = PchipInterpolator(points[rises], edges[known][rises], extrapolate=False)
        self._derivative = self._interpolant.derivative()

    def __call__(self, x: Float64) -> Float64:
        # Beyond the outermost tabulated points the CDF is linear in z.
        outside = np.interp(ndtr(x), self._cdf, self._edges)
        return np.where((x < self._low) | (x > self._high), outside, self._interpolant(x))

    def slope(self, x: Float64) -> Float64:
        """Return dT/dx, or an estimate of it beyond the outermost tabulated points."""
        outside = np.gradient(self(x), x)
        return np.where((x < self._low) | (x > self._high), outside, self._derivative(x))
