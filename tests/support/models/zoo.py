"""Fifteen families of densities that quantile tables find hard, and their distribution functions by other means.

A family is a set of features B_g with random weights, log p = sum_g w_g B_g + log pi0. References integrate exp of
the same formula with scipy's adaptive quadrature on their own cells, or are closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.integrate
import scipy.interpolate

from kaem_export.tables.chebyshev_cdf import PiecewiseDensities, curvature, integrate
from kaem_export.tables.laws import Laws


@dataclass(frozen=True)
class Family:
    """R densities on [low, high]: `features` z (M,) -> (M, G), `weights` (R, G), `reference` z -> log pi0."""

    features: Callable[[np.ndarray], np.ndarray]
    weights: np.ndarray
    edges: np.ndarray
    reference: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[float, ...] = ()

    def __call__(self, nodes):
        features = np.moveaxis(self.features(nodes.reshape(-1)).reshape(*nodes.shape, -1), -1, 0)
        values = np.einsum("rg,gen->ren", self.weights, features) + self.reference(nodes)
        bound = np.abs(self.weights) @ curvature(features, nodes) + curvature(self.reference(nodes), nodes)
        return values, bound

    def integrated(self) -> PiecewiseDensities:
        return integrate(self, self.edges, lambda row: f"function {row}")

    def laws(self) -> Laws:
        count = len(self.weights)
        return Laws(
            parts=(self.integrated(),),
            law_of=np.arange(count),
            offset=np.zeros(count),
            scale=np.ones(count),
            kinks=self.kinks,
        )

    def log_density(self, row, z):
        z = np.atleast_1d(z)
        return self.features(z) @ self.weights[row] + self.reference(z)

    def reference_cdf(self, row, points):
        """F at ascending points by scipy's Gauss-Kronrod quadrature between all edges and points."""
        fine = np.linspace(self.edges[0], self.edges[-1], 4001)
        shift = self.log_density(row, fine).max()
        ends = np.union1d(self.edges, points)
        masses = [
            scipy.integrate.quad_vec(
                lambda z: np.exp(self.log_density(row, z)[0] - shift), a, b, epsrel=1e-13, epsabs=1e-300, limit=200
            )[0]
            for a, b in pairwise(ends)
        ]
        total = np.concatenate([[0.0], np.cumsum(masses)])
        return np.interp(points, ends, total / total[-1])


def _gaussian(z):
    return -0.5 * z * z


def _flat(z):
    return np.zeros_like(z)


def _lognormal(z):
    return -0.5 * np.log(z) ** 2 - np.log(z)


def _bumps(centers, width):
    return lambda z: np.exp(-0.5 * ((z[:, None] - centers) / width) ** 2)


def _rbf(count, amplitude, num, seed, reference=_gaussian):
    rng = np.random.default_rng(seed)
    centers = np.linspace(-4, 4, count + 1)
    width = 8 / count
    return Family(
        _bumps(centers, width),
        rng.uniform(-amplitude, amplitude, (num, count + 1)),
        np.unique(np.concatenate([np.arange(-6, 6.01, width).clip(-6, 6), centers, [6.0]]).round(12)),
        reference,
    )


def _bspline(degree, num, seed):
    rng = np.random.default_rng(seed)
    knots = 0.4 * np.arange(-10 - 2 * degree, 11 + 2 * degree)
    size = len(knots) - 3 * degree - 1  # scipy's splines end before the last `degree` functions: those have no weight
    basis = scipy.interpolate.BSpline(knots, np.eye(size + 2 * degree)[:, degree:-degree], degree, extrapolate=False)
    return Family(
        lambda z: np.nan_to_num(basis(z)),
        rng.uniform(-8, 8, (num, size)),
        np.unique(np.concatenate([np.linspace(-6, 6, 31), knots]).round(12).clip(-6, 6)),
        _gaussian,
        kinks=tuple(knots.round(12)) if degree == 1 else (),
    )


def _morlet(amplitude, num, seed):
    rng = np.random.default_rng(seed)
    shifts, scales = rng.uniform(-4, 4, 8), np.exp(rng.uniform(-0.7, 0.7, 8))

    def features(z):
        t = (z[:, None] - shifts) / scales
        return np.cos(5 * t) * np.exp(-0.5 * t * t)

    return Family(features, rng.normal(0, amplitude, (num, 8)), np.linspace(-6, 6, 61), _gaussian)


def _fourier(decay, num, seed):
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 51)
    scale = np.tile(waves.astype(float) ** -decay, 2)

    def features(z):
        angle = 2 * np.pi * np.outer(z, waves)
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)

    amplitude = 1.5 if decay else 0.2
    return Family(features, rng.normal(0, amplitude, (num, 100)) * scale, np.linspace(0, 1, 101), _flat)


def _spikes(num, seed):
    rng = np.random.default_rng(seed)
    centers = np.sort(rng.uniform(-4, 4, 6))
    near = (centers[:, None] + 1e-3 * np.linspace(-8, 8, 17)).reshape(-1)
    edges = np.union1d(np.linspace(-6, 6, 31), near)
    return Family(_bumps(centers, 1e-3), rng.uniform(3, 9, (num, 6)), edges, _gaussian)


def _gaps(num, seed):
    rng = np.random.default_rng(seed)
    centers = np.array([-4.0, -1.2, 1.5, 4.2])

    def features(z):
        return np.exp(-0.5 * ((z[:, None] - centers) / 0.35) ** 2)

    return Family(features, 40 + rng.uniform(-2, 2, (num, 4)), np.linspace(-6, 6, 61), _flat)


def _relu(num, seed):
    weights = np.random.default_rng(seed).uniform(-20, 20, (num, 1))
    return Family(lambda z: np.maximum(z, 0)[:, None], weights, np.linspace(-1, 1, 11), _flat, kinks=(0.0,))


def _plain(reference, edges):
    return Family(lambda z: np.zeros((len(z), 1)), np.zeros((1, 1)), edges, reference)


NUM = 4
ZOO: dict[str, Family] = {
    "near flat": _rbf(20, 0.05, NUM, 1, _flat),
    "rbf20 f 2": _rbf(20, 2, NUM, 2),
    "rbf20 f 8": _rbf(20, 8, NUM, 3),
    "rbf50 f 10": _rbf(50, 10, NUM, 4),
    "rbf20 f 15": _rbf(20, 15, NUM, 5),
    "morlet 2": _morlet(2, NUM, 6),
    "morlet 5": _morlet(5, NUM, 7),
    "splines 3": _bspline(3, NUM, 8),
    "splines 1": _bspline(1, NUM, 9),
    "fourier 1/k": _fourier(1, NUM, 10),
    "fourier flat": _fourier(0, NUM, 11),
    "relu kink": _relu(NUM, 12),
    "gaussian": _plain(_gaussian, np.linspace(-6, 6, 31)),
    "lognormal": _plain(_lognormal, np.union1d(np.geomspace(1e-3, 8, 20), [1e-3, 8.0])),
    "spikes 1e-3": _spikes(NUM, 13),
    "gaps e^-40": _gaps(NUM, 14),
}
