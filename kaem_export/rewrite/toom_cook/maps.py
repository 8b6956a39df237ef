"""The linear maps of Toom-Cook multiplication for transposed convolutions of kernel 4, stride 2, padding 1.

Along one axis such a layer maps x_i to outputs y_(2 i + k - 1) = sum_i x_i w_k, k = 0..3. With X(t) = sum_i x_i t^i and
for phase r = 0, 1 the kernel's half W_r(t) = w_r + w_(r+2) t, the outputs of one parity are the coefficients of
X(t) W_r(t). Of four inputs X W_r has degree 4, so five values determine it (Toom 1963, Cook 1966): at the points
1/2, -1/2, 3/2, -3/2 and infinity. Five products instead of eight for four outputs; nested over both axes 25 instead of
64. Both phases share the values of X. Tiles of four inputs overlap by one output; adding the overlap, and dropping the
outputs beyond the border, are part of the last map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

POINTS = (0.5, -0.5, 1.5, -1.5)
"""And infinity, whose value is the leading coefficient. Half the rounding error of 0, 1, -1, 1/2 and infinity, the best
of the usual small numbers; all their powers are exact in float32."""

TILE = 4
"""Inputs along an axis that are multiplied at once. With eight and nine points there would be a fifth fewer products,
but more than ten times the rounding error."""

NUM_POINTS = TILE + 1


def evaluation() -> Float64:
    """The map from the inputs of one tile to the values of X: shape (point, 4)."""
    return _vandermonde(TILE)


def evaluation_of_tiles(tiles: int) -> Float64:
    """The map from all inputs of an axis to the values of X of every tile: shape (point tile, 4 tiles)."""
    result = np.zeros((NUM_POINTS, tiles, tiles, TILE))
    for tile in range(tiles):
        result[:, tile, tile] = _vandermonde(TILE)
    return result.reshape(-1, tiles * TILE)


def interpolation(tiles: int) -> Float64:
    """The map from values of X W_r to all outputs of an axis: shape (8 tiles, tile, point, phase)."""
    num_outputs = 2 * tiles * TILE
    result = np.zeros((num_outputs, tiles, NUM_POINTS, 2))
    inverse = np.linalg.inv(_vandermonde(NUM_POINTS))
    for tile in range(tiles):
        for phase in range(2):
            for power in range(NUM_POINTS):
                output = 2 * (tile * TILE + power) + phase - 1
                if 0 <= output < num_outputs:
                    result[output, tile, :, phase] += inverse[power]
    return result


def transformed_weight(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Values of both halves of a kernel at the points, along both axes.

    Args:
        weight: Shape (I, O, 4, 4).

    Returns:
        Shape (point, phase, point, phase, O, I), computed in float64.
    """
    halves = weight.astype(np.float64).reshape(*weight.shape[:2], 2, 2, 2, 2)  # w_(2 j + r): (j, r, j, r)
    values = _vandermonde(2)
    return np.asarray(np.einsum("pj,iojrks,qk->prqsoi", values, halves, values), np.float32)


def _vandermonde(size: int) -> Float64:
    """Powers 0 .. size - 1 of every point, and for infinity the last one alone: shape (5, size)."""
    finite = [[point**power for power in range(size)] for point in POINTS]
    return np.array([*finite, [0.0] * (size - 1) + [1.0]])
