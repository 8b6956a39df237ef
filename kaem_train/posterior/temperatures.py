"""Temperatures of the power posteriors, their schedule over a run, and the criteria built on them."""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import Tensor

from kaem_train.sections import PosteriorConfig

Criterion = Literal["telescoped", "steppingstone", "right_sum"]


def temperature_ladder(num: int, power: float) -> Tensor:
    """Return t_k = (k / N_t)^p, k = 0 .. N_t (eq. 22): shape (N_t + 1,), from 0 to 1."""
    return (torch.arange(num + 1) / num) ** power


def power_at(config: PosteriorConfig, step: int, updates: int) -> float:
    """Return p of update `step`: p_start + (p_end - p_start) (1 - cos(2 pi (C + 1/2) i / I)) / 2.

    It begins at `power_start`, ends at `power_end`, and comes back C = `power_cycles` times in between.
    """
    phase = 2.0 * math.pi * (config.power_cycles + 0.5) * step / updates
    return config.power_start + (config.power_end - config.power_start) * 0.5 * (1.0 - math.cos(phase))


def criterion_weights(temperatures: Tensor, criterion: Criterion) -> Tensor:
    """Return the weight of each chain's log p(x|z) in the generator's loss: shape (N_t + 1,), sum 1.

    With samples held constant, `telescoped` (eq. 63) leaves the chain at t = 1 alone and is the gradient of
    log p(x). `steppingstone` (eq. 24, one sample) weighs chain k - 1 by t_k - t_{k-1}, `right_sum` chain k:
    other fixed points, with a smaller generator.
    """
    steps = temperatures.diff()
    match criterion:
        case "telescoped":
            return torch.nn.functional.one_hot(torch.tensor(len(steps)), len(temperatures)).to(steps)
        case "steppingstone":
            return torch.nn.functional.pad(steps, (0, 1))
        case "right_sum":
            return torch.nn.functional.pad(steps, (1, 0))
        case _:
            assert_never(criterion)
