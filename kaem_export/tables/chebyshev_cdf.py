"""Log densities to distribution functions: piecewise Chebyshev in float64, with error control.

Every density is interpolated by a polynomial of degree 16 on each of a set of cells that all functions of a batch
share, so evaluating them is a matrix product. Its integral is a fixed matrix away, and cell masses are summed
from both ends: F, 1 - F and p are known at any z to about 1e-15, relative to each tail. Cells that are not resolved,
for any function, are halved:

- the last three coefficients are not negligible beside the cell's mass (nor beside rounding), or
- the curvature of f would let a spike that matters hide between two nodes. Of two nodes at a distance d,
  f <= max(f_1, f_2) + d^2 / 8 sup |f''|, and the energies know a bound of |f''|, being sums of known functions.
  (Sampling alone cannot see such a spike.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from kaem.errors import ArtifactError

Float64 = NDArray[np.float64]
Integers = NDArray[np.integer]

DEGREE = 16
POINTS = chebyshev.chebpts1(DEGREE + 1)
"""Nodes of a cell in [-1, 1], ascending; none is an end, where a density may jump."""

MOST_CELLS = 4096
MOST_HALVINGS = 36
RELATIVE_TOLERANCE = 1e-13
ABSOLUTE_TOLERANCE = 1e-18
NEGLIGIBLE = 1e-12
_ROUNDING = 4e-16
NODES_BY_COEFFICIENTS = chebyshev.chebvander(POINTS, DEGREE)
_VALUES_TO_COEFFICIENTS = np.linalg.inv(NODES_BY_COEFFICIENTS).T  # (nodes, coefficients)
_INTEGRALS = chebyshev.chebint(np.eye(DEGREE + 1), lbnd=-1, axis=0).T
"""Row k: the integral of T_k from -1, as a series of degree 17."""

_MASSES = _INTEGRALS.sum(axis=1)
_SECOND_DERIVATIVE = (
    chebyshev.chebvander(POINTS, DEGREE - 2) @ chebyshev.chebder(np.eye(DEGREE + 1), 2, axis=0)
) @ _VALUES_TO_COEFFICIENTS.T
_LARGEST_GAP = float(np.max(np.diff(POINTS, prepend=-1.0, append=1.0)))
_BETWEEN_NODES = 1.25
"""What a second derivative may be above its values at the nodes; those of a basis are resolved by them."""

_ONE_EXPONENT = 1.0
_MOST_STEPS = 60
_LEAST_STEP = 1e-16
_POINTS_AT_ONCE = 8192
"""Few enough for their series to stay in a processor's cache."""


class LogDensities(Protocol):
    """R functions log p, up to a constant each."""

    def __call__(self, nodes: Float64) -> tuple[Float64, Float64]:
        """Evaluate on the nodes of E cells: shape (E, 17) -> values (R, E, 17) and bounds of |f''| (R, E)."""


