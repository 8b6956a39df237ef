"""Distribution functions to leaves: pieces of F^-1, each a Moebius map followed by a quintic polynomial.

The pieces are chosen in z, for F^-1 is nearly vertical in valleys and tails and no grid in u follows it. Signed
uniforms v name the quantiles: v = F(z) below the median, v = -(1 - F(z)) above it, so that both tails are resolved. On
a leaf [z_a, z_b] with v_a, v_b and m = v_b - v_a,

    tau = (v - v_a) / m,   y = tau / (b + (1 - b) tau),   z = sum_k c_k y^k,   b = sqrt(p(z_a) / p(z_b)).

The Moebius map takes out what the ends differ in steepness; the quintic interpolates z at six points that are chosen
in z, so that no root of F is ever searched for. A leaf that misses its tolerance is halved in z, all leaves
of all functions at once; then neighbours that one leaf can replace are merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaem_export.tables.chebyshev_cdf import Float64, Integers, PiecewiseDensities

Index = NDArray[np.bool_] | Integers | slice

TOLERANCE = 2.0**-24
"""Error in u that the leaves aim at: what float32 uniforms can tell."""

LEAST_V = 2.0**-33
"""Smallest signed uniform that there is."""

_RELATIVE = 1e-3
_FINEST = 2.0**-36
_MARGIN = 0.6
"""Of the tolerance that the polynomial may use; the rest is for float32. With 0.75 a trained prior scored 1.36."""

_TILT = 1e-6
"""Times the root of a leaf's mass: an error that wiggles over so little mass tilts the density most."""

_SMALL_MASS = 2.0**-29
_TAIL = 2.0**-20
_TAIL_MASS = 2.0**-36
_MOST_ROUNDS = 60
_B_RANGE = (0.02, 50.0)
_DEGREE = 5
_MOST_CANCELLATION = 8.0

