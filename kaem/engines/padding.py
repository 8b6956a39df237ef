"""Calls of a graph that is made for certain numbers of rows: what one lacks is filled up and cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaem.sampler import Uniforms


def padded(uniform: Uniforms, sizes: Sequence[int]) -> Uniforms:
    """Return rows of uniforms, shape (N, D), with zero rows below: as many as the least of `sizes` that holds them.

    The rows added say nothing about the others. Without sizes, or with more rows than any, nothing is added.
    """
    num = len(uniform)
    size = next((size for size in sizes if size >= num), num)
    if size == num:
        return uniform
    return np.concatenate([uniform, np.zeros((size - num, uniform.shape[1]), uniform.dtype)])


def calls(uniform: Uniforms, sizes: Sequence[int], most: int) -> list[Uniforms]:
    """Return rows of uniforms, shape (N, D), as the calls to make of them, in order; only the last one may be padded.

    Args:
        uniform: At least one row.
        sizes: Numbers of rows that the graph is to be called with, ascending; empty for any.
        most: Rows of one call of a graph for any number.
    """
    rows = sizes[-1] if sizes else most
    return [padded(uniform[first : first + rows], sizes) for first in range(0, len(uniform), rows)]


def whole_calls(rows: int, sizes: Sequence[int]) -> int:
    """Return about so many rows that need no filling up: a multiple of the largest of `sizes`."""
    return max(1, rows // sizes[-1]) * sizes[-1] if sizes else rows


def joined(images: Sequence[NDArray[Any]], num: int) -> NDArray[Any]:
    """Return the first `num` rows of what the calls have given."""
    return (images[0] if len(images) == 1 else np.concatenate(images))[:num]
