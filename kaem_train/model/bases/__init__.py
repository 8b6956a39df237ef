"""The families of functions B_g whose weighted sums are the univariate functions of a KAN, one file per family.

Everything that depends on the family is here. Energies, layers, quadrature and export ask a `Basis`.
"""

from __future__ import annotations

from typing import assert_never

from kaem_train.config import BasisName
from kaem_train.model.bases.basis import Basis, ClosedExpectation, hold_tensors, knots_of, tensors_of
from kaem_train.model.bases.bspline import BSplineBasis
from kaem_train.model.bases.chebyshev import ChebyshevBasis
from kaem_train.model.bases.fourier import FourierBasis
from kaem_train.model.bases.grid import mixed_knots
from kaem_train.model.bases.legendre import LegendreBasis
from kaem_train.model.bases.morlet import MorletBasis
from kaem_train.model.bases.rbf import RbfBasis
from kaem_train.model.bases.rswaf import RswafBasis

__all__ = ["Basis", "ClosedExpectation", "build_basis", "hold_tensors", "knots_of", "mixed_knots", "tensors_of"]


def build_basis(name: BasisName, grid_size: int, *, grid: tuple[float, float], domain: tuple[float, float]) -> Basis:
    """Return a family of functions of one size.

    Args:
        name: Name of the family.
        grid_size: G; what it counts depends on the family, see `PriorConfig.grid_size`.
        grid: First and last knot; where wavelets start.
        domain: Where the functions are used; the period of the slowest wave.
    """
    match name:
        case "rbf":
            return RbfBasis(grid_size, *grid)
        case "rswaf":
            return RswafBasis(grid_size, *grid)
        case "bspline":
            return BSplineBasis(grid_size, *grid)
        case "fourier":
            return FourierBasis(grid_size, *domain)
        case "chebyshev":
            return ChebyshevBasis(grid_size, *domain)
        case "legendre":
            return LegendreBasis(grid_size, *domain)
        case "morlet":
            return MorletBasis(grid_size, *grid)
        case _:
            assert_never(name)
