"""Estimates of log p(x) from likelihoods along power posteriors: diagnostics, never a training loss.

With E_k the mean of log p(x|z) under p(z|x, t_k), and dt_k = t_k - t_{k-1}:

    steppingstone (eq. 23)       sum_k log E_{k-1} p(x|z)^dt_k
    thermodynamic (eqs. 21, 54)  sum_k dt_k (E_k + E_{k-1}) / 2
    corrected (eq. 55)           the same + sum_k [KL(p_{k-1} || p_k) - KL(p_k || p_{k-1})] / 2

`levels` holds log p(x|z) of samples at t_0 = 0 < t_1 < ... < t_N = 1, for each k a tensor (S_k, B); results
have shape (B,), in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """Return log of the mean of exponentials along `dim`.

    Of log p(x, z) / q(z) for z from q this is the importance sampling estimate of log p(x), below it in
    expectation.
    """
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def steppingstone_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the steppingstone estimate (eq. 23): each ratio Z_k / Z_{k-1} from samples of the colder side."""
    steps = temperatures.diff()
    return torch.stack([log_mean_exp(step * level, 0) for step, level in zip(steps, levels[:-1], strict=True)]).sum(0)


def thermodynamic_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the trapezium rule over E_t log p(x|z) (eqs. 21, 54), biased by its step size."""
    means = torch.stack([level.mean(0) for level in levels])
    return torch.trapezoid(means, temperatures, dim=0)


def corrected_evidence(levels: Sequence[Tensor], temperatures: Tensor) -> Tensor:
    """Return the trapezium rule corrected by its divergences (eq. 55), which is exact for exact expectations.

    The divergences contain Z_k / Z_{k-1} (eqs. 59-60). KL(p_{k-1} || p_k) takes it from the samples at k - 1,
    KL(p_k || p_{k-1}) from those at k, whose errors have opposite signs.
    """
    total = thermodynamic_evidence(levels, temperatures)
    for step, (colder, warmer) in zip(temperatures.diff(), pairwise(levels), strict=True):
        forward = -step * colder.mean(0) + log_mean_exp(step * colder, 0)
        backward = step * warmer.mean(0) + log_mean_exp(-step * warmer, 0)
        total = total + 0.5 * (forward - backward)
    return total
