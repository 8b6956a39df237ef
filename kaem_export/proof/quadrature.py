"""A few distribution functions once more, by scipy's adaptive Gauss-Kronrod quadrature.

The oracle that measures every latent has nodes of its own, chosen in advance. Here the energies of sampled functions
are integrated to an error estimate, broken at their knots, one point after the other: slow, and trusting nothing else.
Which functions and points is drawn from the digest of the weights, so a second measurement makes the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, assert_never

import numpy as np
from scipy.integrate import quad_vec

from kaem.artifact import Figure
from kaem_export.proof.oracle import LatentOracle, domain, log_density, prior_tensors, softmax
from kaem_export.proof.oracle_bases import basis_breaks, pieces_wanted
from kaem_export.proof.scores import Quantiles
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.fit_tables import SCORE_BOUND, beyond_floats
from kaem_train.config import PriorConfig

_FUNCTIONS, _POINTS = 3, 6
AGREEMENT_BOUND = 1e-7
_ABSOLUTE, _RELATIVE = 1e-13, 1e-10
_SCALE_POINTS = 2_000
_OF_ONE_FUNCTION = (
    *("bank.coefficients", "bank.translations", "bank.log_scales", "bank.spline_weight", "bank.base_weight"),
    *("means", "log_stds", "reference.mean", "reference.rho"),
)
"""Tensors (Q, P, ...) of which a function needs its own part only."""


@dataclass(frozen=True, slots=True)
class Function:
    """One distribution: its row in the oracle's numbering, and the prior as the oracle was given it."""

    row: int
    config: PriorConfig

    def at(self, z: Float64, state: Mapping[str, Any]) -> tuple[Float64, Float64]:
        """Return F and p at points z (M,), ascending, inside the support."""
        tensors = prior_tensors(state, self.config)
        latent, component = self._place()
        weights = np.ones(1)
        if component is None:
            weights, component = softmax(tensors["logits"][latent]), slice(None)
        own = {
            name: value[latent : latent + 1, component] if name in _OF_ONE_FUNCTION else value
            for name, value in tensors.items()
        }
        evaluate = log_density(own, self.config)
        low, high = domain(tensors, self.config)
        top = evaluate(np.linspace(low, high, _SCALE_POINTS))[0].max(axis=-1)

        def density(point: float) -> Float64:
            return np.asarray(np.exp(evaluate(np.array([point]))[0, :, 0] - top))

        pieces = pieces_wanted(high - low, own, self.config)
        breaks = np.unique([*basis_breaks(tensors, self.config), 0.0, *np.linspace(low, high, pieces + 1)])
        masses = []
        for start, end in pairwise([low, *z, high]):
            inside = breaks[(breaks > start) & (breaks < end)]
            points = inside if len(inside) else None
            mass, _ = quad_vec(density, start, end, _ABSOLUTE, _RELATIVE, norm="max", points=points)
            masses.append(mass)
        below = np.cumsum(masses, axis=0)
        return below[:-1] / below[-1] @ weights, np.array([density(point) for point in z]) / below[-1] @ weights

    def _place(self) -> tuple[int, slice | None]:
        """Return q and the component, none where all are mixed."""
        match self.config.variant:
            case "mixture":
                return self.row, None
            case "experts":
                component, latent = divmod(self.row, self.config.num_latents)
            case "independent":
                latent, component = divmod(self.row, self.config.num_components)
            case _:
                assert_never(self.config.variant)
        return latent, slice(component, component + 1)


def graph_agreement(
    quantiles: Sequence[tuple[int, Quantiles]],
    state: Mapping[str, Any],
    config: PriorConfig,
    fingerprint: str,
    tolerance: float,
) -> Figure:
    """Compare quantiles that the graph computed, by the oracle's rows, with the quadrature of their functions."""
    random = _random(fingerprint)
    worst = []
    for place in random.choice(len(quantiles), min(_FUNCTIONS, len(quantiles)), replace=False):
        row, part = quantiles[place]
        chosen = random.choice(len(part.z), _POINTS, replace=False)
        chosen = chosen[np.argsort(part.z[chosen], kind="stable")]
        z, u = part.z[chosen].astype(np.float64), np.mod(part.signed[chosen].astype(np.float64), 1.0)
        cdf, density = Function(row, config).at(z, state)
        rounding = density * np.spacing(np.abs(part.z[chosen])).astype(np.float64)
        worst.append(np.max(beyond_floats(np.abs(cdf - u), rounding)))
    return Figure(
        name="cdf_agreement",
        value=float(np.max([0.0, *worst])),
        bound=max(AGREEMENT_BOUND, SCORE_BOUND * tolerance),
        meaning=f"max |F(z) - u| - {SCORE_BOUND} p(z) ulp(z): some of the graph's quantiles, "
        "F and p by adaptive quadrature (scipy)",
    )


def oracle_agreement(state: Mapping[str, Any], config: PriorConfig, fingerprint: str) -> Figure:
    """Compare the oracle itself with the quadrature, where a graph shows no single function.

    Args:
        state: The checkpoint's model tensors, by name.
        config: The prior, with functions that are not summed.
        fingerprint: Digest of the weights.
    """
    random, oracle = _random(fingerprint), LatentOracle(state, config)
    per_latent = {"mixture": 1, "independent": config.num_components, "experts": config.num_components}
    count = config.num_latents * per_latent[config.variant]
    worst = [0.0]
    for row in random.choice(count, min(_FUNCTIONS, count), replace=False):
        z = oracle.quantile(int(row), np.sort(random.random(_POINTS)))
        cdf, _ = Function(int(row), config).at(z, state)
        worst.append(float(np.abs(cdf - oracle.cdf(int(row), z)).max()))
    return Figure(
        name="cdf_agreement",
        value=float(np.max(worst)),
        bound=AGREEMENT_BOUND,
        meaning="max difference between the F that u_error was measured with and adaptive quadrature (scipy)",
    )


def _random(fingerprint: str) -> np.random.Generator:
    return np.random.default_rng(int(fingerprint.rpartition(":")[2][:16], 16))
