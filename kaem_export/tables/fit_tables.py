"""Distributions to tables, measured on the float32 graph itself and refined until that is right.

A leaf is fitted in float64; what counts is what a runtime makes of it. So a graph of the lookup alone is
run on points of every leaf, and the score of each is

    |F(z) - u| / (2^-24 + p(z) ulp(z)),

ulp(z) the distance to the next float32: at most 1 means that u is right to 2^-24, or z to one float. (At a narrow spike
no float32 z at all has F(z) within 2^-24 of u.) Leaves above 1 are halved and measured again; so are those that are
off by more than one float and a thousandth of u in a tail, where the density does not end with it: v - v0 is rounded to
a float of v0, which is coarse for v near 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kaem_export.onnx_builder import start_graph, to_model
from kaem_export.tables.chebyshev_cdf import Float64, Integers
from kaem_export.tables.laws import Laws
from kaem_export.tables.leaf_choice import choose_leaves
from kaem_export.tables.leaves import (
    LEAST_V,
    TOLERANCE,
    Leaves,
    Pieces,
    bisected,
    concatenated,
    fit,
    in_order,
    joined,
    unsorted,
)
from kaem_export.tables.lookup import look_up
from kaem_export.tables.tree import Float32, PackedLeaves, QuantileTables, pack

SCORE_BOUND = 1.25
"""What no point may exceed; 99.9 % stay below 1.

So z may be off by this many of its floats, wherever an error is judged: rounding a leaf's c0 and its last addition
cost half a float each, and what comes before them, on a leaf that is small enough, not more than the rest.
"""

TAILS = (("tail_error", 1e-6, 1e-3), ("far_tail_error", 1e-8, 1e-2))
"""Figure, least min(u, 1 - u) that it speaks of, and its bound: of |F(z) - u| / min(u, 1 - u) beyond those floats."""

_WANTED_SCORE = _WANTED_FLOATS = 1.0
_WANTED_SHARE = 0.5
"""Of the bounds of `TAILS`: errors leap from float to float of v, and not every one is tried."""

_TAIL_DEPTHS = np.geomspace(1.01e-8, 1e-4, 1024)
_COARSE_START = 2.0**-14
"""|v0| up to which the rounding of v - v0, and of what is made of it, is below all bounds of `TAILS`."""

_ROUNDS = 6
_PROBES = 6
_VALUES_AT_ONCE = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the float32 graph makes of the tables, over eight points of every leaf.

    Attributes:
        score: Largest score.
        score_999: Score that 99.9 % of the points stay below.
        u_error: Largest |F(z) - u|.
        rounding: Largest p(z) ulp(z): u-error of one float32 step of z.
    """

    score: float
    score_999: float
    u_error: float
    rounding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """Finished tables, column r of function r, and what was measured on them."""

    tables: QuantileTables
    measured: Measured
    tolerance: float


def bake(laws: Laws, tolerance: float = TOLERANCE) -> Baked:
    """Tabulate the distributions of all functions.

    Args:
        laws: The distributions.
        tolerance: Error in u that is aimed at.
    """
    low, high = laws.support
    parts, first = [], 0
    for part in laws.parts:
        parts.append(_numbered_on(choose_leaves(part, laws.kinks, tolerance), first))
        first += len(part)
    leaves = concatenated(parts)
    pieces = _fit_all(laws, leaves, tolerance)
    finished: list[_Found] = []
    open_laws: Integers = np.arange(laws.num_laws)
    for round_ in range(_ROUNDS + 1):
        packed = pack(leaves, pieces, low=low, high=high)
        found = _measure(laws, packed, leaves, open_laws, tolerance)
        is_bad = (found.score > _WANTED_SCORE).any(axis=1) & found.can_be_halved(leaves)
        bad_leaves = np.union1d(found.leaf[is_bad], _bad_in_tails(laws, packed, leaves, open_laws, tolerance))
        bad_laws = np.unique(leaves.row[bad_leaves])
        if round_ == _ROUNDS or not len(bad_laws):
            finished.append(found)
            break
        is_open = np.isin(leaves.row[found.leaf], bad_laws)
        finished.append(found.chosen(~is_open))
        open_laws = bad_laws
        leaves, pieces = _with_halves(laws, leaves, pieces, bad_leaves, tolerance)
    score, u_error, rounding = (
        np.concatenate([getattr(part, name).reshape(-1) for part in finished])
        for name in ("score", "u_error", "rounding")
    )
    return Baked(
        tables=packed.tables.reading(laws.law_of),
        measured=Measured(
            score=float(score.max()),
            score_999=float(np.quantile(score, 0.999)),
            u_error=float(u_error.max()),
            rounding=float(rounding.max()),
        ),
        tolerance=tolerance,
    )


