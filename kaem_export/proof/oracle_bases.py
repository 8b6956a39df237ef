"""The functions of every basis once more, in numpy and by other formulas than the model's.

B-splines come from scipy, polynomials from numpy's series, waves and wavelets from complex exponentials.
Like the rest of the oracle this shares no code with the model: it reads tensors out of a checkpoint by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

import numpy as np
import scipy.special
from numpy.polynomial import chebyshev, legendre
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from kaem_train.config import BaseActivation, BasisName, PriorConfig

Float64 = NDArray[np.float64]
Tensors = Mapping[str, Float64]

_TAU_RANGE = (0.25, 4.0)
_SCALE_RANGE = (0.125, 8.0)
_PIECES_PER_WAVE = 4

ACTIVATIONS: dict[BaseActivation, Callable[[Float64], Float64]] = {
    "none": np.zeros_like,
    "silu": lambda z: z * scipy.special.expit(z),
    "relu": lambda z: np.maximum(z, 0.0),
    "leakyrelu": lambda z: np.where(z < 0.0, 0.01 * z, z),
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "tanh": lambda z: 1.0 - 2.0 * scipy.special.expit(-2.0 * z),
}


def basis_tensors(config: PriorConfig) -> list[str]:
    """Return the names of the bank's tensors."""
    own = {
        "rbf": ["bank.spline_weight", "bank.log_tau", "bank.centers"],
        "rswaf": ["bank.spline_weight", "bank.log_tau", "bank.centers"],
        "bspline": ["bank.spline_weight", "bank.knots"],
        "fourier": ["bank.spline_weight", "bank.log_tau"],
        "chebyshev": [],
        "legendre": [],
        "morlet": ["bank.spline_weight", "bank.translations", "bank.log_scales"],
    }[config.basis]
    base = [] if config.base == "none" else ["bank.base_weight"]
    return ["bank.coefficients", *own, *base]


def energies(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    """Return f_qp(z): shape (M,) -> (Q, P, M)."""
    value = _EVALUATORS[config.basis](z, tensors, config)
    if "bank.spline_weight" in tensors:
        value = value * tensors["bank.spline_weight"][:, :, None]
    if config.base != "none":
        value = value + tensors["bank.base_weight"][:, :, None] * ACTIVATIONS[config.base](z)
    return value


def basis_breaks(tensors: Tensors, config: PriorConfig) -> Float64:
    """Return points between which every function of the basis is smooth."""
    match config.basis:
        case "bspline":
            return _extended(tensors["bank.knots"])
        case "rbf" | "rswaf":
            return tensors["bank.centers"]
        case "legendre":
            return np.array([config.low, config.high])
        case "fourier" | "chebyshev" | "morlet":
            return np.empty(0)
        case _:
            assert_never(config.basis)


def pieces_wanted(length: float, tensors: Tensors, config: PriorConfig) -> int:
    """Return into how many pieces a domain of some length must be cut to resolve the fastest oscillation."""
    match config.basis:
        case "fourier":
            wave = (config.high - config.low) / (config.grid_size * _tau(tensors))
        case "chebyshev":
            wave = 2.0 * np.pi / config.grid_size
        case "legendre":
            wave = np.pi * (config.high - config.low) / config.grid_size
        case "morlet":
            wave = 2.0 * np.pi / 5.0 * float(_scales(tensors).min())
        case "rbf" | "rswaf" | "bspline":
            return 1
        case _:
            assert_never(config.basis)
    return int(np.ceil(_PIECES_PER_WAVE * length / wave))


def _rbf(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    basis = np.exp(-(((z[:, None] - tensors["bank.centers"]) / _width(tensors)) ** 2) / 2)
    return np.asarray(np.einsum("qpg,mg->qpm", tensors["bank.coefficients"], basis, optimize=True))


def _rswaf(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    basis = np.cosh((z[:, None] - tensors["bank.centers"]) / _width(tensors)) ** -2.0
    return np.asarray(np.einsum("qpg,mg->qpm", tensors["bank.coefficients"], basis, optimize=True))


def _bspline(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    knots = _extended(tensors["bank.knots"])
    coefficients = tensors["bank.coefficients"]
    # Three more knots on both sides, with no weight: scipy's splines end three knots before their last.
    outer = (knots[1] - knots[0]) * np.arange(1, 4)
    padded = np.concatenate([knots[0] - outer[::-1], knots, knots[-1] + outer])
    weights = np.pad(np.moveaxis(coefficients, -1, 0), ((3, 3), (0, 0), (0, 0)))
    values = BSpline(padded, weights, 3, extrapolate=False)(z)
    return np.nan_to_num(np.moveaxis(values, 0, -1), nan=0.0)


def _fourier(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    waves = np.arange(config.grid_size + 1)
    spiral = np.exp(2j * np.pi * np.outer(z, waves) * (_tau(tensors) / (config.high - config.low)))
    cosines, sines = np.split(tensors["bank.coefficients"], [config.grid_size + 1], axis=-1)
    weights = cosines - 1j * np.pad(sines, ((0, 0), (0, 0), (1, 0)))
    return np.asarray(np.einsum("qpg,mg->qpm", weights, spiral, optimize=True).real)


def _chebyshev(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    return np.asarray(chebyshev.chebval(np.tanh(z) / 1.001, np.moveaxis(tensors["bank.coefficients"], -1, 0)))


def _legendre(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    x = np.interp(z, [config.low, config.high], [-1.0, 1.0])  # constant beyond both ends
    return np.asarray(legendre.legval(x, np.moveaxis(tensors["bank.coefficients"], -1, 0)))


def _morlet(z: Float64, tensors: Tensors, config: PriorConfig) -> Float64:
    scales = _scales(tensors)
    value = np.zeros((*scales.shape[:2], len(z)))
    for g in range(config.grid_size):
        t = (z - tensors["bank.translations"][:, :, g, None]) / scales[:, :, g, None]
        value += tensors["bank.coefficients"][:, :, g, None] * np.exp(5j * t - t**2 / 2).real
    return value


_EVALUATORS: dict[BasisName, Callable[[Float64, Tensors, PriorConfig], Float64]] = {
    "rbf": _rbf,
    "rswaf": _rswaf,
    "bspline": _bspline,
    "fourier": _fourier,
    "chebyshev": _chebyshev,
    "legendre": _legendre,
    "morlet": _morlet,
}


def _tau(tensors: Tensors) -> float:
    return float(np.clip(np.exp(tensors["bank.log_tau"]), *_TAU_RANGE))


def _width(tensors: Tensors) -> float:
    centers = tensors["bank.centers"]
    return float((centers[-1] - centers[0]) / (len(centers) - 1) * _tau(tensors))


def _scales(tensors: Tensors) -> Float64:
    return np.clip(np.exp(tensors["bank.log_scales"]), *_SCALE_RANGE)


def _extended(knots: Float64) -> Float64:
    spacing = (knots[-1] - knots[0]) / (len(knots) - 1)
    steps = spacing * np.arange(1, 4)
    return np.concatenate([knots[0] - steps[::-1], knots, knots[-1] + steps])
