"""What a family of functions B_g answers about itself.

A basis is a value without state. Its tensors are registered on the module that uses it, so that their names in
a checkpoint are short and do not change when code moves, and are handed to every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
"""Trained and fixed tensors of a basis, by name."""


class Basis(Protocol):
    """A family of `size` functions B_g.

    Tensors with one entry per univariate function have leading axes F, as (Q, P) of a bank or (O, I) of a layer.
    Knots have leading axes K: none in a bank, whose functions share them, and (I,) in a layer.
    """

    @property
    def size(self) -> int:
        """Number of coefficients of one univariate function."""

    @property
    def low(self) -> float:
        """Lower end of the range that the functions are made for."""

    @property
    def high(self) -> float:
        """Upper end of that range."""

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors that `parameters` and `buffers` give."""

    @property
    def knots_name(self) -> str | None:
        """The one among them that holds movable knots, shape (*K, G + 1); None where there are none."""

    @property
    def is_shared(self) -> bool:
        """Whether all univariate functions have the same B_g, so that sums of them are matrix products."""

    @property
    def is_scaled(self) -> bool:
        """Whether a factor w_s stands before the sum."""

    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the start values of what is trained beside the coefficients; `functions` is F."""

    def buffers(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the start values of what is not trained; `rows` is K."""

    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw the coefficients of a layer, shape (O, I, size); with knots, the layer fits its own."""

    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """Evaluate all functions: shape S -> (S, size).

        The last axes of S are broadcast against K or, where the basis is not shared, against F.
        """

    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """Bound every B_g on (-inf, low] and on [high, inf), for a bank, whose functions share their knots.

        Args:
            ends: low and high, shape (2,).
            tensors: Tensors of the basis.

        Returns:
            The least and the greatest values, or bounds of them, each of shape (size, 2), or (*F, size, 2) where the
            basis is not shared; on the last axis the lower side, then the upper. None for least values that are all 0.
        """

    def breaks(self, tensors: Tensors) -> tuple[float, ...]:
        """Return where quadrature cells must end, ascending: knots, which a bank's functions share."""

    def cell(self, tensors: Tensors) -> float:
        """Return the widest cell in which 8 Gauss-Legendre nodes integrate exp(f) about exactly."""

    def equal_step(self, tensors: Tensors) -> float | None:
        """Return the widest step at which a rule of equal steps integrates exp(f); None where no such rule will do."""


@runtime_checkable
class ClosedExpectation(Protocol):
    """What a basis offers whose expectations under a Gaussian have a closed form."""

    def expected_features(self, mean: Tensor, std: Tensor, tensors: Tensors) -> Tensor:
        """Return E B_g(z) for z ~ N(mean, std^2), shapes as of `Basis.features`."""


def hold_tensors(module: nn.Module, basis: Basis, *, functions: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Register the tensors of a basis on the module that uses it.

    Args:
        module: Gets one parameter or buffer per name.
        basis: The family.
        functions: F.
        rows: K.
    """
    for name, value in basis.parameters(functions).items():
        module.register_parameter(name, nn.Parameter(value))
    for name, value in basis.buffers(rows).items():
        module.register_buffer(name, value)


def tensors_of(module: nn.Module, basis: Basis) -> dict[str, Tensor]:
    """Return the registered tensors of a basis, as they are now."""
    return {name: getattr(module, name) for name in basis.tensor_names}


def knots_of(module: nn.Module, basis: Basis) -> Tensor | None:
    """Return the registered knots of a basis, shape (*K, G + 1), or None where it has none."""
    return None if basis.knots_name is None else getattr(module, basis.knots_name)
