"""Names of what univariate functions are made of, shared by prior and generator."""

from __future__ import annotations

from typing import Literal

BasisName = Literal["rbf", "rswaf", "bspline", "fourier", "chebyshev", "morlet"]
BaseActivation = Literal["none", "silu", "relu", "leakyrelu", "gelu", "tanh"]

_LEAST_GRID_SIZES: dict[BasisName, int] = {
    "rbf": 2,
    "rswaf": 2,
    "bspline": 2,
    "fourier": 2,
    "chebyshev": 2,
    "morlet": 1,
}
WITHOUT_KNOTS: tuple[BasisName, ...] = ("fourier", "chebyshev", "morlet")


def least_grid_size(basis: BasisName) -> int:
    """Return the smallest G: one wavelet is a function already, knots and waves want two."""
    return _LEAST_GRID_SIZES[basis]
