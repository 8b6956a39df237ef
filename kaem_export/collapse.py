"""What the generator sees of the prior: one univariate distribution per latent coordinate.

The generator's input is `z_q` drawn from `sum_p alpha_qp p_qp` (mixture prior) or `sum_p z_qp` with independent
`z_qp ~ p_qp` (independent prior). Either way its coordinates are independent, so the whole prior has the same
law as Q univariate distributions: the mixture marginals, or the P-fold convolutions. One uniform and one table
lookup per coordinate then replace P of them, with nothing approximated but the quadrature below. Experts do not
collapse: given the expert the coordinates are independent, so K Q distributions stay. Nor do components that share
their uniforms over q: Q P distributions stay. Frames come after all this.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import scipy.signal
import scipy.special
import torch
from numpy.typing import NDArray

from kaem.errors import ArtifactError
from kaem_train.model.abstract_prior import AbstractPrior
from kaem_train.model.experts import ExpertsPrior
from kaem_train.model.own_frames import OwnFramesPrior
from kaem_train.model.prior import IndependentPrior, MixturePrior

Float64 = NDArray[np.float64]

NODES_PER_CELL = 6
"""Gauss-Legendre nodes in each cell; cells are far narrower than a basis function, so masses are exact to rounding."""

MIXTURE_CELLS = 4096
EXPERT_CELLS = 2048
CONVOLUTION_CELLS = 4096
_CELLS_AT_ONCE = 256
_NOT_FINITE = "the energy of latent {q}, component {p} is not finite on its domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDistributions:
    """Independent distributions of univariate latents, as cumulative masses on cell edges; Q of them, or K Q.

    Attributes:
        edges: Shape (Q, E + 1), ascending cell edges of each coordinate.
        cdf: Shape (Q, E + 1), probability below each edge; first 0, last 1, never descending.
    """

    edges: Float64
    cdf: Float64

    def density(self, bins: int) -> tuple[Float64, Float64]:
        """Return bin edges (Q, bins + 1) and mean densities (Q, bins) on equal bins, for plotting."""
        edges = np.linspace(self.edges[:, 0], self.edges[:, -1], bins + 1, axis=1)
        cdf = np.stack([np.interp(x, e, c) for x, e, c in zip(edges, self.edges, self.cdf, strict=True)])
        return edges, np.diff(cdf, axis=1) / np.diff(edges, axis=1)


def collapse(prior: MixturePrior | IndependentPrior) -> LatentDistributions:
    """Reduce a trained prior to the distributions of its Q latents (before the frame), in float64.

    Raises:
        ArtifactError: An energy is not finite somewhere, or a density has no mass.
    """
    prior = copy.deepcopy(prior).double()  # the caller keeps the model as it was
    if isinstance(prior, MixturePrior):
        return _mixture_marginals(prior)
    return _sums_of_components(prior)


def expert_distributions(prior: ExpertsPrior | OwnFramesPrior) -> LatentDistributions:
    """Return the K Q distributions of an experts prior, row k Q + q, in float64.

    Raises:
        ArtifactError: See `collapse`.
    """
    prior = copy.deepcopy(prior).double()  # the caller keeps the model as it was
    edges = _cell_edges(prior, EXPERT_CELLS)
    masses = component_masses(prior, edges).swapaxes(0, 1).reshape(-1, len(edges) - 1)
    return _distributions(np.broadcast_to(edges, (len(masses), len(edges))), masses)


def component_distributions(prior: IndependentPrior) -> LatentDistributions:
    """Return the Q P distributions of the components of an independent prior, row q P + p, in float64.

    Raises:
        ArtifactError: See `collapse`.
    """
    prior = copy.deepcopy(prior).double()  # the caller keeps the model as it was
    edges = _cell_edges(prior, EXPERT_CELLS)
    masses = component_masses(prior, edges).reshape(-1, len(edges) - 1)
    return _distributions(np.broadcast_to(edges, (len(masses), len(edges))), masses)


def expert_marginals(experts: LatentDistributions, weights: Float64) -> LatentDistributions:
    """Mix the K Q distributions of experts, which share their edges, to the Q marginals; weights (K,)."""
    cdf = np.einsum("k,kqe->qe", weights, experts.cdf.reshape(len(weights), -1, experts.cdf.shape[1]))
    return LatentDistributions(edges=experts.edges[: len(cdf)], cdf=cdf)


def component_masses(prior: AbstractPrior, edges: Float64) -> Float64:
    """Integrate every component density over every cell and normalise.

    m_qp,j = int_cell_j exp(f_qp + log pi0) dz / Z_qp, in logarithms until the last step.

    Args:
        prior: In float64.
        edges: Shape (E + 1,), ascending, aligned with the knots, kinks and support of the densities.

    Returns:
        Shape (Q, P, E), each row summing to 1.

    Raises:
        ArtifactError: See `collapse`.
    """
    points, weights = np.polynomial.legendre.leggauss(NODES_PER_CELL)
    half = np.diff(edges) / 2
    nodes = edges[:-1, None] + half[:, None] * (points + 1)  # (E, nodes)
    log_weights = np.log(half[:, None] * weights)
    log_masses = []
    for first in range(0, len(half), _CELLS_AT_ONCE):
        cells = slice(first, first + _CELLS_AT_ONCE)
        with torch.no_grad():
            density = prior.unnormalised_log_density(torch.from_numpy(nodes[cells].reshape(1, 1, -1))).numpy()
        density = density.reshape(*density.shape[:2], -1, NODES_PER_CELL)  # (Q, P, cells, nodes)
        _require(~np.isnan(density) & ~np.isposinf(density), _NOT_FINITE)
        log_masses.append(scipy.special.logsumexp(density + log_weights[cells], axis=-1))
    log_mass = np.concatenate(log_masses, axis=-1)  # (Q, P, E)
    peak = log_mass.max(axis=-1, keepdims=True)
    _require(np.isfinite(peak), "the density of latent {q}, component {p} has no mass on its domain")
    masses = np.exp(log_mass - peak)
    return np.asarray(masses / masses.sum(axis=-1, keepdims=True))


def _require(is_good: NDArray[np.bool_], message: str) -> None:
    """Raise for the first function (q, p) that is not good everywhere."""
    if not is_good.all():
        q, p = np.argwhere(~is_good)[0][:2]
        raise ArtifactError(
            message.format(q=q, p=p),
            hint="the training has diverged; export an earlier checkpoint, or train with a lower learning rate",
        )


def _mixture_marginals(prior: MixturePrior) -> LatentDistributions:
    edges = _cell_edges(prior, MIXTURE_CELLS)
    with torch.no_grad():
        weights = prior.log_weights().exp().numpy()  # (Q, P)
    masses = np.einsum("qp,qpe->qe", weights, component_masses(prior, edges))
    return _distributions(np.broadcast_to(edges, (len(masses), len(edges))), masses)


def _sums_of_components(prior: IndependentPrior) -> LatentDistributions:
    """Convolve the P components of each coordinate on a common lattice.

    Each component's mass in a cell of width h sits at the cell's centre. Half of a lattice point's total mass
    then lies below it (midpoint rule), so the error of the sum's CDF is O(P h^2).
    """
    if prior.num_components == 1:
        edges = _cell_edges(prior, MIXTURE_CELLS)
        masses = component_masses(prior, edges)[:, 0]
        return _distributions(np.broadcast_to(edges, (len(masses), len(edges))), masses)
    low, high, terms = prior.low, prior.high, prior.num_components
    lattice = np.linspace(low, high, CONVOLUTION_CELLS + 1)
    # Exact cell masses need cells aligned with the knots; the lattice is not, so it is merged with them first.
    edges = np.union1d(lattice, _cell_edges(prior, 1))
    owner = np.clip(np.searchsorted(lattice, (edges[:-1] + edges[1:]) / 2) - 1, 0, CONVOLUTION_CELLS - 1)
    first_of_owner = np.searchsorted(owner, np.arange(CONVOLUTION_CELLS))
    masses = np.add.reduceat(component_masses(prior, edges), first_of_owner, axis=-1)
    total = masses[:, 0]
    for p in range(1, terms):
        total = np.maximum(scipy.signal.fftconvolve(total, masses[:, p], axes=-1), 0.0)
    width = (high - low) / CONVOLUTION_CELLS
    centres = terms * low + (np.arange(total.shape[1]) + terms / 2) * width
    # Between consecutive lattice points lies half the mass of each; the outermost halves reach to the support's ends.
    between = np.concatenate([total[:, :1] / 2, (total[:, 1:] + total[:, :-1]) / 2, total[:, -1:] / 2], axis=1)
    ends = np.concatenate([[terms * low], centres, [terms * high]])
    return _distributions(np.broadcast_to(ends, (len(total), len(ends))), between)


def _distributions(edges: Float64, masses: Float64) -> LatentDistributions:
    cdf = np.concatenate([np.zeros((len(masses), 1)), np.cumsum(masses, axis=1)], axis=1)
    return LatentDistributions(edges=np.ascontiguousarray(edges), cdf=cdf / cdf[:, -1:])


def _cell_edges(prior: AbstractPrior, num_cells: int) -> Float64:
    """Cell edges aligned with every knot and kink, at least `num_cells` cells over the domain."""
    coarse = np.asarray(prior.cell_edges(1), np.float64)
    return np.asarray(prior.cell_edges(max(2, -(-num_cells // (len(coarse) - 1)))), np.float64)