def run_lookup(tables: QuantileTables, v: Float32) -> Float32:
    """Look up signed uniforms in ONNX Runtime, on the nodes that an artifact has: shape (N, C) -> (N, C)."""
    width = v.shape[1]
    builder, signed = start_graph("signed", width)
    model = to_model(builder, quantile=look_up(builder.op, tables, signed).quantiles)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = max(1, _VALUES_AT_ONCE // width)
    return np.concatenate([session.run(None, {"signed": v[i : i + rows]})[0] for i in range(0, len(v), rows)])


def score(
    cdf: Float64, survival: Float64, density: Float64, v: Float32, z: Float32, tolerance: float = TOLERANCE
) -> tuple[Float64, Float64, Float64]:
    """Return the scores, |F(z) - u| and p(z) ulp(z) of looked-up quantiles; F, 1 - F and p are those at z."""
    wanted = v.astype(np.float64)
    u_error = np.abs(np.where(v < 0, survival + wanted, cdf - wanted))
    rounding = density * np.spacing(np.abs(z)).astype(np.float64)
    return u_error / (max(tolerance, TOLERANCE) + rounding), u_error, rounding


def beyond_floats(u_error: Float64, rounding: Float64, floats: float = SCORE_BOUND) -> Float64:
    """Return what of |F(z) - u| some floats of z do not account for; NaN where the error is none.

    Args:
        u_error: |F(z) - u|.
        rounding: p(z) ulp(z), of the same shape.
        floats: How many of them.
    """
    return np.asarray(np.where(np.isnan(u_error), np.nan, np.maximum(u_error - floats * rounding, 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was measured at the probes of M leaves: `leaf` (M,), the others (M, probes)."""

    leaf: Integers
    score: Float64
    u_error: Float64
    rounding: Float64

    def chosen(self, keep: NDArray[np.bool_]) -> _Found:
        return _Found(
            leaf=self.leaf[keep],
            score=self.score[keep],
            u_error=self.u_error[keep],
            rounding=self.rounding[keep],
        )

    def can_be_halved(self, leaves: Leaves) -> NDArray[np.bool_]:
        left, right = leaves.left[self.leaf], leaves.right[self.leaf]
        return right - left > 2.0 * np.spacing(np.maximum(np.abs(left), np.abs(right)).astype(np.float32))


def _measure(laws: Laws, packed: PackedLeaves, leaves: Leaves, open_laws: Integers, tolerance: float) -> _Found:
    """Run the lookup on both ends and six random points of every leaf of some distributions."""
    row = _rows_of(packed, leaves, open_laws)
    start, end = packed.start[row, None], packed.end[row, None]
    places = np.random.default_rng(0).random((len(row), _PROBES), dtype=np.float32)
    last = np.nextafter(end, np.float32(-1.0))
    v = np.clip(np.concatenate([start, start + (end - start) * places, last], axis=1), start, last)
    v = np.where(np.abs(v) < LEAST_V, np.where(v < 0.0, -LEAST_V, LEAST_V), v).astype(np.float32)
    return _measured_at(laws, packed, leaves, open_laws, tolerance, row, v)


def _bad_in_tails(laws: Laws, packed: PackedLeaves, leaves: Leaves, open_laws: Integers, tolerance: float) -> Integers:
    """Return the leaves that are off by more than one float and what `TAILS` allow, at points even in log |v|.

    Only a leaf that reaches from a coarse v0 far into a tail can be: there the density does not end with the tail.
    """
    row = _rows_of(packed, leaves, open_laws)
    start, last = packed.start[row], np.nextafter(packed.end[row], np.float32(-1.0))
    near, far = np.sort(np.abs([start, last]), axis=0)
    is_tail = (near < TAILS[0][1]) & (far > _COARSE_START)
    row, start, last = row[is_tail], start[is_tail, None], last[is_tail, None]
    if not len(row):
        return np.asarray(row)
    v = np.clip(np.where(start < 0.0, -1.0, 1.0) * _TAIL_DEPTHS, start, last).astype(np.float32)
    found = _measured_at(laws, packed, leaves, open_laws, tolerance, row, v)
    distance = np.abs(v.astype(np.float64))
    bound = np.full_like(distance, np.inf)
    for _, least, most in reversed(TAILS):
        bound = np.where(distance >= least, most, bound)
    is_bad = beyond_floats(found.u_error, found.rounding, _WANTED_FLOATS) > _WANTED_SHARE * bound * distance
    return np.asarray(found.leaf[is_bad.any(axis=1) & found.can_be_halved(leaves)])


def _rows_of(packed: PackedLeaves, leaves: Leaves, open_laws: Integers) -> Integers:
    row: Integers = np.flatnonzero(packed.leaf_of_row >= 0)
    return np.asarray(row[np.isin(leaves.row[packed.leaf_of_row[row]], open_laws)])


def _measured_at(
    laws: Laws,
    packed: PackedLeaves,
    leaves: Leaves,
    open_laws: Integers,
    tolerance: float,
    row: Integers,
    v: Float32,
) -> _Found:
    """Run the lookup at points v (M, probes) of the leaves in some rows (M,), and compare with the distributions."""
    law = leaves.row[packed.leaf_of_row[row]]
    # One column per distribution, its probes one below the other.
    column = np.searchsorted(open_laws, law)
    place = (np.arange(len(row)) - np.searchsorted(law, law)) * v.shape[1]
    matrix = np.full((int(place.max()) + v.shape[1], len(open_laws)), 0.25, np.float32)
    at = place[:, None] + np.arange(v.shape[1])
    matrix[at, column[:, None]] = v
    z = run_lookup(packed.tables.reading(open_laws), matrix)[at, column[:, None]]
    values = np.empty((3, *z.shape))
    for part, run, first in laws.slices(law):
        values[:, run] = part.evaluate(law[run, None] - first, z[run].astype(np.float64))
    cdf, survival, density = values
    scores, u_error, rounding = score(cdf, survival, density, v, z, tolerance)
    return _Found(leaf=packed.leaf_of_row[row], score=scores, u_error=u_error, rounding=rounding)


def _numbered_on(leaves: Leaves, first: int) -> Leaves:
    return replace(leaves, row=leaves.row + first)


def _fit_all(laws: Laws, leaves: Leaves, tolerance: float) -> Pieces:
    """Fit leaves whose rows number the distributions of all batches."""
    fitted = [
        fit(part, _numbered_on(leaves.chosen(run), -first), tolerance)
        for part, run, first in laws.slices(leaves.row)
        if run.stop > run.start
    ]
    return joined(fitted)


def _with_halves(laws: Laws, leaves: Leaves, pieces: Pieces, bad: Integers, tolerance: float) -> tuple[Leaves, Pieces]:
    """Replace some leaves by their halves."""
    good = np.ones(len(leaves), bool)
    good[bad] = False
    halves = concatenated([leaves.chosen(bad).halves()])
    halves = concatenated(
        [
            _numbered_on(bisected(part, _numbered_on(halves.chosen(run), -first), tolerance), first)
            for part, run, first in laws.slices(halves.row)
            if run.stop > run.start
        ]
    )
    together = joined([pieces.chosen(good), _fit_all(laws, halves, tolerance)])
    order = in_order(both := unsorted([leaves.chosen(good), halves]))
    return both.chosen(order), together.chosen(order)