_LOBATTO = 0.5 - 0.5 * np.cos(np.pi * np.arange(_DEGREE + 1) / _DEGREE)
_BETWEEN = 0.5 - 0.5 * np.cos(np.pi * (np.arange(9) + 0.5) / 9)
_PLACES = np.concatenate([_LOBATTO, _BETWEEN])[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """N leaves of R functions, by function and ascending v.

    Attributes:
        row: Shape (N,), the function of each leaf.
        is_upper: Shape (N,), whether it lies above the median.
        is_forced: Shape (N,), whether its left end must stay a leaf's end.
        left: Shape (N,), z_a.
        right: Shape (N,), z_b.
    """

    row: Integers
    is_upper: NDArray[np.bool_]
    is_forced: NDArray[np.bool_]
    left: Float64
    right: Float64

    def __len__(self) -> int:
        return len(self.row)

    def chosen(self, index: Index) -> Leaves:
        """Return some of the leaves."""
        return Leaves(
            row=self.row[index],
            is_upper=self.is_upper[index],
            is_forced=self.is_forced[index],
            left=self.left[index],
            right=self.right[index],
        )

    def halves(self) -> Leaves:
        """Return all leaves cut in two, left halves first."""
        middle = snapped(0.5 * (self.left + self.right))
        return Leaves(
            row=np.tile(self.row, 2),
            is_upper=np.tile(self.is_upper, 2),
            is_forced=np.concatenate([self.is_forced, np.zeros_like(self.is_forced)]),
            left=np.concatenate([self.left, middle]),
            right=np.concatenate([middle, self.right]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What N leaves compute, in float64.

    Attributes:
        start: Shape (N,), v_a.
        end: Shape (N,), v_b.
        steepness: Shape (N,), b.
        coefficients: Shape (N, 6), c.
        is_good: Shape (N,), whether it keeps the tolerance and ascends.
    """

    start: Float64
    end: Float64
    steepness: Float64
    coefficients: Float64
    is_good: NDArray[np.bool_]

    def chosen(self, index: Index) -> Pieces:
        """Return some of them."""
        return Pieces(
            start=self.start[index],
            end=self.end[index],
            steepness=self.steepness[index],
            coefficients=self.coefficients[index],
            is_good=self.is_good[index],
        )


def snapped(z: Float64) -> Float64:
    """Round to float32: a leaf that begins at one has no error there."""
    return z.astype(np.float32).astype(np.float64)


def unsorted(parts: list[Leaves]) -> Leaves:
    """Join leaves as they come."""
    names = ("row", "is_upper", "is_forced", "left", "right")
    return Leaves(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def in_order(leaves: Leaves) -> Integers:
    """Return the order of leaves by function and ascending v."""
    return np.lexsort((leaves.left, ~leaves.is_upper, leaves.row))


def concatenated(parts: list[Leaves]) -> Leaves:
    """Join leaves and put them in order."""
    leaves = unsorted(parts)
    return leaves.chosen(in_order(leaves))


def joined(parts: list[Pieces]) -> Pieces:
    """Join what leaves compute."""
    names = ("start", "end", "steepness", "coefficients", "is_good")
    return Pieces(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def bisected(densities: PiecewiseDensities, leaves: Leaves, tolerance: float) -> Leaves:
    """Halve leaves until they keep the tolerance, or are too small to matter."""
    open_leaves, done = leaves, []
    for _ in range(_MOST_ROUNDS):
        pieces = fit(densities, open_leaves, tolerance)
        is_done = pieces.is_good | is_small(pieces, open_leaves)
        done.append(open_leaves.chosen(is_done))
        if is_done.all():
            break
        open_leaves = open_leaves.chosen(~is_done).halves()
    else:
        done.append(open_leaves)
    return concatenated(done)


def fit(densities: PiecewiseDensities, leaves: Leaves, tolerance: float) -> Pieces:
    """Fit every leaf; those too small to matter, or that fail, become straight lines if they are no good."""
    width = leaves.right - leaves.left
    z = leaves.left + width * _PLACES
    z[_DEGREE] = leaves.right
    cdf, survival, density = densities.evaluate(leaves.row, z)
    v = np.where(leaves.is_upper, -survival, cdf)
    start, end = v[0], v[_DEGREE]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steepness = np.clip(np.sqrt(density[0] / density[_DEGREE]), *_B_RANGE)
        tau = (v - start) / (end - start)
        y = tau / (steepness + (1.0 - steepness) * tau)
        coefficients = _interpolated(y[: _DEGREE + 1])
        value, slope = coefficients[-1], np.zeros_like(y)
        for coefficient in coefficients[-2::-1]:
            slope = slope * y + value
            value = value * y + coefficient
        error = np.abs(value - _PLACES)[_DEGREE + 1 :] * width * density[_DEGREE + 1 :]
        allowed = _MARGIN * np.clip(_RELATIVE * np.abs(v[_DEGREE + 1 :]), _FINEST, tolerance)
        tilted = _TILT * max(tolerance / TOLERANCE, 1.0) * np.sqrt(end - start)
        allowed = np.minimum(allowed, np.maximum(tilted, _FINEST))
        is_good = np.all(error <= allowed, axis=0) & np.all(slope > 0.0, axis=0)
        # Terms far larger than their sum would cost floats of z, and with them the order of neighbours.
        sizes = np.abs(coefficients).sum(axis=0)
        largest = np.maximum(np.abs(leaves.left), np.abs(leaves.right))
        is_good &= (sizes <= _MOST_CANCELLATION) | (sizes * width <= largest)
    line = np.zeros_like(coefficients)
    line[1] = 1.0
    coefficients = np.where(is_good, coefficients, line) * width
    coefficients[0] += leaves.left
    return Pieces(
        start=start,
        end=end,
        steepness=np.where(is_good, steepness, 1.0),
        coefficients=coefficients.T,
        is_good=is_good,
    )


def _interpolated(y: Float64) -> Float64:
    """Return the polynomials through (y_i, places of the six points): shape (6, N) -> (6, N), lowest power first."""
    table = np.broadcast_to(_LOBATTO[:, None], y.shape).copy()
    for order in range(1, _DEGREE + 1):
        table[order:] = (table[order:] - table[order - 1 : -1]) / (y[order:] - y[:-order])
    # Newton's form, expanded from the innermost bracket.
    coefficients = np.zeros_like(table)
    coefficients[0] = table[_DEGREE]
    for order in range(_DEGREE - 1, -1, -1):
        shifted = coefficients[:-1].copy()
        coefficients *= -y[order]
        coefficients[1:] += shifted
        coefficients[0] += table[order]
    return coefficients


def is_small(pieces: Pieces, leaves: Leaves) -> NDArray[np.bool_]:
    """Return which leaves need no better fit: next to no mass, or no more than two floats of z."""
    mass = pieces.end - pieces.start
    depth = np.minimum(np.abs(pieces.start), np.abs(pieces.end))
    is_light = (mass <= _SMALL_MASS) & ((depth >= _TAIL) | (mass <= _TAIL_MASS))
    largest = np.maximum(np.abs(leaves.left), np.abs(leaves.right)).astype(np.float32)
    return is_light | (leaves.right - leaves.left <= 2.0 * np.spacing(largest))
