"""Checks of single values that several sections make.

Names of what univariate functions are made of, shared by prior and generator.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from kaem.errors import ConfigError

MOST_WIDTH = 65_536
"""Of one layer of a network."""

_LARGEST = 1e12

MOST_STEPS = 1_000_000
"""Of a chain or a fit inside one update or run."""


def require_at_least(name: str, value: int, least: int) -> None:
    """Raise `ConfigError` unless `value` >= `least`."""
    if value < least:
        raise ConfigError(f"{name} = {value} is below {least}")


def require_at_most(name: str, value: float, most: float) -> None:
    """Raise `ConfigError` if `value` > `most`: a limit far beyond use, so that a slip is not met by the memory."""
    if value > most:
        raise ConfigError(f"{name} = {value} is above {most}", hint="is it a slip of the keyboard?")


def require_positive(name: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is a positive number whose square float32 can hold."""
    if not (value > 0.0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value} is not a positive number")
    require_at_most(name, value, _LARGEST)


def require_range(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise `ConfigError` unless both are finite and `low` < `high`."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{low_name} = {low} is not below {high_name} = {high}")


def require_decay(name: str, value: float) -> None:
    """Raise `ConfigError` unless 0 < `value` <= 1."""
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"{name} = {value} is outside (0, 1]")


def require_device(name: str, value: str) -> None:
    """Raise `ConfigError` unless `value` names a device: auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value, re.ASCII):
        raise ConfigError(
            f"{name} = {value!r} is no device", hint="write auto, cpu, cuda, or a GPU by its number, as cuda:1"
        )


BasisName = Literal["rbf", "rswaf", "bspline", "fourier", "chebyshev", "legendre", "morlet"]
BaseActivation = Literal["none", "silu", "relu", "leakyrelu", "gelu", "tanh"]

_LEAST_GRID_SIZES: dict[BasisName, int] = {
    "rbf": 2,
    "rswaf": 2,
    "bspline": 2,
    "fourier": 2,
    "chebyshev": 2,
    "legendre": 2,
    "morlet": 1,
}
WITHOUT_KNOTS: tuple[BasisName, ...] = ("fourier", "chebyshev", "legendre", "morlet")


def least_grid_size(basis: BasisName) -> int:
    """Return the smallest G: one wavelet is a function already, knots and waves want two."""
    return _LEAST_GRID_SIZES[basis]
