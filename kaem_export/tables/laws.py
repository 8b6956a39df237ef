"""The univariate distributions behind a prior's latents, each once.

Functions that are one another's affine image share a distribution: z = offset + scale x with x ~ law.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kaem_export.tables.chebyshev_cdf import NODES_BY_COEFFICIENTS, Float64, Integers, PiecewiseDensities, cell_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """R functions and the T distributions that they follow.

    Attributes:
        parts: The distributions, T in all, in batches that share cells.
        law_of: Shape (R,), the distribution of each function.
        offset: Shape (R,), float64.
        scale: Shape (R,), float64, positive.
        kinks: Points (of x) where a density may have no derivative.
    """

    parts: tuple[PiecewiseDensities, ...]
    law_of: Integers
    offset: Float64
    scale: Float64
    kinks: tuple[float, ...] = ()
    _first: Integers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_first", np.cumsum([0, *map(len, self.parts)]))

    def __len__(self) -> int:
        return len(self.law_of)

    @property
    def num_laws(self) -> int:
        """T."""
        return int(self._first[-1])

    @property
    def is_affine(self) -> bool:
        """Whether any function is not its distribution itself."""
        return bool(np.any(self.offset != 0.0) or np.any(self.scale != 1.0))

    @property
    def support(self) -> tuple[float, float]:
        """Ends of the widest support of the distributions."""
        return min(float(p.edges[0]) for p in self.parts), max(float(p.edges[-1]) for p in self.parts)

    @property
    def largest_density(self) -> float:
        """Largest density of any distribution, at the nodes of its cells."""
        return max(float((part.coefficients @ NODES_BY_COEFFICIENTS.T).max()) for part in self.parts)

    def nodes_of(self, law: int) -> tuple[Float64, Float64]:
        """Return the density of a distribution at the nodes of its cells, and the nodes: two of shape (E, 17)."""
        part, place = self.part_of(law)
        return part.coefficients[place] @ NODES_BY_COEFFICIENTS.T, cell_nodes(part.edges[:-1], part.edges[1:])

    def largest_rounding(self) -> float:
        """Return the largest p(z) ulp(z) of any distribution: what one float32 step of z does to u."""
        roundings = []
        for law in range(self.num_laws):
            density, z = self.nodes_of(law)
            roundings.append(np.max(density * np.spacing(np.abs(z).astype(np.float32)).astype(np.float64)))
        return float(max(roundings))

    def part_of(self, law: int) -> tuple[PiecewiseDensities, int]:
        """Return the batch that holds a distribution, and its place there."""
        part = int(np.searchsorted(self._first, law, side="right")) - 1
        return self.parts[part], law - int(self._first[part])

    def slices(self, laws: Integers) -> list[tuple[PiecewiseDensities, slice, int]]:
        """Cut ascending distribution numbers into runs of one batch: the batch, the run, and its first number."""
        ends = np.searchsorted(laws, self._first)
        return [(part, slice(int(ends[i]), int(ends[i + 1])), int(self._first[i])) for i, part in enumerate(self.parts)]

    def evaluate(self, row: int, z: Float64) -> tuple[Float64, Float64, Float64]:
        """Return F, 1 - F and p of function `row` at z, in float64; shape of `z`."""
        part, place = self.part_of(int(self.law_of[row]))
        cdf, survival, density = part.evaluate(np.array(place), (z - self.offset[row]) / self.scale[row])
        return cdf, survival, density / self.scale[row]

    def mean_densities(self, row: int, edges: Float64) -> Float64:
        """Return the mean density between consecutive edges: shape (B + 1,) -> (B,)."""
        cdf, survival, _ = self.evaluate(row, edges)
        # In each half from its own tail.
        below, above = np.diff(cdf), -np.diff(survival)
        return np.where(cdf[1:] < 0.5, below, above) / np.diff(edges)

    def ends(self, row: int) -> tuple[float, float]:
        """Return the support of function `row`."""
        part, _ = self.part_of(int(self.law_of[row]))
        low, high = (self.offset[row] + self.scale[row] * part.edges[[0, -1]]).tolist()
        return low, high
