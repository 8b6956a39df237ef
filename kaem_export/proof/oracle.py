"""What the latents should follow, computed a second time by other means.

An exporter that checks itself with its own quadrature proves little. This module shares no code with the
model or the table baker: it reads tensors out of a checkpoint by name, evaluates the energies in numpy, integrates
by piecewise Chebyshev interpolation (the baker: Gauss-Legendre), and obtains the law of a sum from
characteristic functions (the baker: convolution).

    f_qp(z)  = w_b,qp b(z) + w_s,qp sum_g c_qpg B_g(z), by `oracle_bases.py`
    p_qp(z)  = exp(f_qp(z)) pi0(z) / Z_qp                                      (method of the paper, eqs. 9 and 20)
    mixture:      F_q(x) = sum_p alpha_qp int_low^x p_qp
    independent:  F_q    = law of sum_p z_qp, by its Fourier series on the sum's support
    shared u:     F_qp(x) = int_low^x p_qp, row q P + p
    experts:      F_kq(x) = int_low^x p_qk, row k Q + q, with pi0 replaced by exp(-((z - m_qk) / s_qk)^2 / 2)
    frame:        u = W^-1 (z - b) follows all of the above
    own frames:   F_kq(x) = int_low^x p_qk, row k Q + q, of u = W_k^-1 (z - b_k)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from kaem_export.proof.oracle_bases import basis_breaks, basis_tensors, energies, pieces_wanted
from kaem_train.config import PriorConfig

Float64 = NDArray[np.float64]

_PIECES = 96
_PIECES_OF_SUMS = 384
_DEGREE = 24
_LARGEST_PHASE = 10.0
"""Radians of e^itz over half a piece up to which polynomials of this degree integrate it to 1e-14."""

_FREQUENCIES_AT_ONCE = 256
_HALVINGS = 40
_NEGLIGIBLE = 1e-8
_TILTS = 8
"""Into how many groups the points of a tail are cut; each has a theta of its own."""

_MOST_TILT = 600.0
"""Largest |theta| times the width of one component's support: e^600 is a float64."""

_LOG_STD_RANGE = (-2.0, 1.5)
_LEAST_REFERENCE_STD = 0.1
_FRAME_PREFIX = {"none": None, "global": "frame", "own": "frames"}


