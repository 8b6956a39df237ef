"""What a manifest says of the prior's tables: what they promise, and the densities behind them for plotting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.errors import RequestError
from kaem_export.priors.layout import PriorLayout
from kaem_export.priors.marginals import framed_cdfs
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.collapse import collapse
from kaem_export.tables.fit_tables import SCORE_BOUND, Baked
from kaem_export.tables.laws import Laws
from kaem_export.tables.leaves import TOLERANCE
from kaem_train.model.prior.energy_words import has_energies
from kaem_train.model.prior.factorised import IndependentPrior, Prior

LEAST_TOLERANCE, MOST_TOLERANCE = 2.0**-30, 1e-2
_PLOT_BINS = 64
_DEVIATIONS = 6.0
_UNSEEN = 1.5
"""Between the measured points p(z) ulp(z) may be this much larger."""

_ORACLE = 2e-9


def require_tolerance(tolerance: float) -> None:
    """Raise unless quantile tables of this tolerance make sense.

    Raises:
        RequestError: It is not a number from 2^-30 to 0.01.
    """
    if not (math.isfinite(tolerance) and LEAST_TOLERANCE <= tolerance <= MOST_TOLERANCE):
        raise RequestError(
            f"tolerance is {tolerance:g}; it must lie between {LEAST_TOLERANCE:.1e} and {MOST_TOLERANCE:g}",
            hint="it is the error in u of the quantile tables; float32 uniforms resolve 6e-8, the default",
        )


def describe_tables(layout: PriorLayout, baked: Baked) -> dict[str, Any]:
    """Return the entries of the manifest's prior section that speak of the tables."""
    return {
        "energies": energies_field(layout.prior),
        "tolerance": baked.tolerance,
        "table_leaves": num_leaves(baked.tables.leaves),
        "table_functions": baked.tables.num_functions,
        "table_bytes": baked.tables.num_bytes,
        "score": baked.measured.score,
        "score_bound": SCORE_BOUND,
        "u_error_bound": u_error_bound(layout, baked.tolerance),
    }


def energies_field(prior: Prior) -> str:
    """Return `fitted`, or `none` where all univariate energies are 0: the prior is made of Gaussians or references."""
    return "fitted" if has_energies(prior) else "none"


def num_leaves(leaves: NDArray[np.float32]) -> int:
    """Count the rows (9 floats each) that are leaves, not room behind a block's last one."""
    return int(np.count_nonzero(leaves[:, 1:].any(axis=1)))


def u_error_bound(layout: PriorLayout, tolerance: float) -> float:
    """Return what |F(F^-1(u)) - u| stays under, whoever made the tables.

    It holds for the latents as float32 numbers: the tolerance, and one float of z where the density is largest; what a
    product and a sum behind a standard law round; where there is a frame, what undoing it in float64 makes of the
    rounding of z. Of summands it is each one that is meant.

    Args:
        layout: Layout of the prior.
        tolerance: Error in u that the tables aim at.
    """
    laws = layout.laws
    reachable = max(tolerance, TOLERANCE) + _UNSEEN * laws.largest_rounding() + _affine_rounding(laws)
    return SCORE_BOUND * reachable + _frame_rounding(layout) + _ORACLE


def _affine_rounding(laws: Laws) -> float:
    """Return the most that z = offset + scale x does to u in float32, 0 where no function is such an image.

    Factor, summand, product and sum are each rounded to 2^-24: |dz| <= 2^-24 (3 |scale x| + 2 |offset|).
    """
    worst = 0.0
    rows = np.flatnonzero((laws.offset != 0.0) | (laws.scale != 1.0))
    for law in np.unique(laws.law_of[rows]):
        own = rows[laws.law_of[rows] == law]
        density, x = laws.nodes_of(int(law))
        place = float(np.max(np.abs(laws.offset[own]) / laws.scale[own]))
        worst = max(worst, float(np.max(density * (3.0 * np.abs(x) + 2.0 * place))))
    return 2.0**-24 * worst


def densities(layout: PriorLayout) -> dict[str, Any]:
    """Return the densities of the Q numbers of `latent`, coarsely, for plotting: supports and mean densities.

    Experts and components are mixed by their weights, of summands it is the sums' densities, and where there is a
    frame it is in it that they are.
    """
    prior, laws, weights = layout.prior, layout.laws, layout.weights
    if layout.frame is not None:
        edges, cdf = framed_cdfs(layout, _PLOT_BINS + 1)
        return _plotted(edges, np.diff(cdf, axis=1) / np.diff(edges, axis=1))
    if isinstance(prior, IndependentPrior) and layout.sums_functions:
        laws = collapse(prior)
    count = prior.num_latents
    terms = len(laws) // count
    shares = np.broadcast_to(np.ones(1) if weights is None else weights, (count, terms))
    all_edges, means = np.empty((count, _PLOT_BINS + 1)), np.empty((count, _PLOT_BINS))
    for q in range(count):
        rows = range(q * terms, (q + 1) * terms)
        ends = np.array([laws.ends(row) for row in rows])
        all_edges[q] = np.linspace(ends[:, 0].min(), ends[:, 1].max(), _PLOT_BINS + 1)
        means[q] = sum(
            (weight * laws.mean_densities(row, all_edges[q]) for row, weight in zip(rows, shares[q], strict=True)),
            np.zeros(_PLOT_BINS),
        )
    return _plotted(all_edges, means)


def _plotted(edges: Float64, density: Float64) -> dict[str, Any]:
    return {
        "of": "latent",
        "low": edges[:, 0].tolist(),
        "high": edges[:, -1].tolist(),
        "density": [[float(f"{max(value, 0.0):.4g}") for value in row] for row in density],
    }


def _frame_rounding(layout: PriorLayout) -> float:
    """Return what rounding framed latents to float32 does to u.

    Undoing a frame, x = W^-1 (z - b), magnifies the rounding of z. With independent roundings of relative size 2^-24 in
    every product and |x| up to the support, six deviations of the worst coordinate's error are taken, at the largest
    density. W^-1 (z - b) is exact otherwise: the frame's own float32 values are what the graph multiplies by.
    """
    frame, laws = layout.frame, layout.laws
    if frame is None:
        return 0.0
    offset = np.atleast_2d(frame.offset.astype(np.float64))
    matrix = frame.matrix.astype(np.float64).reshape(-1, *frame.matrix.shape[-2:])
    reach = max(abs(end) for row in range(len(laws)) for end in laws.ends(row))
    largest = np.abs(offset) + reach * np.sqrt((matrix**2).sum(axis=-1))  # (K, Q), of |z|
    inverse = np.linalg.inv(matrix)
    errors = np.sqrt(inverse**2 @ (2.0**-24 * largest)[:, :, None] ** 2).max()
    return float(_DEVIATIONS * laws.largest_density / laws.scale.min() * errors)
