"""Resampling: weights become multiplicities m with E[m_s] = N w_s (Algorithm 2; Douc & Cappe 2005).

All three schemes keep that expectation and differ in variance. On weights that are used once, as here,
resampling only adds variance; it is kept for comparison with the paper and is off by default.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

Resampling = Literal["residual", "systematic", "stratified"]


def resample(weights: Tensor, scheme: Resampling, rng: torch.Generator) -> Tensor:
    """Draw multiplicities for every row.

    Args:
        weights: Shape (B, N), rows summing to 1.
        scheme: `residual` keeps floor(N w_s) copies and draws the rest from what the floors left over;
            `systematic` inverts the row's distribution function at (i + U) / N with one U for all i,
            `stratified` with its own U_i.
        rng: Source of the draws.

    Returns:
        Whole numbers as floats, shape (B, N), rows summing to N.
    """
    num_rows, num = weights.shape
    match scheme:
        case "residual":
            return _residual(weights, rng)
        case "systematic":
            offsets = torch.rand((num_rows, 1), generator=rng, dtype=torch.float64)
        case "stratified":
            offsets = torch.rand((num_rows, num), generator=rng, dtype=torch.float64)
        case _:
            assert_never(scheme)
    points = (torch.arange(num, dtype=torch.float64) + offsets) / num
    chosen = torch.searchsorted(weights.double().cumsum(-1), points.contiguous(), right=True)
    return _count(chosen.clamp_(max=num - 1), num).to(weights.dtype)


def _residual(weights: Tensor, rng: torch.Generator) -> Tensor:
    expected = weights.double() / weights.double().sum(-1, keepdim=True) * weights.shape[-1]
    # An expectation that means a whole number must not lose one to the float32 rounding of its weight.
    counts = torch.floor(expected * (1.0 + 1e-6))
    leftover = (expected - counts).clamp_min(0.0)
    for row, missing in enumerate((weights.shape[-1] - counts.sum(-1)).round().long().tolist()):
        if missing > 0:
            drawn = torch.multinomial(leftover[row], missing, replacement=True, generator=rng)
            counts[row] += _count(drawn[None], weights.shape[-1])[0]
    return counts.to(weights.dtype)


def _count(indices: Tensor, num: int) -> Tensor:
    """Return how often each of 0 .. num - 1 occurs in a row: shape (B, M) -> (B, num), float64."""
    counts = torch.zeros(len(indices), num, dtype=torch.float64)
    return counts.scatter_add_(1, indices, torch.ones(indices.shape, dtype=torch.float64))
