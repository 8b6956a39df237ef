"""Which rows of latents do what: rows that repeat stay together, and a few outliers are left out.

A held-out row that was fitted as well says nothing, so equal rows are all fitted or all held out. A row far from all
others is more often a slip than a latent. One is enough to stretch the mean and the deviations that the rest is
measured by. Rows are outliers where a number z_q lies more than 20 robust deviations from the median,

    |z_q - median_q| > 20 s_q,    s_q = (quantile .98 - quantile .02) / 4.107 (1 for N(0, 1)),

as long as they are at most one in a hundred, and raise a deviation by a tenth or more. Heavy tails have more of them
and are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FAR = 20.0
_MOST_SHARE = 0.01
_LEAST_HARM = 1.1
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 1 << 14, 64
_TAIL, _DEVIATIONS = 0.02, 4.107
"""Lower quantile, and how many deviations of a Gaussian lie between it and its mirror image."""

Integers = NDArray[np.int64]


def make_row_keys(rows: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Return one number per row, shape (S, Q) -> (S,): equal for rows that are equal as float32, and hardly else."""
    factors = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], np.uint64, endpoint=False) | np.uint64(1)
    keys = np.empty(len(rows), np.uint64)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused elsewhere
            part = np.asarray(rows[first : first + _ROWS_AT_ONCE], np.float32) + np.float32(0.0)  # -0 is 0
        words = np.ascontiguousarray(part).view(np.uint32).astype(np.uint64)
        words ^= words << np.uint64(29)  # so that multiples of a power of two do not cancel
        keys[first : first + _ROWS_AT_ONCE] = (words * factors).sum(axis=1, dtype=np.uint64)
    return keys


def count_distinct(keys: NDArray[np.uint64]) -> int:
    """Return how many rows differ from each other, by their keys."""
    return len(np.unique(keys))


def split_rows(keys: NDArray[np.uint64], num_held_out: int, *, seed: int) -> tuple[Integers, Integers, Integers]:
    """Divide rows by chance into those to fit, to choose by and to score.

    Args:
        keys: Keys of the rows by `make_row_keys`, shape (S,).
        num_held_out: Rows of the second and of the third part. Where rows repeat they are as many as whole groups of
            equal rows make, at least one group.
        seed: Seed of the division.

    Returns:
        Indices of rows: three parts, in an order of chance.
    """
    random = np.random.default_rng(seed)
    _, group_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    num_groups = len(sizes)
    if num_groups == len(keys):
        order, ends = random.permutation(len(keys)), [len(keys) - 2 * num_held_out, len(keys) - num_held_out]
    else:
        # A group too large to be held out comes first, where rows are fitted.
        place = random.permutation(num_groups) - num_groups * (sizes > num_held_out)
        order, ends = _choose_whole_groups(place[group_of], num_held_out)
    first, second, third = np.split(order, ends)
    return first, second, third


def _choose_whole_groups(place: Integers, num_held_out: int) -> tuple[Integers, list[int]]:
    """Order rows by the place of their group, and return where the two parts held out begin, each with a group."""
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=place.min() - 1))
    last = min(int(np.searchsorted(starts, len(place) - num_held_out)), len(starts) - 1)
    middle = min(int(np.searchsorted(starts, starts[last] - num_held_out)), last - 1)
    return order, [int(starts[middle]), int(starts[last])]


def find_outliers(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return which rows are outliers: parts of shape (S, Q) -> (S,), bool; none where they are many or do no harm."""
    num_rows = sum(len(part) for part in parts)
    is_outlier, blocks = torch.zeros(num_rows, dtype=torch.bool), range(0, parts[0].shape[1], _COLUMNS_AT_ONCE)
    for first in blocks:
        is_outlier |= _is_far(_columns(parts, first)).any(1)
    num = int(is_outlier.sum())
    does_harm = 0 < num <= _MOST_SHARE * num_rows and any(
        bool((columns.std(0) > _LEAST_HARM * columns[~is_outlier].std(0)).any())
        for columns in (_columns(parts, first) for first in blocks)
    )
    return torch.split(is_outlier & does_harm, [len(part) for part in parts])


def _columns(parts: Sequence[Tensor], first: int) -> Tensor:
    return torch.cat([part[:, first : first + _COLUMNS_AT_ONCE].double() for part in parts])


def _is_far(columns: Tensor) -> Tensor:
    ordered = columns.sort(0).values
    last = len(columns) - 1
    scale = (ordered[last - round(_TAIL * last)] - ordered[round(_TAIL * last)]) / _DEVIATIONS
    return (columns - ordered[last // 2]).abs() > _FAR * scale
