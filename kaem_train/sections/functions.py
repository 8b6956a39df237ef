"""Names of what univariate functions are made of, shared by prior and generator."""

from __future__ import annotations

from typing import Literal

BasisName = Literal["rbf", "rswaf", "bspline", "fourier", "chebyshev", "morlet"]
BaseActivation = Literal["none", "silu", "relu", "leakyrelu", "gelu", "tanh"]

WITHOUT_KNOTS: tuple[BasisName, ...] = ("fourier", "chebyshev", "morlet")


def least_grid_size(basis: BasisName) -> int:
    """Return the smallest G: one wavelet is a function already, knots and waves want two."""
    return 1 if basis == "morlet" else 2
