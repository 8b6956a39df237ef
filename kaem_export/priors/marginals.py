"""The distribution of every number of `latent` behind a linear frame: for plotting, and a figure of the certificate.

Given the expert k, z_q = b_kq + sum_j W_kqj u_j with independent u_j, so the characteristic functions multiply:

    phi_kq(t) = e^(i t b_kq) prod_j phi_kj(W_kqj t),     F_q(z) = sum_k pi_k F_kq(z).

Each F_kq is its Fourier series on eight deviations to either side of its mean. phi_kj is that of the masses of
512 bins of p_kj, tabulated once for functions that are alike; a frame's Gaussians take one table in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kaem_export.priors.layout import PriorLayout
from kaem_export.tables.chebyshev_cdf import Float64
from kaem_export.tables.laws import Laws
from kaem_train.model.prior.factorised import MixturePrior

_BINS = 512
_TERMS = 128
_REACH = 8.0
_SHOWN = 5.0
_STEP = 0.01
_LEAST_WEIGHT = 1e-4


@dataclass(frozen=True, slots=True)
class _Univariate:
    """A centred law: mean, deviation, and its characteristic function at multiples of `_STEP` over the deviation."""

    mean: float
    deviation: float
    table: np.ndarray[tuple[int, ...], np.dtype[np.complex128]]

    def at(self, s: Float64) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
        """Return E e^(i s (u - mean))."""
        place = np.abs(s) * self.deviation / _STEP
        below = np.minimum(place.astype(int), len(self.table) - 2)
        value = self.table[below] + (place - below) * (self.table[below + 1] - self.table[below])
        return np.asarray(np.where(s < 0, value.conj(), value))


def framed_cdfs(layout: PriorLayout, num_edges: int) -> tuple[Float64, Float64]:
    """Return edges and F at them of every latent behind a frame: two of shape (Q, num_edges).

    Args:
        layout: Layout of a prior with a frame, common or of every expert.
        num_edges: Number of edges, which span five deviations around every expert that is of any weight.
    """
    prior, laws, weights = layout.prior, layout.laws, layout.weights
    offset, matrix = _expert_frames(layout)
    count = prior.num_latents
    terms = len(laws) // count
    found: dict[tuple[float, ...], _Univariate] = {}
    if isinstance(prior, MixturePrior):
        choice = np.broadcast_to(np.ones(1) if weights is None else weights, (count, terms))
        groups = [[_univariate(laws, [q * terms + p for p in range(terms)], choice[q], found) for q in range(count)]]
        shares = np.ones(1)
    else:
        groups = [[_univariate(laws, [q * terms + k], np.ones(1), found) for q in range(count)] for k in range(terms)]
        shares = np.ones(1) if weights is None else weights
    mean, deviation = np.empty((2, len(groups), count))
    for k, group in enumerate(groups):
        mean[k] = offset[k] + matrix[k] @ [law.mean for law in group]
        deviation[k] = np.sqrt(matrix[k] ** 2 @ np.square([law.deviation for law in group]))
    is_seen = shares >= min(_LEAST_WEIGHT, shares.max())
    low, high = (mean - _SHOWN * deviation)[is_seen].min(axis=0), (mean + _SHOWN * deviation)[is_seen].max(axis=0)
    edges = np.linspace(low, high, num_edges, axis=1)
    cdf = np.zeros_like(edges)
    order = np.arange(1, _TERMS + 1)
    for k, group in enumerate(groups):
        period = 2.0 * _REACH * deviation[k]
        t = 2.0 * np.pi * order / period[:, None]  # (Q, terms)
        phi = np.ones(t.shape, complex)
        for j, law in enumerate(group):
            phi *= law.at(matrix[k][:, j, None] * t)
        y = np.clip(edges - mean[k][:, None], -period[:, None] / 2, period[:, None] / 2)
        moved = np.exp(1j * y[:, :, None] * t[:, None]) - (-1.0) ** order
        series = (moved * (phi.conj() / (1j * t))[:, None]).sum(axis=2).real
        cdf += shares[k] * np.clip(y / period[:, None] + 0.5 + 2.0 / period[:, None] * series, 0.0, 1.0)
    return edges, cdf


def _univariate(
    laws: Laws, rows: list[int], weights: Float64, found: dict[tuple[float, ...], _Univariate]
) -> _Univariate:
    """Return one function, or a mixture of several; those alike share it."""
    key = tuple(float(x) for row in rows for x in (laws.law_of[row], laws.offset[row], laws.scale[row]))
    key = (*key, *map(float, weights)) if len(rows) > 1 else key
    if key not in found:
        ends = np.array([laws.ends(row) for row in rows])
        edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), _BINS + 1)
        width, centres = edges[1] - edges[0], 0.5 * (edges[1:] + edges[:-1])
        mass = (
            np.sum([w * laws.mean_densities(row, edges) for row, w in zip(rows, weights, strict=True)], axis=0) * width
        )
        mass = mass / mass.sum()
        mean = float(mass @ centres)
        deviation = float(np.sqrt(mass @ (centres - mean) ** 2 + width**2 / 12))
        s = np.arange(0.0, np.pi * _TERMS / _REACH + 2 * _STEP, _STEP) / deviation
        table = np.exp(1j * np.outer(s, centres - mean)) @ mass * np.sinc(s * width / (2 * np.pi))
        found[key] = _Univariate(mean, deviation, table)
    return found[key]


def _expert_frames(layout: PriorLayout) -> tuple[Float64, Float64]:
    """Return b (K, Q) and W (K, Q, Q) of every expert."""
    if layout.frame is None:
        raise AssertionError("a prior without a frame has the laws of its functions")
    offset, matrix = layout.frame.offset.astype(np.float64), layout.frame.matrix.astype(np.float64)
    if offset.ndim == 1:
        count = 1 if isinstance(layout.prior, MixturePrior) else layout.prior.num_components
        offset, matrix = np.tile(offset, (count, 1)), np.tile(matrix, (count, 1, 1))
    return offset, matrix
