"""What may be said of measured times: intervals, ratios, percentiles and the end of warming up, each by a stated rule.

Times of one run are not independent. A slow moment of the machine lasts longer than a call, and a process that was
laid out unluckily in memory is slower until it ends (Kalibera & Jones, Rigorous Benchmarking in Reasonable Time,
2013). So the unit of every interval is a block, not a call: a launch of the process where we launch it, otherwise
one of `MAX_BLOCKS` stretches of time (batch means, Law & Carson 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval, unless said otherwise."""

MAX_BLOCKS = 20
"""Stretches of time that a run against a server is cut into."""

MIN_BLOCKS = 6
"""Fewest blocks an interval needs: the span of 6 values covers their median with 1 - 2^-5 = 96.9 %."""

MIN_BEYOND = 5
"""Calls that must be expected beyond a percentile for it to be given: 50 calls for p90, 500 for p99."""

WARM_TOLERANCE = 0.05

Floats = NDArray[np.float64]

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; `low` and `high` are None where there are too few blocks for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as large the first of two figures is, with its interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out 1, so that a difference may be claimed."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)


def gives_percentile(percent: float, num: int) -> bool:
    """Whether `num` times support a percentile: the median always, others by `MIN_BEYOND`."""
    return percent == 50 or num * (100 - percent) >= 100 * MIN_BEYOND


def median_interval(values: Sequence[float] | Floats, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Interval of the median of whatever law the values come from, by their order statistics.

    [x_(l), x_(n+1-l)] with the largest l such that P(B < l) <= (1 - confidence) / 2, B ~ binomial(n, 1/2): exact for
    independent values, with no assumption about their law (David & Nagaraja, Order Statistics, 7.1).

    Returns:
        (low, high), or None where even the whole span covers the median less often than `confidence`.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    num = len(ordered)
    if num == 0:
        return None
    # log P(B = k) as the running sum of log((n - k) / (k + 1)), from log P(B = 0) = -n log 2.
    steps = np.log(np.arange(num, 0, -1)) - np.log(np.arange(1, num + 1))
    below = np.cumsum(np.exp(np.concatenate(([0.0], np.cumsum(steps))) - num * math.log(2)))
    rank = int(np.searchsorted(below, (1 - confidence) / 2 * (1 + 1e-12), side="right"))
    return (float(ordered[rank - 1]), float(ordered[num - rank])) if rank >= 1 else None


def quantile_estimates(blocks: Sequence[Floats], quantiles: Sequence[float], *, seed: int = 0) -> list[Estimate]:
    """Quantiles of all times of a run, with percentile-bootstrap intervals that resample whole blocks.

    Args:
        blocks: Times by block; a time may be infinite.
        quantiles: Each in [0, 1].
        seed: Seed of the resampling.

    Returns:
        One estimate for each quantile: the smallest time that at least this share of the times does not exceed.
    """
    times = np.concatenate(blocks)
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    values = [_at(ordered, math.ceil(quantile * len(times) * (1 - 1e-12))) for quantile in quantiles]
    if len(blocks) < MIN_BLOCKS:
        return [Estimate(value) for value in values]
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])[order]
    random = np.random.default_rng(seed)
    draws = np.empty((_RESAMPLES, len(quantiles)))
    shares = np.asarray(quantiles)
    for row in draws:
        weight = np.bincount(random.integers(len(blocks), size=len(blocks)), minlength=len(blocks))
        total = np.cumsum(weight[owner])
        row[:] = ordered[np.minimum(np.searchsorted(total, shares * total[-1] * (1 - 1e-12)), len(ordered) - 1)]
    tail = (1 - CONFIDENCE) / 2
    draws.sort(axis=0)
    low, high = draws[int(tail * _RESAMPLES)], draws[_RESAMPLES - 1 - int(tail * _RESAMPLES)]
    return [Estimate(value, float(a), float(b)) for value, a, b in zip(values, low, high, strict=True)]


def median_estimate(values: Sequence[float]) -> Estimate:
    """Median of a figure over blocks, with the interval of `median_interval`."""
    return Estimate(float(np.median(values)), *(median_interval(values) or (None, None)))


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Median over blocks of first / second, both measured in the same block, so that its slowness cancels.

    Args:
        first: A figure of each block.
        second: The figure to divide by, of the same blocks.
    """
    ratios = np.asarray(first, np.float64) / np.asarray(second, np.float64)
    return Ratio(float(np.median(ratios)), *(median_interval(ratios) or (None, None)))


def separate_ratio(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """Ratio of the medians of two runs, which share no block.

    Each median gets an interval of confidence 1 - (1 - confidence) / 2; their quotients cover the ratio at least as
    often as `confidence` says (Bonferroni), with no assumption about the laws.
    """
    value = float(np.median(first) / np.median(second))
    each = 1 - (1 - confidence) / 2
    above, below = median_interval(first, each), median_interval(second, each)
    if above is None or below is None:
        return Ratio(value)
    return Ratio(value, above[0] / below[1], above[1] / below[0])


def is_warm(medians: Sequence[float], tolerance: float = WARM_TOLERANCE) -> bool:
    """Whether warming up is over: neither of the last two windows is faster than the fastest before by `tolerance`.

    Args:
        medians: Median time of each window of calls so far.
        tolerance: Relative gain that still counts as warming up.
    """
    return len(medians) >= 3 and min(medians[-2:]) >= (1 - tolerance) * min(medians[:-2])


def _at(ordered: Floats, rank: int) -> float:
    return float(ordered[min(max(rank, 1), len(ordered)) - 1])
