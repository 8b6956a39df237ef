"""The distribution of a sum of independent components, from characteristic functions.

phi_q(t) = prod_p phi_qp(t), and on a period L that holds the sum, with t_k = 2 pi k / L,

    g_q(x) = 1 / L sum_k phi_q(t_k) exp(-i t_k x).

The components are Chebyshev series on cells, so every phi_qp is exact at any t: a Legendre series integrates
against exp(i t z) to spherical Bessel functions. Components that jump at the ends a, b of their domain let
phi decay as t^-P only. What their jumps, and those of their derivatives, contribute is known in closed form,

    phi_qp(t) ~ sum_m (-1)^m (i t)^-(m+1) [f^(m)(b) exp(i t b) - f^(m)(a) exp(i t a)],

so that part of the product is taken out of the series and its sum, Bernoulli polynomials, is added back. (Nothing is
lost if it is inexact: the same numbers are taken out and added.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import scipy.special
from numpy.polynomial import chebyshev, legendre
from numpy.typing import NDArray

from kaem.errors import ArtifactError
from kaem_export.tables.chebyshev_cdf import (
    DEGREE,
    NODES_BY_COEFFICIENTS,
    POINTS,
    Float64,
    FunctionName,
    Integers,
    PiecewiseDensities,
    integrate,
    of_rows,
)
from kaem_export.tables.densities import PriorFunctions

ERROR_BOUND = 1e-12
"""Of F, by cutting off the Fourier series; what is reached where all of `MOST_FREQUENCIES` are used is checked."""

WORST_ERROR = 4e-9
MOST_FREQUENCIES = 2**14
_FREQUENCIES_AT_ONCE = 128
_FUNCTIONS_AT_ONCE = 2048
_OUTSIDE = 1e-20
_DERIVATIVES = 3
_MOST_JUMPING = 6
"""More summands than this have no jumps that matter: phi decays at least as t^-7."""

_NOISE = 2e-15
_CELLS = 48
_NODES_AT_ONCE = 512

Complex128 = NDArray[np.complex128]


def _legendre_of_chebyshev() -> Float64:
    x, weights = legendre.leggauss(2 * DEGREE)
    norm = np.arange(DEGREE + 1) + 0.5
    return (chebyshev.chebvander(x, DEGREE).T * weights) @ legendre.legvander(x, DEGREE) * norm


_TO_LEGENDRE = _legendre_of_chebyshev()  # (Chebyshev, Legendre)
_WEIGHTS = np.linalg.solve(
    NODES_BY_COEFFICIENTS.T, chebyshev.chebval(1.0, chebyshev.chebint(np.eye(DEGREE + 1), lbnd=-1))
)


def sum_of_components(
    functions: PriorFunctions, latents: Integers, name: FunctionName
) -> tuple[PiecewiseDensities, tuple[float, ...]]:
    """Return the distributions of sum_p z_qp for some latents q, and points where their densities have kinks.

    Raises:
        ArtifactError: A component cannot be integrated, or the series converges too slowly.
    """
    terms, step = functions.num_components, max(1, _FUNCTIONS_AT_ONCE // functions.num_components)
    parts = []
    for first in range(0, len(latents), step):
        rows = (latents[first : first + step, None] * terms + np.arange(terms)).reshape(-1)
        parts.append(integrate(functions.of(rows), functions.edges, of_rows(name, rows)))
    low, high = float(functions.edges[0]), float(functions.edges[-1])
    begin, end = _range(parts, terms, (terms * low, terms * high))
    series = _joined([_series_of(part, terms, begin, end - begin) for part in parts])
    if series.error > WORST_ERROR:
        raise ArtifactError(
            f"the sum of the {terms} components of a latent is known to {series.error:.1e} only: "
            "their densities have too sharp kinks",
            hint="export with --keep-components",
        )
    corners = terms * low + (high - low) * np.arange(terms + 1) if terms <= _MOST_JUMPING else np.empty(0)
    corners = corners[(corners > begin) & (corners < end)]
    edges = np.union1d(np.linspace(begin, end, max(_CELLS, series.cells) + 1), corners)
    edges = edges[np.append(np.diff(edges) > 1e-9 * (end - begin), True)]
    edges[0] = begin
    law = integrate(series, edges, lambda q: f"latent {latents[q]}, summed", noise=_NOISE * max(1.0, series.height))
    return law, tuple(corners.tolist()) if terms == 2 else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FourierDensities:
    """Q densities as Fourier series and Bernoulli polynomials: `LogDensities`.

    Attributes:
        begin: Where the period starts.
        length: L.
        coefficients: Shape (Q, K), phi at t_1 .. t_K, the jumps' part taken out, relative to `begin`.
        corners: Shape (C,), where the jumps' part has corners, relative to `begin`.
        jumps: Shape (Q, C, M), its coefficients of (i t)^-1 .. (i t)^-M.
        error: Bound of what the cut-off of the series does to F.
        cells: Cells that resolve the densities' waves.
        height: Largest sum of all terms' sizes, by which rounding grows.
    """

    begin: float
    length: float
    coefficients: Complex128
    corners: Float64
    jumps: Float64
    error: float
    cells: int
    height: float

    def __call__(self, nodes: Float64) -> tuple[Float64, Float64]:
        """See `LogDensities`; the starting cells already resolve the series, so no curvature is bounded."""
        x = nodes.reshape(-1) - self.begin
        t = 2.0 * np.pi / self.length * np.arange(1, self.coefficients.shape[1] + 1)
        density = np.empty((len(self.coefficients), len(x)))
        for first in range(0, len(x), _NODES_AT_ONCE):
            block = slice(first, first + _NODES_AT_ONCE)
            angle = np.outer(t, x[block])
            density[:, block] = self.coefficients.real @ np.cos(angle) + self.coefficients.imag @ np.sin(angle)
        density = (1.0 + 2.0 * density) / self.length
        for power in range(1, self.jumps.shape[2] + 1):
            place = np.mod(x - self.corners[:, None], self.length) / self.length  # (C, M)
            factor = -((-1.0) ** power) * self.length ** (power - 1) / math.factorial(power)
            density += factor * (self.jumps[:, :, power - 1] @ _bernoulli(power, place))
        smallest = np.finfo(float).tiny
        return np.log(np.maximum(density, smallest)).reshape(-1, *nodes.shape), np.zeros((len(density), len(nodes)))


def _joined(parts: list[FourierDensities]) -> FourierDensities:
    most = max(part.coefficients.shape[1] for part in parts)
    first = parts[0]
    return FourierDensities(
        begin=first.begin,
        length=first.length,
        coefficients=np.concatenate(
            [np.pad(part.coefficients, ((0, 0), (0, most - part.coefficients.shape[1]))) for part in parts]
        ),
        corners=first.corners,
        jumps=np.concatenate([part.jumps for part in parts]),
        error=max(part.error for part in parts),
        cells=max(part.cells for part in parts),
        height=max(part.height for part in parts),
    )


def _range(parts: list[PiecewiseDensities], terms: int, support: tuple[float, float]) -> tuple[float, float]:
    """Return where all sums lie but for a mass of 1e-20 (Chernoff's bound), within the support.

    P(s >= a) <= exp(-r a) prod_p E exp(r z_p) for every r > 0.
    """
    width = support[1] - support[0]
    rates = np.geomspace(0.1 / width, 2e3 / width * terms, 60)
    begin, end = support[1], support[0]
    for part in parts:
        half = 0.5 * np.diff(part.edges)
        centre = part.edges[:-1] + half
        nodes = (centre[:, None] + half[:, None] * POINTS).reshape(-1)
        mass = np.maximum(part.coefficients @ NODES_BY_COEFFICIENTS.T * _WEIGHTS * half[:, None], 0.0)
        mass = mass.reshape(len(part), -1)
        for sign in (-1.0, 1.0):
            edge = sign * part.edges[-1] if sign > 0 else -part.edges[0]
            moments = mass @ np.exp((sign * nodes[:, None] - edge) * rates)  # (R, rates)
            log_moments = (np.log(np.maximum(moments, 1e-300)) + edge * rates).reshape(-1, terms, len(rates)).sum(1)
            reach = ((log_moments - math.log(_OUTSIDE)) / rates).min(axis=1).max()
            begin, end = (begin, max(end, reach)) if sign > 0 else (min(begin, -reach), end)
    return max(begin, support[0]), min(end, support[1])


def _series_of(part: PiecewiseDensities, terms: int, begin: float, length: float) -> FourierDensities:
    """Return the sums of P consecutive components each."""
    count = len(part) // terms
    half = 0.5 * np.diff(part.edges)
    origin = begin / terms  # of every component, so that sums are relative to `begin`
    centre = part.edges[:-1] + half - origin
    widths, which = np.unique(np.round(half, 13), return_inverse=True)
    series = ((part.coefficients @ _TO_LEGENDRE) * (2.0 * half[:, None])).reshape(len(part), -1)
    orders = np.arange(DEGREE + 1)[:, None]
    jumps = _jumps(part, terms, count)
    corners = terms * (part.edges[0] - origin) + (part.edges[-1] - part.edges[0]) * np.arange(jumps.shape[1])
    found: list[Complex128] = []
    for first in range(1, MOST_FREQUENCIES, _FREQUENCIES_AT_ONCE):
        t = 2.0 * np.pi / length * np.arange(first, first + _FREQUENCIES_AT_ONCE)
        bessel = np.stack([scipy.special.spherical_jn(orders, width * t) for width in widths])[which]  # (E, 17, K)
        wave = (np.exp(1j * np.outer(centre, t))[:, None, :] * (1j**orders * bessel)).reshape(-1, len(t))
        own = series @ wave.real + 1j * (series @ wave.imag)
        phi = own.reshape(count, terms, -1).prod(axis=1)
        powers = (1j * t) ** -np.arange(1.0, jumps.shape[2] + 1)[:, None]  # (M, K)
        phi -= np.einsum("qcm,mk,ck->qk", jumps, powers, np.exp(1j * np.outer(corners, t)), optimize=True)
        found.append(phi)
        if np.abs(phi).max() < ERROR_BOUND:
            break
    coefficients = np.concatenate(found, axis=1)
    size = np.abs(coefficients).max(axis=0)
    wavy = int(np.max(np.flatnonzero(size > 1e-7), initial=0)) + 1
    return FourierDensities(
        begin=begin,
        length=length,
        coefficients=coefficients,
        corners=corners,
        jumps=jumps,
        error=float(np.abs(found[-1]).max()),
        cells=-(-wavy // 2),
        height=float(np.abs(coefficients).sum(axis=1).max() + _height(jumps, length)),
    )


def _height(jumps: Float64, length: float) -> float:
    """Return the largest sum of the Bernoulli polynomials' sizes: |B_m| <= 4 m! / (2 pi)^m."""
    power = np.arange(1.0, jumps.shape[2] + 1)
    sizes = 4.0 * (length / (2.0 * np.pi)) ** power
    return float((np.abs(jumps).sum(axis=1) @ sizes).max())


def _jumps(part: PiecewiseDensities, terms: int, count: int) -> Float64:
    """Return the coefficients of exp(i t x_n) (i t)^-m in the products' expansions: shape (Q, P + 1, M)."""
    if terms > _MOST_JUMPING:
        return np.zeros((count, 1, 0))
    ends = []
    for cell, x in ((0, -1.0), (-1, 1.0)):
        scale = 2.0 / (part.edges[1] - part.edges[0] if cell == 0 else part.edges[-1] - part.edges[-2])
        derivatives = [
            (-scale) ** order * chebyshev.chebval(x, chebyshev.chebder(part.coefficients[:, cell].T, order))
            for order in range(_DERIVATIVES)
        ]
        ends.append((x * np.stack(derivatives, axis=1)).reshape(count, terms, -1))
    low, high = ends
    most = terms + _DERIVATIVES - 1
    product = np.zeros((count, terms + 1, most + 1))  # power m of 1 / (i t)
    product[:, 0, 0] = 1.0
    for p in range(terms):
        grown = np.zeros_like(product)
        for order in range(_DERIVATIVES):
            shifted = product[:, :, : most - order]
            grown[:, :, order + 1 :] += low[:, p, None, order, None] * shifted
            grown[:, 1:, order + 1 :] += high[:, p, None, order, None] * shifted[:, :-1]
        product = grown
    return product[:, :, 1:]


def _bernoulli(power: int, x: Float64) -> Float64:
    """Return the Bernoulli polynomial B_n(x) = sum_k binom(n, k) b_(n-k) x^k."""
    numbers = _bernoulli_numbers(power)
    coefficients = [float(math.comb(power, k) * numbers[power - k]) for k in range(power + 1)]
    return np.asarray(np.polynomial.polynomial.polyval(x, coefficients), np.float64)


def _bernoulli_numbers(most: int) -> list[Fraction]:
    """Return b_0 .. b_n exactly (scipy's are off by 1e-12): sum_(k<=n) binom(n + 1, k) b_k = 0."""
    numbers = [Fraction(1)]
    for n in range(1, most + 1):
        numbers.append(-sum((math.comb(n + 1, k) * numbers[k] for k in range(n)), Fraction(0)) / (n + 1))
    return numbers
