"""What a manifest says of the prior's tables: what they promise, and the densities behind them for plotting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from kaem.errors import RequestError
from kaem_export.bake import SCORE_BOUND
from kaem_export.chebyshev_cdf import Float64
from kaem_export.collapse import collapse
from kaem_export.leaves import TOLERANCE
from kaem_export.prior_tables import CollapsedTables, SummandTables, TabulatedPrior
from kaem_train.model.own_frames import OwnFramesPrior
from kaem_train.model.prior import IndependentPrior, Prior

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


def refuse_tables(family: str, tolerance: float, *, keep_components: bool) -> None:
    """Raise `RequestError` if anything is asked of quantile tables: a `family` without a trained prior has none."""
    for option, is_given in (("--tolerance", tolerance != TOLERANCE), ("--keep-components", keep_components)):
        if is_given:
            raise RequestError(
                f"{option}: a model of the family {family} has no quantile tables of its own",
                hint=f"leave {option} out, or give a checkpoint of the family kaem",
            )


def promise(prior: Prior, tabulated: TabulatedPrior) -> dict[str, Any]:
    """Return the entries of the manifest's prior section that speak of the tables.

    `u_error_bound` holds for the latents as float32 numbers: the tolerance, and one float of z where the density is
    largest; where there is a frame, what undoing it in float64 makes of the rounding of z.
    """
    measured, tables = tabulated.baked.measured, tabulated.baked.tables
    reachable = max(tabulated.baked.tolerance, TOLERANCE) + _UNSEEN * measured.rounding
    if isinstance(tabulated.tables, SummandTables):
        # A sum is rounded to its own floats, which are coarser than a summand's.
        reachable += _UNSEEN * measured.rounding * prior.num_components
    return {
        "collapsed": isinstance(tabulated.tables, CollapsedTables),
        "tolerance": tabulated.baked.tolerance,
        "table_leaves": int(np.count_nonzero(tables.leaves[:, 1:].any(axis=1))),
        "table_functions": tables.num_functions,
        "table_bytes": tables.num_bytes,
        "score": measured.score,
        "score_bound": SCORE_BOUND,
        "u_error_bound": SCORE_BOUND * reachable + _frame_rounding(prior, tabulated) + _ORACLE,
    }


def densities(prior: Prior, tabulated: TabulatedPrior) -> dict[str, Any]:
    """Return the densities of the Q latents before the frame, coarsely, for plotting: supports and mean densities.

    Experts and components are mixed by their weights; of summands it is the sums' densities that are returned.
    """
    laws = tabulated.laws
    if isinstance(prior, IndependentPrior) and isinstance(tabulated.tables, SummandTables):
        laws = collapse(prior)
    count = prior.num_latents
    terms = len(laws) // count
    weights = np.broadcast_to(np.ones(1) if tabulated.weights is None else tabulated.weights, (count, terms))
    low, high, mean = [], [], []
    for q in range(count):
        rows = range(q * terms, (q + 1) * terms)
        ends = np.array([laws.ends(row) for row in rows])
        edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), _PLOT_BINS + 1)
        density = sum(
            (weight * laws.mean_densities(row, edges) for row, weight in zip(rows, weights[q], strict=True)),
            np.zeros(_PLOT_BINS),
        )
        low.append(float(edges[0]))
        high.append(float(edges[-1]))
        mean.append([float(f"{value:.4g}") for value in density])
    return {"low": low, "high": high, "density": mean}


def _frame_rounding(prior: Prior, tabulated: TabulatedPrior) -> float:
    """Return what rounding framed latents to float32 does to u.

    Undoing a frame, x = W^-1 (z - b), magnifies the rounding of z. With independent roundings of relative size 2^-24 in
    every product and |x| up to the support, six deviations of the worst coordinate's error are taken, at the largest
    density. W^-1 (z - b) is exact otherwise: the frame's own float32 values are what the graph multiplies by.
    """
    frame = prior.frames if isinstance(prior, OwnFramesPrior) else prior.frame
    if frame is None:
        return 0.0
    state: dict[str, Float64] = {name: _float64(value) for name, value in frame.state_dict().items()}
    offset, matrix = np.atleast_2d(state["offset"]), state["matrix"].reshape(-1, *state["matrix"].shape[-2:])
    reach = max(abs(end) for row in range(len(tabulated.laws)) for end in tabulated.laws.ends(row))
    largest = np.abs(offset) + reach * np.sqrt((matrix**2).sum(axis=-1))  # (K, Q), of |z|
    inverse = np.linalg.inv(matrix)
    errors = np.sqrt(inverse**2 @ (2.0**-24 * largest)[:, :, None] ** 2).max()
    return float(_DEVIATIONS * tabulated.laws.largest_density / tabulated.laws.scale.min() * errors)


def _float64(value: torch.Tensor) -> Float64:
    return value.detach().double().cpu().numpy()
