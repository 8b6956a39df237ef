"""Leaves packed for the graph: rows of nine floats behind a search tree of two levels.

A function's leaves stand in blocks of F2. The first level, at most F1 - 1 separators of each function, finds the block;
the second, F2 - 1 separators of each block, the leaf. Blocks of all functions are numbered on, so a function
takes as many as it needs. `look_up` is the graph's arithmetic in numpy, float32 step by float32 step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kaem.errors import ConfigError
from kaem_export.tables.chebyshev_cdf import Integers
from kaem_export.tables.leaves import Leaves, Pieces

Float32 = NDArray[np.float32]

ROW = 9
"""Floats of a leaf: v0, kappa = b m, gamma = 1 - b, c0 .. c5."""

_NUDGES = 8
_MOST_ROWS = 1 << 24
"""Leaf numbers are counted in float32, which holds all integers up to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileTables:
    """The quantile functions of T distributions.

    Attributes:
        first: Shape (F1 - 1, T), where the next block of a function begins; +inf where there is none.
        block: Shape (T,), number of each function's first block.
        second: Shape (B, F2 - 1), where the next leaf of a block begins; +inf where there is none.
        leaves: Shape (B F2, 9), the rows; those behind a block's last are never read.
        low: Float32 that no quantile is below.
        high: Float32 that no quantile is above.
        columns: Shape (C,), which function each looked-up column follows.
    """

    first: Float32
    block: Integers
    second: Float32
    leaves: Float32
    low: np.float32
    high: np.float32
    columns: Integers

    @property
    def fan_out(self) -> int:
        """F2."""
        return int(self.second.shape[1]) + 1

    @property
    def num_functions(self) -> int:
        """T."""
        return len(self.block)

    @property
    def num_bytes(self) -> int:
        """Size of all floats that the graph holds for them."""
        return int(self.first.nbytes + self.second.nbytes + self.leaves.nbytes)

    def reading(self, columns: Integers) -> QuantileTables:
        """Return the same tables, looked up by other columns."""
        return replace(self, columns=columns)

    def with_steps(self, thresholds: Float32, value: np.float32) -> QuantileTables:
        """Return the tables with one more function, the last, that is `value` everywhere, in leaves of its own.

        Its leaves are the first rows of all: row k begins at the k-th threshold, so the row that a uniform leads to
        is the number of thresholds that it has passed.

        Args:
            thresholds: Ascending, shape (K - 1,); there may be none.
            value: Within [low, high].
        """
        fan_out, num_functions = self.fan_out, self.num_functions
        num_blocks = len(thresholds) // fan_out + 1
        starts = np.full(num_blocks * fan_out, np.inf, np.float32)
        starts[1 : len(thresholds) + 1] = thresholds
        first = np.full((max(len(self.first), num_blocks - 1), num_functions + 1), np.inf, np.float32)
        first[: len(self.first), :-1] = self.first
        first[: num_blocks - 1, -1] = starts[fan_out::fan_out]
        leaves = np.zeros((len(starts), ROW), np.float32)
        leaves[:, 1], leaves[:, 3] = 1.0, value
        return replace(
            self,
            first=first,
            block=np.append(self.block + num_blocks, 0),
            second=np.concatenate([starts.reshape(num_blocks, fan_out)[:, 1:], self.second]),
            leaves=np.concatenate([leaves, self.leaves]),
        )

    def look_up(self, v: Float32) -> Float32:
        """Return the quantiles of signed uniforms: shape (N, C) -> (N, C), equal to the graph's bit for bit."""
        row = self.leaf(v)
        start, kappa, gamma, *coefficients = np.moveaxis(self.leaves[row], -1, 0)
        r = v - start
        y = r / (gamma * r + kappa)
        z = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            z = z * y + coefficient
        return np.asarray(np.clip(z, self.low, self.high))

    def leaf(self, v: Float32) -> Integers:
        """Return which row of `leaves` each signed uniform belongs to, shape (N, C)."""
        in_function = (v[None] >= self.first[:, None, self.columns]).sum(axis=0)
        block = in_function + self.block[self.columns]
        return np.asarray(block * self.fan_out + (v[..., None] >= self.second[block]).sum(axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLeaves:
    """Tables and which leaf each of their rows is.

    Attributes:
        tables: The tables.
        leaf_of_row: Shape (B F2,), index of the leaf, -1 of rows that are never read.
        start: Shape (B F2,), the first float32 of a row's interval of v.
        end: Shape (B F2,), where the next one begins.
    """

    tables: QuantileTables
    leaf_of_row: Integers
    start: Float32
    end: Float32


def pack(leaves: Leaves, pieces: Pieces, *, low: float, high: float) -> PackedLeaves:
    """Round leaves to float32 and build the tree.

    Separators are rounded first, and what a leaf interpolates is stretched to the interval between them, so
    that neighbours still meet. Leaves whose interval is empty then are jumps of the quantile function, and dropped.

    Raises:
        ConfigError: There are more leaves than a graph can number.
    """
    is_last = np.append((np.diff(leaves.row) != 0) | (np.diff(leaves.is_upper) != 0), True)
    is_first = np.insert(is_last[:-1], 0, True)
    start = np.where(is_first, np.where(leaves.is_upper, -0.5, 0.0), pieces.start).astype(np.float32)
    end = np.append(start[1:], np.float32(0.5))
    end = np.where(is_last, np.where(leaves.is_upper, np.float32(0.0), np.float32(0.5)), end)
    index = np.flatnonzero(end > start)
    row, start, end = leaves.row[index], start[index], end[index]
    mass = end.astype(np.float64) - start
    steepness = pieces.steepness[index]
    rows = np.concatenate(
        [start[:, None], (steepness * mass)[:, None], (1.0 - steepness)[:, None], pieces.coefficients[index]], axis=1
    ).astype(np.float32)
    _meet(rows, start, end, is_seam=~is_last[index][:-1] & (np.diff(row) == 0) & (np.diff(leaves.is_upper[index]) == 0))

    num_functions = int(leaves.row[-1]) + 1
    count = np.bincount(row, minlength=num_functions)
    fan_out = _fan_out(count)
    num_blocks = -(-count // fan_out)
    block = np.cumsum(num_blocks) - num_blocks
    place = np.arange(len(row)) - np.searchsorted(row, row)
    own_block, slot = place // fan_out, place % fan_out
    total = int(num_blocks.sum())
    if total * fan_out >= _MOST_ROWS:
        raise ConfigError(
            f"{num_functions} quantile functions need {total * fan_out} leaves, but a graph can number {_MOST_ROWS}",
            hint="use fewer latents, components or knots, or export with a larger --tolerance",
        )
    first = np.full((max(2, int(num_blocks.max())) - 1, num_functions), np.inf, np.float32)
    second = np.full((total, fan_out - 1), np.inf, np.float32)
    begins = (slot == 0) & (own_block > 0)
    first[own_block[begins] - 1, row[begins]] = start[begins]
    within = slot > 0
    second[(block[row] + own_block)[within], slot[within] - 1] = start[within]
    packed = np.zeros((total * fan_out, ROW), np.float32)
    packed[:, 1] = 1.0  # no division by zero in rows that are never read
    at = (block[row] + own_block) * fan_out + slot
    packed[at] = rows
    leaf_of_row = np.full(len(packed), -1)
    leaf_of_row[at] = index
    starts, ends = np.zeros((2, len(packed)), np.float32)
    starts[at], ends[at] = start, end
    tables = QuantileTables(
        first=first,
        block=block,
        second=second,
        leaves=packed,
        low=_inward(low, np.inf),
        high=_inward(high, -np.inf),
        columns=np.arange(num_functions),
    )
    return PackedLeaves(tables=tables, leaf_of_row=leaf_of_row, start=starts, end=ends)


def _fan_out(count: Integers) -> int:
    """Return the leaves of a block that make the tables of functions of so many leaves smallest: about their root."""
    root = math.sqrt(int(count.max()))
    tried = range(max(2, math.floor(0.75 * root)), max(2, math.ceil(1.25 * root)) + 1)

    def size(fan_out: int) -> int:
        blocks = -(-count // fan_out)
        return int(blocks.sum() * (fan_out * (ROW + 1) - 1) + (max(2, int(blocks.max())) - 1) * len(count))

    return min(tried, key=size)


def _meet(rows: Float32, start: Float32, end: Float32, is_seam: NDArray[np.bool_]) -> None:
    """Lower c1 where a leaf, in float32, ends above the beginning of the next."""
    last = np.nextafter(end, np.float32(-1.0))
    for _ in range(_NUDGES):
        v0, kappa, gamma, *coefficients = rows[:-1].T
        r = last[:-1] - v0
        y = r / (gamma * r + kappa)
        z = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            z = z * y + coefficient
        excess = np.where(is_seam, z - rows[1:, 3], np.float32(0.0))
        high = np.flatnonzero(excess > 0.0)
        if not len(high):
            return
        lowered = rows[high, 4] - np.maximum(excess[high], np.spacing(np.abs(rows[high, 4])))
        rows[high, 4] = np.maximum(lowered, np.float32(0.0))


def _inward(value: float, towards: float) -> np.float32:
    rounded = np.float32(value)
    is_outside = rounded < value if towards > 0 else rounded > value
    return np.nextafter(rounded, np.float32(towards)) if is_outside else rounded