FunctionName = Callable[[int], str]
"""How a message calls function r."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecewiseDensities:
    """R normalised densities on common cells, and their integrals.

    Attributes:
        edges: Shape (E + 1,), ascending.
        coefficients: Shape (R, E, 17), Chebyshev series of the density in each cell.
        below: Shape (R, E + 1), F at the edges, summed from the left.
        above: Shape (R, E + 1), 1 - F at the edges, summed from the right.
        log_mass: Shape (R,), log Z of the functions as they were given.
    """

    edges: Float64
    coefficients: Float64
    below: Float64
    above: Float64
    log_mass: Float64

    def __len__(self) -> int:
        return len(self.coefficients)

    def evaluate(self, rows: Integers, z: Float64) -> tuple[Float64, Float64, Float64]:
        """Return F, 1 - F and p of function `rows` at `z`, of their common broadcast shape; z outside is clipped."""
        rows, z = np.broadcast_arrays(rows, np.clip(z, self.edges[0], self.edges[-1]))
        shape, rows, z = z.shape, rows.reshape(-1), z.reshape(-1)
        found = np.empty((3, len(z)))
        for first in range(0, len(z), _POINTS_AT_ONCE):
            block = slice(first, first + _POINTS_AT_ONCE)
            self._evaluate(rows[block], z[block], found[:, block])
        cdf, survival, density = found.reshape(3, *shape)
        return cdf, survival, density

    def _evaluate(self, rows: Integers, z: Float64, out: Float64) -> None:
        num_cells = len(self.edges) - 1
        cell = np.searchsorted(self.edges, z, side="right") - 1
        np.minimum(cell, num_cells - 1, out=cell)
        left, right = self.edges[cell], self.edges[cell + 1]
        half = 0.5 * (right - left)
        series = _series(((z - left) - (right - z)) / (right - left))
        own = self.coefficients.reshape(-1, DEGREE + 1).take(rows * num_cells + cell, axis=0)
        within = half * np.einsum("nk,nk->n", own, series @ _INTEGRALS.T)
        edge = rows * (num_cells + 1) + cell
        np.add(self.below.take(edge), within, out=out[0])
        np.subtract(self.above.take(edge), within, out=out[1])
        out[2] = np.einsum("nk,nk->n", own, series[:, : DEGREE + 1])
        np.maximum(out, 0.0, out=out)

    def quantile(self, rows: Integers, u: Float64, *, of_survival: bool = False) -> Float64:
        """Return z with F(z) = u, or 1 - F(z) = u, by Newton's steps, or bisection; shape of `rows` and `u`."""
        rows, u = np.broadcast_arrays(rows, u)
        known = self.above[:, ::-1] if of_survival else self.below
        cell = np.sum(known[rows] <= u[..., None], axis=-1) - 1
        cell = np.clip(cell, 0, len(self.edges) - 2)
        if of_survival:
            cell = len(self.edges) - 2 - cell
        low, high = self.edges[cell], self.edges[cell + 1]
        z = 0.5 * (low + high)
        for _ in range(_MOST_STEPS):
            cdf, survival, density = self.evaluate(rows, z)
            excess = u - survival if of_survival else cdf - u
            low, high = np.where(excess < 0.0, z, low), np.where(excess < 0.0, high, z)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = z - excess / density
            before, z = z, np.where((step > low) & (step < high), step, 0.5 * (low + high))
            if np.all(np.abs(z - before) <= _LEAST_STEP * (self.edges[-1] - self.edges[0])):
                break
        return np.asarray(z)

    def combined(self, weights: Float64) -> PiecewiseDensities:
        """Mix densities: weights (S, P) of S mixtures of P consecutive functions each, R = S P."""
        count, terms = weights.shape
        coefficients = np.matmul(weights[:, None, :], self.coefficients.reshape(count, terms, -1)).reshape(
            count, *self.coefficients.shape[1:]
        )
        return normalised(self.edges, coefficients, np.zeros(count))


def normalised(edges: Float64, coefficients: Float64, log_scale: Float64) -> PiecewiseDensities:
    """Sum cell masses from both ends and divide by the total.

    Args:
        edges: Shape (E + 1,).
        coefficients: Shape (R, E, 17), of exp(-log_scale) times the unnormalised density.
        log_scale: Shape (R,).
    """
    masses = np.maximum(coefficients @ _MASSES * (0.5 * np.diff(edges)), 0.0)
    total = masses.sum(axis=1)
    masses /= total[:, None]
    start = np.zeros((len(masses), 1))
    below = np.concatenate([start, np.cumsum(masses, axis=1)], axis=1)
    above = np.concatenate([start, np.cumsum(masses[:, ::-1], axis=1)], axis=1)[:, ::-1]
    return PiecewiseDensities(
        edges=edges,
        coefficients=np.ascontiguousarray(coefficients) / total[:, None, None],
        below=np.ascontiguousarray(below),
        above=np.ascontiguousarray(above),
        log_mass=log_scale + np.log(total),
    )


def of_rows(name: FunctionName, rows: Integers) -> FunctionName:
    """Name functions by their place among some rows."""
    return lambda place: name(int(rows[place]))


