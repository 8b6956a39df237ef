"""What the head of a graph needs of a prior, by how its uniforms become latents.

    collapsed:           z_q = F_q^-1(u_q)                                     D = Q
    experts:             z_q = F_kq^-1(u_q), k picked by one more uniform      D = Q + 1
    shared uniforms:     z_q = sum_p F_qp^-1(u_p)                              D = P
    summands kept:       z_q = sum_p F_qp^-1(u_qp)                             D = Q P
    components kept:     z_q = F_qk^-1(u_q), k picked by another uniform       D = 2 Q

A choice is made by a signed uniform v: with cumulative weights c_k summed in float64, k owns v + 1/2 in
[c_k, c_{k+1}), so k is the number of thresholds c_j - 1/2, 0 < j < K, that are at most v. That counts to K - 1 at most,
whatever v is. Rounding v and the thresholds to float32 moves a share by less than 2^-24.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.collapse import collapse, function_laws
from kaem_export.tables.fit_tables import Baked, bake
from kaem_export.tables.laws import Laws
from kaem_export.tables.leaves import TOLERANCE
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import IndependentPrior, MixturePrior, Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """z = offset + scale x, shapes of the tables' columns."""

    offset: Float64
    scale: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapsedTables:
    """One function per latent: columns (Q,)."""

    tables: QuantileTables
    affine: Affine | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTables:
    """One function per expert and latent: columns (K, Q), thresholds (K - 1,)."""

    tables: QuantileTables
    affine: Affine | None
    thresholds: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SummandTables:
    """One function per latent and summand: columns (Q, P)."""

    tables: QuantileTables
    affine: Affine | None
    shares_uniforms: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentTables:
    """One function per latent and component: columns (Q, P), thresholds (Q, P - 1)."""

    tables: QuantileTables
    affine: Affine | None
    thresholds: Float32


PriorTables = CollapsedTables | ExpertTables | SummandTables | ComponentTables


@dataclass(frozen=True, slots=True, kw_only=True)
class TabulatedPrior:
    """A prior's tables, the distributions that they hold, and what was measured of them.

    Attributes:
        laws: Laws of all tabulated functions: row q of collapsed ones, otherwise row q P + p.
        weights: pi, shape (K,), of experts; alpha, shape (Q, P), of components; None where nothing is chosen.
    """

    tables: PriorTables
    laws: Laws
    baked: Baked
    weights: Float64 | None


def tabulate(prior: Prior, *, tolerance: float = TOLERANCE, keep_components: bool = False) -> TabulatedPrior:
    """Tabulate a prior.

    Args:
        prior: Prior of any variant.
        tolerance: Error in u that is aimed at.
        keep_components: Tabulate every component of a mixture, or every summand, instead of the latents.

    Raises:
        ArtifactError: A density cannot be integrated.
    """
    shape = (prior.num_latents, prior.num_components)
    laws = prior_laws(prior, keep_components=keep_components)
    baked = bake(laws, tolerance)
    if isinstance(prior, ExpertsPrior | OwnFramesPrior):
        weights = choice_weights(prior)
        affine = _affine(laws, shape)
        tables = ExpertTables(
            tables=baked.tables.reading(laws.law_of.reshape(shape).T),
            affine=None if affine is None else Affine(offset=affine.offset.T, scale=affine.scale.T),
            thresholds=_thresholds(weights),
        )
        return TabulatedPrior(tables=tables, laws=laws, baked=baked, weights=weights)
    if isinstance(prior, IndependentPrior) and (prior.shares_uniforms or keep_components):
        summands = SummandTables(
            tables=baked.tables.reading(laws.law_of.reshape(shape)),
            affine=_affine(laws, shape),
            shares_uniforms=prior.shares_uniforms,
        )
        return TabulatedPrior(tables=summands, laws=laws, baked=baked, weights=None)
    if isinstance(prior, MixturePrior) and keep_components:
        weights = choice_weights(prior)
        components = ComponentTables(
            tables=baked.tables.reading(laws.law_of.reshape(shape)),
            affine=_affine(laws, shape),
            thresholds=_thresholds(weights),
        )
        return TabulatedPrior(tables=components, laws=laws, baked=baked, weights=weights)
    collapsed = CollapsedTables(tables=baked.tables, affine=_affine(laws, shape[:1]))
    return TabulatedPrior(tables=collapsed, laws=laws, baked=baked, weights=None)


def prior_laws(prior: Prior, *, keep_components: bool) -> Laws:
    """Return the distributions that `tabulate` makes tables of.

    Raises:
        ArtifactError: A density cannot be integrated.
    """
    is_sum = isinstance(prior, IndependentPrior)
    if keep_components or not isinstance(prior, IndependentPrior | MixturePrior) or (is_sum and prior.shares_uniforms):
        return function_laws(prior)
    return collapse(prior)


def noise_dim(prior: Prior, *, keep_components: bool) -> int:
    """Return D, how many uniforms a sample takes."""
    if isinstance(prior, ExpertsPrior | OwnFramesPrior):
        return prior.num_latents + 1
    if isinstance(prior, IndependentPrior) and prior.shares_uniforms:
        return prior.num_components
    if not keep_components:
        return prior.num_latents
    return prior.num_latents * (2 if isinstance(prior, MixturePrior) else prior.num_components)


def choice_weights(prior: ExpertsPrior | OwnFramesPrior | MixturePrior) -> Float64:
    """Return pi, shape (K,), or alpha, shape (Q, P), in float64."""
    with torch.no_grad():
        return np.asarray(prior.logits.double().softmax(-1), np.float64)


def _thresholds(weights: Float64) -> Float32:
    cumulative = np.cumsum(weights, axis=-1)
    return np.asarray(cumulative[..., :-1] / cumulative[..., -1:] - 0.5, np.float32)


def _affine(laws: Laws, shape: tuple[int, ...]) -> Affine | None:
    if not laws.is_affine:
        return None
    return Affine(offset=laws.offset.reshape(shape), scale=laws.scale.reshape(shape))
