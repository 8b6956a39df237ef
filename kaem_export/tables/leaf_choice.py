"""Which leaves a quantile function is cut into: halved until each is good, then as few as neighbours can be made.

For all functions at once, pairs that one leaf can replace are merged, and three neighbours become two where some place
between them allows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kaem_export.tables.chebyshev_cdf import Float64, PiecewiseDensities
from kaem_export.tables.leaves import TOLERANCE, Leaves, bisected, concatenated, fit, is_small, snapped

_BEYOND = 2.0**-37
_STARTING_PIECES = 8
_MERGING_ROUNDS = 3
_CUTTING_ROUNDS = 5
_HALVINGS = 7


def choose_leaves(densities: PiecewiseDensities, kinks: tuple[float, ...], tolerance: float = TOLERANCE) -> Leaves:
    """Cut the domains of R densities into leaves that keep the tolerance.

    Args:
        densities: The distributions.
        kinks: Points where a density has no derivative: leaves end there.
        tolerance: Error in u; near u = 0 and 1 it shrinks to a thousandth of the distance to them, down to 2^-36.

    Returns:
        The leaves. None reaches where less than 2^-37 of the mass lies beyond, unless the support ends near.
    """
    leaves = bisected(densities, _first_leaves(densities, kinks), tolerance)
    for parity in range(_MERGING_ROUNDS):
        leaves = _merged(densities, leaves, tolerance, parity % 2)
    for place in range(_CUTTING_ROUNDS):
        leaves = _cut_anew(densities, leaves, tolerance, place % 3)
    return leaves


def _first_leaves(densities: PiecewiseDensities, kinks: tuple[float, ...]) -> Leaves:
    """Return eight leaves on either side of every median, cut at the kinks as well."""
    rows = np.arange(len(densities))
    low, high = densities.edges[0], densities.edges[-1]
    beyond = np.full(len(rows), _BEYOND)
    median = densities.quantile(rows, np.full(len(rows), 0.5))
    first, last = densities.quantile(rows, beyond), densities.quantile(rows, beyond, of_survival=True)
    slack = 1e-6 * (high - low)
    first, last = np.where(first - low < slack, low, first), np.where(high - last < slack, high, last)
    parts = []
    for begin, end, is_upper in ((first, median, False), (median, last, True)):
        places = np.linspace(begin, end, _STARTING_PIECES + 1)  # (9, R)
        places[1:-1] = np.clip(snapped(places[1:-1]), begin, end)
        fixed = np.clip(np.array(kinks)[:, None], begin, end)  # beyond the half, a leaf of no width
        points = np.sort(np.concatenate([places, fixed]), axis=0)
        is_forced = (points[:-1, :, None] == np.array(kinks)).any(axis=-1)
        is_forced |= points[:-1] == begin
        shape = points[:-1].shape
        parts.append(
            Leaves(
                row=np.broadcast_to(rows, shape).reshape(-1),
                is_upper=np.full(shape, is_upper).reshape(-1),
                is_forced=is_forced.reshape(-1),
                left=points[:-1].reshape(-1),
                right=points[1:].reshape(-1),
            )
        )
    leaves = concatenated(parts)
    return leaves.chosen(leaves.right > leaves.left)


def _merged(densities: PiecewiseDensities, leaves: Leaves, tolerance: float, parity: int) -> Leaves:
    """Merge the pairs of neighbours that one good leaf can replace, even or odd pairs of every function."""
    first = np.flatnonzero(~leaves.is_forced[1:])
    place = np.arange(len(leaves)) - np.searchsorted(leaves.row, leaves.row)
    first = first[place[first] % 2 == parity]
    together = leaves.chosen(first)
    together = Leaves(
        row=together.row,
        is_upper=together.is_upper,
        is_forced=together.is_forced,
        left=together.left,
        right=leaves.right[first + 1],
    )
    pieces = fit(densities, together, tolerance)
    is_one = pieces.is_good | is_small(pieces, together)
    right = leaves.right.copy()
    right[first[is_one]] = together.right[is_one]
    keep = np.ones(len(leaves), bool)
    keep[first[is_one] + 1] = False
    merged = Leaves(row=leaves.row, is_upper=leaves.is_upper, is_forced=leaves.is_forced, left=leaves.left, right=right)
    return merged.chosen(keep)


def _cut_anew(densities: PiecewiseDensities, leaves: Leaves, tolerance: float, place: int) -> Leaves:
    """Replace three neighbours by two where some cut between them makes two good ones."""
    index = np.arange(len(leaves)) - np.searchsorted(leaves.row, leaves.row)
    free = ~leaves.is_forced
    first = np.flatnonzero(free[1:-1] & free[2:] & (index[:-2] % 3 == place))
    if not len(first):
        return leaves
    left, right = leaves.left[first], leaves.right[first + 2]

    def good(begin: Float64, end: Float64) -> NDArray[np.bool_]:
        halves = Leaves(
            row=leaves.row[first],
            is_upper=leaves.is_upper[first],
            is_forced=leaves.is_forced[first],
            left=begin,
            right=end,
        )
        pieces = fit(densities, halves, tolerance)
        return np.asarray(pieces.is_good | is_small(pieces, halves))

    # As far to the right as the left one stays good.
    cut, beyond = leaves.right[first], right
    for _ in range(_HALVINGS):
        middle = snapped(0.5 * (cut + beyond))
        is_good = good(left, middle)
        cut, beyond = np.where(is_good, middle, cut), np.where(is_good, beyond, middle)
    is_done = good(cut, right) & (cut < right)
    done = first[is_done]
    new_left, new_right, keep = leaves.left.copy(), leaves.right.copy(), np.ones(len(leaves), bool)
    new_right[done], new_left[done + 1], new_right[done + 1] = cut[is_done], cut[is_done], right[is_done]
    keep[done + 2] = False
    moved = Leaves(row=leaves.row, is_upper=leaves.is_upper, is_forced=leaves.is_forced, left=new_left, right=new_right)
    return moved.chosen(keep)