def cell_nodes(left: Float64, right: Float64) -> Float64:
    """Return the nodes of cells: shapes (E,), (E,) -> (E, 17)."""
    return np.asarray(0.5 * (left + right)[:, None] + 0.5 * (right - left)[:, None] * POINTS)


def curvature(values: Float64, nodes: Float64) -> Float64:
    """Return a bound of |f''| in every cell, of functions that a cell's nodes resolve: (..., E, 17) -> (..., E)."""
    half = 0.5 * (nodes[:, -1] - nodes[:, 0]) / POINTS[-1]
    return np.asarray(_BETWEEN_NODES * np.abs(values @ _SECOND_DERIVATIVE.T).max(axis=-1) / half**2)


@dataclass(slots=True)
class _Cells:
    """Cells of all functions, each scaled by its own largest value."""

    left: Float64
    right: Float64
    coefficients: Float64  # (R, E, 17)
    log_scale: Float64  # (R, E)
    mass: Float64  # (R, E), in units of exp(log_scale)
    tail: Float64  # (R, E), of the last coefficients, integrated, in the same units
    floor: Float64  # (R, E), what rounding makes of it
    excess: Float64  # (R, E), how much higher than at its nodes log p may be

    def chosen(self, keep: NDArray[np.bool_]) -> _Cells:
        return _Cells(self.left[keep], self.right[keep], *(getattr(self, name)[:, keep] for name in _BY_FUNCTION))


_BY_FUNCTION = ("coefficients", "log_scale", "mass", "tail", "floor", "excess")


def _joined(first: _Cells, second: _Cells) -> _Cells:
    parts = (np.concatenate([getattr(first, name), getattr(second, name)], axis=1) for name in _BY_FUNCTION)
    return _Cells(np.concatenate([first.left, second.left]), np.concatenate([first.right, second.right]), *parts)


def integrate(
    log_densities: LogDensities, edges: Float64, name: FunctionName, *, noise: float = 0.0
) -> PiecewiseDensities:
    """Integrate R densities.

    Args:
        log_densities: The functions.
        edges: Shape (E + 1,), ascending; where any function has a kink, a jump or an end, there must be one.
        name: What a function is called in an error.
        noise: What the densities are off by, in units of each one's largest value.

    Returns:
        The normalised densities, on cells that were halved where needed.

    Raises:
        ArtifactError: A function is not finite, has no mass, or is too sharp for 4,096 cells or 36 halvings.
    """
    finest = (edges[-1] - edges[0]) * 2.0**-MOST_HALVINGS
    cells = _evaluated(log_densities, edges[:-1], edges[1:], name)
    while True:
        is_open = _unresolved(cells, name, noise)
        flagged: NDArray[np.bool_] = np.asarray(is_open.any(axis=0))
        if not flagged.any():
            break
        if len(flagged) + np.count_nonzero(flagged) > MOST_CELLS or (cells.right - cells.left)[flagged].min() < finest:
            _refuse_sharp(cells, is_open, name)
        left, right = cells.left[flagged], cells.right[flagged]
        middle = 0.5 * (left + right)
        halves = _evaluated(log_densities, np.concatenate([left, middle]), np.concatenate([middle, right]), name)
        cells = _joined(cells.chosen(~flagged), halves)
    order = np.argsort(cells.left)
    shift = cells.log_scale.max(axis=1, keepdims=True)
    scale = np.exp(cells.log_scale[:, order] - shift)
    return normalised(
        np.append(cells.left[order], cells.right.max()), cells.coefficients[:, order] * scale[:, :, None], shift[:, 0]
    )


