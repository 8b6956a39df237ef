"""What the generator sees of the prior: one univariate distribution per latent coordinate.

The generator's input is `z_q` drawn from `sum_p alpha_qp p_qp` (mixture prior) or `sum_p z_qp` with independent
`z_qp ~ p_qp` (independent prior). Either way its coordinates are independent, so the whole prior has the same
law as Q univariate distributions: the mixture marginals, or the P-fold convolutions. One uniform and one table
lookup per coordinate then replace P of them. Experts do not collapse: given the expert the coordinates are independent,
so K Q distributions stay. Nor do components that share their uniforms over q: Q P distributions stay. Frames come
after all this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from kaem_export.tables.chebyshev_cdf import Float64, FunctionName, Integers, PiecewiseDensities, integrate, of_rows
from kaem_export.tables.densities import PriorFunctions, StandardNormal
from kaem_export.tables.laws import Laws
from kaem_export.tables.sums import sum_of_components
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.factorised import IndependentPrior, MixturePrior

_FUNCTIONS_AT_ONCE = 128
"""Functions that share cells: what one of them needs costs all."""

_COMPONENTS_AT_ONCE = 512
_NORMAL_EDGES = np.linspace(-7.5, 7.5, 31)


def function_laws(prior: AbstractPrior) -> Laws:
    """Return the distributions of all Q P functions, row q P + p, in float64.

    Raises:
        ArtifactError: A function is not finite, has no mass, or is too sharp to be resolved.
    """
    functions = PriorFunctions(prior)
    law_of, offset, scale, representative = functions.identities()
    name = _name(functions)
    parts = []
    for rows in _batches(representative):
        if rows[0] < 0:
            parts.append(standard_normal())
        else:
            parts.append(integrate(functions.of(rows), functions.edges, of_rows(name, rows)))
    return Laws(parts=tuple(parts), law_of=law_of, offset=offset, scale=scale, kinks=functions.kinks)


def collapse(prior: MixturePrior | IndependentPrior) -> Laws:
    """Return the distributions of the Q latents, before the frame, in float64.

    Raises:
        ArtifactError: See `function_laws`.
    """
    if prior.num_components == 1:
        return function_laws(prior)
    functions = PriorFunctions(prior)
    law_of, offset, scale, _ = functions.identities()
    ids = law_of.reshape(prior.num_latents, -1)
    is_one = (ids == ids[:, :1]).all() and not offset.any() and (scale == 1.0).all()
    if isinstance(prior, MixturePrior):
        if is_one:
            return _alike(_mixture_of_one(functions), prior.num_latents, functions.kinks)
        with torch.no_grad():
            weights = torch.log_softmax(prior.logits.double(), -1).exp().numpy()
        return _each(tuple(_marginals(functions, weights)), functions.kinks)
    latents = np.arange(1 if is_one else prior.num_latents)
    sums, kinks = sum_of_components(functions, latents, _name(functions))
    return _alike(sums, prior.num_latents, kinks) if is_one else _each((sums,), kinks)


def standard_normal() -> PiecewiseDensities:
    """Return N(0, 1), cut off where a mass of 3e-14 lies beyond."""
    return integrate(StandardNormal(), _NORMAL_EDGES, lambda _: "the normal law")


def _marginals(functions: PriorFunctions, weights: Float64) -> Iterator[PiecewiseDensities]:
    """Mix the components of some latents at a time; weights (Q, P), each row summing to 1."""
    count, terms = weights.shape
    name, step = _name(functions), max(1, _COMPONENTS_AT_ONCE // terms)
    for first in range(0, count, step):
        latents = slice(first, min(first + step, count))
        rows = np.arange(latents.start * terms, latents.stop * terms)
        components = integrate(functions.of(rows), functions.edges, of_rows(name, rows))
        yield components.combined(weights[latents])


def _mixture_of_one(functions: PriorFunctions) -> PiecewiseDensities:
    return integrate(functions.of(np.zeros(1, int)), functions.edges, _name(functions))


def _each(parts: tuple[PiecewiseDensities, ...], kinks: tuple[float, ...]) -> Laws:
    count = sum(map(len, parts))
    return Laws(parts=parts, law_of=np.arange(count), offset=np.zeros(count), scale=np.ones(count), kinks=kinks)


def _alike(law: PiecewiseDensities, count: int, kinks: tuple[float, ...]) -> Laws:
    """Return `count` latents of one law."""
    return Laws(parts=(law,), law_of=np.zeros(count, int), offset=np.zeros(count), scale=np.ones(count), kinks=kinks)


def _batches(representative: Integers) -> Iterator[Integers]:
    """Cut laws into runs that are integrated together; the normal law is a run by itself."""
    ends = np.flatnonzero(representative < 0)
    cuts = sorted({0, len(representative), *ends.tolist(), *(ends + 1).tolist()})
    for begin, end in pairwise(cuts):
        for first in range(begin, end, _FUNCTIONS_AT_ONCE):
            yield representative[first : min(first + _FUNCTIONS_AT_ONCE, end)]


def _name(functions: PriorFunctions) -> FunctionName:
    terms = functions.num_components
    return lambda row: f"latent {row // terms}, component {row % terms}"