class LatentOracle:
    """Distribution functions of the univariate latents, in float64.

    Args:
        state: A checkpoint's model tensors, by name.
        config: The prior's section of the checkpoint's configuration.

    Attributes:
        weights: pi, shape (K,), of experts; [1] for the other variants.
        is_sum: Whether the distributions are those of sums: `cdf` knows them to 2e-9, `tail_of_sum` is relative.
    """

    weights: Float64

    def __init__(self, state: Mapping[str, Any], config: PriorConfig) -> None:
        tensors = prior_tensors(state, config)
        self.is_sum = config.variant == "independent" and config.num_components > 1 and config.u_sharing == "per_qp"
        self._has_own_frames = config.frame == "own"
        low, high = domain(tensors, config)
        self._terms, self._low, self._high = config.num_components, low, high
        breaks = np.append(basis_breaks(tensors, config), 0.0)
        breaks = breaks[(breaks > low) & (breaks < high)]
        if config.reference == "lognormal":  # smooth over log z
            breaks = np.append(breaks, np.geomspace(low, high, _PIECES // 2))
        pieces = max(_PIECES_OF_SUMS if self.is_sum else _PIECES, pieces_wanted(high - low, tensors, config))
        self._edges = np.union1d(np.linspace(low, high, pieces + 1), breaks)
        points = chebyshev.chebpts1(_DEGREE + 1)
        self._half = np.diff(self._edges) / 2
        self._nodes = self._edges[:-1, None] + self._half[:, None] * (points + 1)  # (pieces, nodes)
        self._to_coefficients = np.linalg.inv(chebyshev.chebvander(points, _DEGREE)).T  # (nodes, degree + 1)
        log_values = log_density(tensors, config)(self._nodes.reshape(-1))
        density = np.exp(log_values - log_values.max(axis=-1, keepdims=True))
        density = density.reshape(*density.shape[:2], *self._nodes.shape)  # (Q, P, pieces, nodes)
        density /= self._integrals(density).sum(axis=-1)[:, :, None, None]
        self.weights = np.ones(1)
        if config.variant == "experts":
            self.weights = softmax(tensors["logits"])
        prefix = _FRAME_PREFIX[config.frame]
        self._frame = None if prefix is None else (tensors[f"{prefix}.offset"], tensors[f"{prefix}.matrix"])
        if self.is_sum:
            self._components = density
        else:
            marginal = _rows(density, tensors, config)
            self._antiderivatives = np.stack([self._antiderivative(row) for row in marginal])
            self._coefficients = marginal @ self._to_coefficients  # (rows, pieces, degree + 1)
            masses = self._integrals(marginal)
            self._below = np.cumsum(np.pad(masses, ((0, 0), (1, 0))), axis=1)
            # From the other end as well: 1 - F(z) would lose the upper tail.
            self._above = np.cumsum(np.pad(masses, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1]

    def univariate(self, latent: Float64, expert: int = 0) -> Float64:
        """Undo the frame: generator inputs z to the u that the distribution functions speak of, shape (N, Q).

        Args:
            latent: Shape (N, Q).
            expert: k, which drew all of them; of matter only where experts have frames of their own.
        """
        if self._frame is None:
            return latent
        offset, matrix = (part[expert] if self._has_own_frames else part for part in self._frame)
        return np.asarray(np.linalg.solve(matrix, (latent - offset).T).T)

    def cdf(self, q: int, z: Float64) -> Float64:
        """Return P(U_q <= z) for the q-th univariate latent (experts: row k Q + q); shape of `z`."""
        if self.is_sum:
            return self._cdf_of_sum(q, z)
        piece, local = self._place(z)
        within = chebyshev.chebval(local, self._antiderivatives[q][piece].T, tensor=False)
        return np.asarray(np.clip(self._below[q][piece] + within, 0.0, 1.0))

    def survival(self, q: int, z: Float64) -> Float64:
        """Return P(U_q > z), to its own relative precision in the upper tail; not of a sum; shape of `z`."""
        piece, local = self._place(z)
        coefficients = self._antiderivatives[q][piece].T
        beyond = chebyshev.chebval(1.0, coefficients) - chebyshev.chebval(local, coefficients, tensor=False)
        return np.asarray(np.clip(self._above[q][piece + 1] + beyond, 0.0, 1.0))

    def density(self, q: int, z: Float64) -> Float64:
        """Return p of the q-th univariate latent; of a sum, the slope of F over a step of 1e-4 of its support."""
        if self.is_sum:
            step = 1e-4 * self._terms * (self._high - self._low)
            return np.asarray((self._cdf_of_sum(q, z + step) - self._cdf_of_sum(q, z - step)) / (2 * step))
        piece, local = self._place(z)
        return np.asarray(np.maximum(chebyshev.chebval(local, self._coefficients[q][piece].T, tensor=False), 0.0))

    def _place(self, z: Float64) -> tuple[NDArray[np.intp], Float64]:
        """Return the piece that holds each z, and where in [-1, 1] of it z lies."""
        piece = np.clip(np.searchsorted(self._edges, z, side="right") - 1, 0, len(self._half) - 1)
        return piece, (z - self._edges[piece]) / self._half[piece] - 1

    def quantile(self, q: int, u: Float64) -> Float64:
        """Return F^-1(u) of the q-th univariate latent by bisection; not of a sum; shape of `u`."""
        piece = np.clip(np.searchsorted(self._below[q], u, side="right") - 1, 0, len(self._half) - 1)
        low, high = self._edges[piece], self._edges[piece + 1]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_below = self.cdf(q, middle) < u
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        return np.asarray((low + high) / 2)

    def _integrals(self, density: Float64) -> Float64:
        """Integrate the interpolant over each piece: (..., pieces, nodes) -> (..., pieces)."""
        ends = chebyshev.chebval(1.0, chebyshev.chebint(self._to_coefficients, lbnd=-1, axis=1).T)
        return np.asarray(density @ ends * self._half)

    def _antiderivative(self, density: Float64) -> Float64:
        """Coefficients of the integral from each piece's left end: (pieces, nodes) -> (pieces, degree + 2)."""
        coefficients = density @ self._to_coefficients
        return np.asarray(chebyshev.chebint(coefficients, lbnd=-1, axis=1) * self._half[:, None])

    def _cdf_of_sum(self, q: int, z: Float64) -> Float64:
        """F(x) = x/L + (2/L) sum_k Re[conj phi(t_k) (e^{i t_k x} - 1) / (i t_k)], t_k = 2 pi k / L, x from the low end.

        phi is the characteristic function of sum_p (z_p - low), supported on [0, L] with L = P (high - low).
        """
        length = self._terms * (self._high - self._low)
        x = z - self._terms * self._low
        shifted = (self._nodes - self._low).reshape(-1)
        ends = chebyshev.chebval(1.0, chebyshev.chebint(self._to_coefficients, lbnd=-1, axis=1).T)
        masses = (self._components[q] * ends * self._half[:, None]).reshape(self._terms, -1)
        total = x / length
        # Components that jump at the domain's ends let phi decay as t^-P only; what is cut off is below |phi|.
        last = int(_LARGEST_PHASE / self._half.max() * length / (2 * np.pi))
        for first in range(1, last, _FREQUENCIES_AT_ONCE):
            t = 2 * np.pi * np.arange(first, first + _FREQUENCIES_AT_ONCE) / length
            phi = (masses @ np.exp(1j * np.outer(shifted, t))).prod(axis=0)
            total = total + 2 / length * ((np.exp(1j * np.outer(x, t)) - 1) @ (phi.conj() / (1j * t))).real
            if np.abs(phi[-8:]).max() < _NEGLIGIBLE:
                break
        return np.clip(total, 0.0, 1.0)

    def tail_of_sum(self, q: int, z: Float64, *, is_upper: bool) -> Float64:
        """Return P(S_q > z), or P(S_q <= z), of a sum to their own relative precision; for z in one tail, shape (N,).

        Esscher's tilt: the law with density proportional to e^(theta x) p(x) has the mean of z for some theta, and
        its Fourier series is as precise there as that of p is at the mean. With M = E e^(theta x), the x from the low
        end, and phi the tilted characteristic function,

            P(S > z) = (M / L) sum_k conj phi(t_k) int_z^L e^((i t_k - theta) x) dx,     t_k = 2 pi k / L, k of Z.
        """
        length = self._terms * (self._high - self._low)
        x, shifted = z - self._terms * self._low, (self._nodes - self._low).reshape(-1)
        ends = chebyshev.chebval(1.0, chebyshev.chebint(self._to_coefficients, lbnd=-1, axis=1).T)
        masses = (self._components[q] * ends * self._half[:, None]).reshape(self._terms, -1)
        groups = [part for part in np.array_split(np.argsort(x), _TILTS) if len(part)]
        places = [float(np.median(x[group])) for group in groups]
        tilts = [_tilted(masses, shifted, place, _MOST_TILT / (self._high - self._low)) for place in places]
        together = np.concatenate([tilted for _, tilted, _ in tilts])
        total = np.zeros_like(x)
        last = int(_LARGEST_PHASE / self._half.max() * length / (2 * np.pi))
        for first in range(0, last, _FREQUENCIES_AT_ONCE):
            t = 2 * np.pi * np.arange(first, first + _FREQUENCIES_AT_ONCE) / length
            phases = together @ np.exp(1j * np.outer(shifted, t))
            phi = phases.reshape(len(tilts), self._terms, -1).prod(axis=1)
            for group, (theta, _, log_scale), own in zip(groups, tilts, phi, strict=True):
                rate = 1j * t - theta
                # k and -k give the same, and k = 0 is there once. M may be far from 1, so it is in the exponent.
                factor = own.conj() / rate * np.where(t > 0.0, 2.0, 1.0) / length
                start, end = (x[group], length) if is_upper else (0.0, x[group])
                moved = [np.exp(np.multiply.outer(edge, rate) + log_scale) for edge in (end, start)]
                total[group] += ((moved[0] - moved[1]) @ factor).real
            if np.abs(phi[:, -8:]).max() < _NEGLIGIBLE:
                break
        return np.clip(total, 0.0, 1.0)


def _tilted(masses: Float64, x: Float64, place: float, most: float) -> tuple[float, Float64, float]:
    """Tilt laws so that their sum has a given mean.

    Args:
        masses: Masses of P components at x, shape (P, M).
        x: Shape (M,).
        place: The mean.
        most: Largest |theta|.

    Returns:
        theta, the tilted masses, each row summing to 1, and log E e^(theta sum).
    """

    def tilt(theta: float) -> tuple[Float64, float]:
        exponent = theta * x
        own = masses * np.exp(exponent - exponent.max())
        sums = own.sum(axis=1, keepdims=True)
        return own / sums, float(np.log(sums).sum() + len(masses) * exponent.max())

    low, high = -most, most
    for _ in range(_HALVINGS):
        theta = (low + high) / 2
        low, high = (theta, high) if (tilt(theta)[0] @ x).sum() < place else (low, theta)
    return theta, *tilt(theta)


def prior_tensors(state: Mapping[str, Any], config: PriorConfig) -> dict[str, Float64]:
    """Return those tensors of a checkpoint's model that its prior is made of, in float64."""
    names = [*_names(config), *(["domain"] if "prior.domain" in state else [])]
    return {name: np.asarray(state[f"prior.{name}"], np.float64) for name in names}


def domain(tensors: Mapping[str, Float64], config: PriorConfig) -> tuple[float, float]:
    """Return the ends of the support of every function."""
    low, high = tensors["domain"].tolist() if "domain" in tensors else (config.low, config.high)
    return low, high


def _names(config: PriorConfig) -> list[str]:
    names = basis_tensors(config)
    if _FRAME_PREFIX[config.frame]:
        names += [f"{_FRAME_PREFIX[config.frame]}.{part}" for part in ("offset", "matrix")]
    if config.variant == "experts" and config.frame != "own":
        names += ["means", "log_stds"]
    if config.reference == "learnable_gaussian":
        names += ["reference.mean", "reference.rho"]
    if config.variant != "independent":
        names.append("logits")
    return names


def _rows(density: Float64, tensors: Mapping[str, Float64], config: PriorConfig) -> Float64:
    """Component densities (Q, P, pieces, nodes) to one density per distribution function."""
    match config.variant:
        case "experts":
            return density.swapaxes(0, 1).reshape(-1, *density.shape[2:])
        case "mixture":
            return np.asarray(np.einsum("qp,qpen->qen", softmax(tensors["logits"]), density))
        case "independent":
            return density.reshape(-1, *density.shape[2:])
        case _:
            assert_never(config.variant)


def log_density(tensors: Mapping[str, Float64], config: PriorConfig) -> Callable[[Float64], Float64]:
    """Return z (M,) -> f_qp(z) + log pi0(z) up to a constant, shape (Q, P, M)."""

    def evaluate(z: Float64) -> Float64:
        value = energies(z, tensors, config)
        if "means" in tensors:
            stds = np.exp(np.clip(tensors["log_stds"], *_LOG_STD_RANGE))
            value -= ((z - tensors["means"][:, :, None]) / stds[:, :, None]) ** 2 / 2
        else:
            value += _log_reference(tensors, config, z)
        return np.asarray(value)

    return evaluate


def _log_reference(tensors: Mapping[str, Float64], config: PriorConfig, z: Float64) -> Float64 | float:
    """Return log pi0(z) up to a constant per function: z (M,) -> shape that broadcasts with (Q, P, M)."""
    match config.reference:
        case "gaussian":
            return -(z**2) / 2
        case "lognormal":
            return -(np.log(z) ** 2) / 2 - np.log(z)
        case "learnable_gaussian":
            length, centre = config.high - config.low, (config.high + config.low) / 2
            mean = np.clip(tensors["reference.mean"], centre - length / 4, centre + length / 4)
            std = np.clip(np.logaddexp(0, tensors["reference.rho"]) + 1e-3, _LEAST_REFERENCE_STD, length / 8)
            return np.asarray(-(((z - mean[:, :, None]) / std[:, :, None]) ** 2) / 2)
        case "uniform" | "none":
            return 0.0
        case _:
            assert_never(config.reference)


def softmax(logits: Float64) -> Float64:
    """Return the weights of logits along the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
