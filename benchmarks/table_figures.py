"""How exact and how large quantile tables are: the figures of a family of functions, and the bars they are held to."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from kaem.noise import uniforms
from kaem_export.tables.fit_tables import score
from kaem_export.tables.laws import Laws
from kaem_export.tables.tree import QuantileTables

_LEAST = np.float32(2.0**-33)


@dataclass(frozen=True)
class Figures:
    """Of one family, the worst of its functions.

    `score`: |F(z) - u| / (2^-24 + p(z) ulp(z)); `tail` and `far_tail`: |F(z) - u| / u in both tails, one float of z
    allowed, from 1e-6 and from 1e-8 on; `descent`: of two neighbouring uniforms, in the unit of scores; `outside`: of
    the support; `tilt`: integral of (F(T(u))' - 1)^2; `kilobytes`: of one function.
    """

    score: float
    score_999: float
    u_error: float
    tail: float
    far_tail: float
    descent: float
    outside: float
    tilt: float
    leaves: float
    kilobytes: float


BARS = {
    "score": 1.25,
    "score_999": 1.0,
    "tail": 1e-3,
    "far_tail": 1e-2,
    "descent": 1.0,
    "outside": 0.0,
    "tilt": 2e-7,
    "kilobytes": 12.0,
}
"""What no family may exceed; energies within 8 and no valleys have a bar of their own, 1e-9, on their tilt."""


def figures(laws: Laws, tables: QuantileTables) -> Figures:
    """Measure tables on half a million draws, both tails and 16 random points of every leaf, in float32."""
    count = tables.num_functions
    own = tables.reading(np.arange(count))
    depth = np.geomspace(2.0**-33, 0.5, max(50, 100_000 // count), dtype=np.float32)[:, None]
    common = np.concatenate([uniforms(3, 0, max(200, 500_000 // count), 1), depth, -depth])
    v = np.concatenate([np.repeat(common, count, axis=1), in_every_leaf(tables, 16)])
    v = np.where(np.abs(v) < _LEAST, _LEAST, v)
    z = own.look_up(v)
    scores, u_error, rounding = (np.empty(v.shape) for _ in range(3))
    for part, run, first in laws.slices(np.arange(count)):
        found = part.evaluate(np.arange(run.start, run.stop) - first, z[:, run].astype(np.float64))
        scores[:, run], u_error[:, run], rounding[:, run] = score(*found, v[:, run], z[:, run])
    relative = np.maximum(u_error - rounding, 0.0) / np.abs(v)
    low, high = laws.support
    return Figures(
        score=float(scores.max()),
        score_999=float(np.quantile(scores, 0.999)),
        u_error=float(u_error.max()),
        tail=float(relative[np.abs(v) >= 1e-6].max()),
        far_tail=float(relative[np.abs(v) >= 1e-8].max()),
        descent=_descent(laws, own, common),
        outside=float(max(low - z.min(), z.max() - high, 0.0)),
        tilt=float(squared_tilt(laws, tables).max()),
        leaves=np.count_nonzero(tables.leaves[:, 3:].any(axis=1)) / count,
        kilobytes=tables.num_bytes / 1000 / count,
    )


def worst(found: list[Figures]) -> dict[str, float]:
    """Return the largest of every figure."""
    return {field.name: max(getattr(one, field.name) for one in found) for field in fields(Figures)}


def squared_tilt(laws: Laws, tables: QuantileTables):
    """Integrate (p(z) dz/du - 1)^2 in float64 over the leaves of the float32 table, per function."""
    rows = tables.leaves.astype(np.float64)
    used = np.flatnonzero(tables.leaves[:, 3:].any(axis=1))
    function = np.searchsorted(tables.block, used // tables.fan_out, side="right") - 1
    start = rows[used, 0]
    end = np.append(start[1:], 0.5)
    end = np.where(end <= start, 0.5, end)
    points, weights = np.polynomial.legendre.leggauss(16)
    width = (end - start)[:, None]
    r = width * (points + 1) / 2
    kappa, gamma = rows[used, 1:2], rows[used, 2:3]
    y = r / (gamma * r + kappa)
    powers = y[:, :, None] ** np.arange(6)
    z = np.einsum("nk,npk->np", rows[used, 3:], powers)
    slope = np.einsum("nk,npk->np", rows[used, 4:] * np.arange(1, 6), powers[:, :, :5])
    slope = slope * kappa / (gamma * r + kappa) ** 2
    density = np.empty_like(z)
    for part, run, first in laws.slices(function):
        density[run] = part.evaluate(function[run, None] - first, z[run])[2]
    return np.bincount(function, ((density * slope - 1) ** 2 * weights / 2 * width).sum(axis=1))


def _descent(laws: Laws, own: QuantileTables, common) -> float:
    """Largest p(z) down / (2^-24 + p(z) ulp(z)): near z = 0 floats are finer than what a uniform can tell."""
    starts = own.leaves[:, 0]
    starts = starts[starts != 0][:100_000]
    v = np.unique(np.concatenate([common[:, 0], starts, np.nextafter(starts, np.float32(-1))]))[:, None]
    deepest = 0.0
    for half in (v[v < 0], v[v > 0]):
        z = own.look_up(np.repeat(half[:, None], own.num_functions, axis=1))
        down = -np.diff(z, axis=0).astype(np.float64)
        for part, run, first in laws.slices(np.arange(own.num_functions)):
            density = part.evaluate(np.arange(run.start, run.stop) - first, z[1:, run].astype(np.float64))[2]
            rounding = density * np.spacing(np.abs(z[1:, run])).astype(np.float64)
            deepest = max(deepest, float((density * down[:, run] / (2.0**-24 + rounding)).max()))
    return deepest


def in_every_leaf(tables: QuantileTables, count: int):
    """Random v in every leaf of every function: shape (N, functions), padded with 1/4."""
    rng = np.random.default_rng(1)
    columns = []
    for function in range(tables.num_functions):
        last = tables.block[function + 1] if function + 1 < tables.num_functions else len(tables.second)
        rows = tables.leaves[tables.block[function] * tables.fan_out : last * tables.fan_out]
        edge = np.append(rows[rows[:, 3:].any(axis=1), 0], np.float32(0.5))
        columns.append((edge[:-1, None] + np.diff(edge)[:, None] * rng.random((len(edge) - 1, count))).reshape(-1))
    most = max(map(len, columns))
    return np.stack([np.pad(c, (0, most - len(c)), constant_values=0.25) for c in columns], axis=1).astype(np.float32)