def _evaluated(log_densities: LogDensities, left: Float64, right: Float64, name: FunctionName) -> _Cells:
    nodes = cell_nodes(left, right)
    values, bound = log_densities(nodes)
    half, log_scale, least = 0.5 * (right - left), values.max(axis=-1), values.min(axis=-1)
    if not (np.isfinite(log_scale).all() and np.isfinite(least).all()):
        _require_energies(values, nodes, name)
    is_empty = np.isneginf(log_scale)
    peak = np.where(is_empty, 0.0, log_scale)
    values -= peak[:, :, None]
    coefficients = np.exp(values, out=values) @ _VALUES_TO_COEFFICIENTS
    # What rounding f, and z where f is steep, leaves of the density's digits.
    lowest = np.where(np.isneginf(least), peak, least)
    largest = np.maximum(np.abs(peak), np.abs(lowest))
    steep = (peak - lowest) / half * np.abs(nodes).max(axis=-1)
    return _Cells(
        left,
        right,
        coefficients,
        log_scale,
        np.maximum(coefficients @ _MASSES, 0.0) * half,
        np.abs(coefficients[:, :, -3:]).max(axis=-1) * half,
        np.where(is_empty, 0.0, _ROUNDING * (DEGREE + 1 + largest + steep) * half),
        bound * (half * _LARGEST_GAP) ** 2 / 8.0,
    )


def _require_energies(values: Float64, nodes: Float64, name: FunctionName) -> None:
    """Raise where a value is neither finite nor minus infinity, which is a density of 0."""
    is_bad = np.isnan(values) | np.isposinf(values)
    if is_bad.any():
        row, cell, node = np.argwhere(is_bad)[0]
        raise ArtifactError(
            f"the energy of {name(row)} is not finite at z = {nodes[cell, node]:.6g}",
            hint="the training has diverged; export an earlier checkpoint, or train with a lower learning rate",
        )


def _unresolved(cells: _Cells, name: FunctionName, noise: float) -> NDArray[np.bool_]:
    """Return which cells of which functions must be halved, shape (R, E)."""
    peak = cells.log_scale.max(axis=1, keepdims=True)
    if np.isneginf(peak).any():
        row = int(np.argmax(np.isneginf(peak)))
        raise ArtifactError(
            f"the density of {name(row)} has no mass between z = {cells.left.min():.6g} and {cells.right.max():.6g}",
            hint="the training has diverged; export an earlier checkpoint, or train with a lower learning rate",
        )
    scale = np.exp(cells.log_scale - peak)
    total = (scale * cells.mass).sum(axis=1, keepdims=True)
    least = np.maximum(RELATIVE_TOLERANCE * cells.mass, cells.floor)
    unseen = np.maximum(ABSOLUTE_TOLERANCE * total, 0.5 * noise * (cells.right - cells.left))
    is_rough = (cells.tail > least) & (scale * (cells.tail - least) > unseen)
    height = np.minimum(cells.log_scale - peak + cells.excess, 700.0)  # beyond that it is no less unresolved
    hides = (cells.excess > _ONE_EXPONENT) & (np.exp(height) * (cells.right - cells.left) > NEGLIGIBLE * total)
    return np.asarray(is_rough | hides)


def _refuse_sharp(cells: _Cells, is_open: NDArray[np.bool_], name: FunctionName) -> None:
    narrowest = np.where(is_open.any(axis=0), cells.right - cells.left, np.inf).argmin()
    row = int(np.argmax(is_open[:, narrowest]))
    left, right = cells.left[narrowest], cells.right[narrowest]
    raise ArtifactError(
        f"the density of {name(row)} is too sharp near z = {0.5 * (left + right):.9g}: "
        f"cells of width {right - left:.3g} do not resolve it",
        hint="it jumps where no knot, kink or end of the support is known, or its energy is far too steep; "
        "lower the learning rate or the number of functions, or export an earlier checkpoint",
    )


def _series(x: Float64) -> Float64:
    """Return T_0 .. T_17 of x: shape (N,) -> (N, 18)."""
    powers = np.empty((DEGREE + 2, len(x)))
    powers[0], powers[1] = 1.0, x
    twice = 2.0 * x
    for k in range(2, DEGREE + 2):
        np.multiply(twice, powers[k - 1], out=powers[k])
        powers[k] -= powers[k - 2]
    return np.ascontiguousarray(powers.T)
