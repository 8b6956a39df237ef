"""What a family of functions B_g answers about itself.

A basis is a value without state. Its tensors are registered on the module that uses it, so that their names in
a checkpoint are short and do not change when code moves, and are handed to every method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from kaem_train.model.bases.grid import gaps_beyond, mean_spacing, scale, uniform_knots

Tensors = Mapping[str, Tensor]
"""Trained and fixed tensors of a basis, by name."""


@dataclass(frozen=True, slots=True)
class Basis(ABC):
    """A family of functions B_g, by default smooth everywhere and with nothing to train beside their coefficients.

    Tensors with one entry per univariate function have leading axes F, as (Q, P) of a bank or (O, I) of a layer.
    Knots have leading axes K: none in a bank, whose functions share them, and (I,) in a layer.

    Attributes:
        grid_size: G; what it counts depends on the family.
        low: Lower end of the range that the functions are made for: the first knot at the start, where there are knots.
        high: Upper end of that range.
    """

    grid_size: int
    low: float
    high: float

    tensor_names: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that `parameters` and `buffers` give."""

    knots_name: ClassVar[str | None] = None
    """The one among them that holds movable knots, shape (*K, G + 1); None where there are none."""

    is_shared: ClassVar[bool] = True
    """Whether all univariate functions have the same B_g, so that sums of them are matrix products."""

    is_scaled: ClassVar[bool] = True
    """Whether a factor w_s stands before the sum."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of coefficients of one univariate function."""

    @property
    def kinks(self) -> tuple[float, ...]:
        """Points where a function has no derivative, ascending."""
        return ()

    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the start values of what is trained beside the coefficients; `functions` is F."""
        return {}

    def buffers(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the start values of what is not trained: the knots, where there are some; `rows` is K."""
        if self.knots_name is None:
            return {}
        return {self.knots_name: uniform_knots(self.low, self.high, self.grid_size).repeat(*rows, 1)}

    def first_coefficients(self, functions: tuple[int, int]) -> Tensor:
        """Draw the coefficients of a layer, shape (O, I, size): zeros with knots, to which the layer fits its own."""
        return torch.zeros(*functions, self.size)

    @abstractmethod
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        """Evaluate all functions: shape S -> (S, size).

        The last axes of S are broadcast against K or, where the basis is not shared, against F.
        """

    @abstractmethod
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
        """Return where quadrature cells must end, ascending: knots, which a bank's functions share, and kinks."""
        return self.kinks if self.knots_name is None else tuple(tensors[self.knots_name].tolist())

    @abstractmethod
    def cell(self, tensors: Tensors) -> float:
        """Return the widest cell in which 8 Gauss-Legendre nodes integrate exp(f) about exactly."""

    def equal_step(self, tensors: Tensors) -> float | None:
        """Return the widest step at which a rule of equal steps integrates exp(f); None where no such rule will do."""
        return None


@dataclass(frozen=True, slots=True)
class BumpBasis(Basis):
    """G + 1 bumps, one at every knot, of one width w = h tau, h the mean knot spacing; trains `log_tau` (), start 0."""

    tensor_names: ClassVar[tuple[str, ...]] = ("log_tau", "centers")
    knots_name: ClassVar[str | None] = "centers"

    @property
    @override
    def size(self) -> int:
        return self.grid_size + 1

    @override
    def parameters(self, functions: tuple[int, ...]) -> dict[str, Tensor]:
        return {"log_tau": torch.zeros(())}

    @abstractmethod
    def bump(self, scaled: Tensor) -> Tensor:
        """Evaluate the bump at distances from its centre in units of the width: it falls to either side, above 0."""

    @override
    def features(self, z: Tensor, tensors: Tensors) -> Tensor:
        return self.bump((z.unsqueeze(-1) - tensors["centers"]) / self.width(tensors))

    @override
    def extremes_beyond(self, ends: Tensor, tensors: Tensors) -> tuple[Tensor | None, Tensor]:
        """Return None and what a bump is at the point next to its centre."""
        return None, self.bump(gaps_beyond(tensors["centers"], ends) / self.width(tensors))

    def width(self, tensors: Tensors) -> Tensor:
        """Return w, shape () or (*K, 1)."""
        return mean_spacing(tensors["centers"]) * scale(tensors["log_tau"])


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
