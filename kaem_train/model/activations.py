"""Base activations b of the term w_b b(z) of a univariate function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kaem_train.config import BaseActivation

ACTIVATIONS: dict[BaseActivation, Callable[[Tensor], Tensor]] = {
    "none": torch.zeros_like,
    "silu": functional.silu,
    "relu": torch.relu,
    "leakyrelu": functional.leaky_relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}
"""By the name of the setting; `leakyrelu` has slope 0.01 below 0, `gelu` is z Phi(z)."""


STEEPEST: dict[BaseActivation, float] = {
    "none": 0.0,
    "silu": 1.1,
    "relu": 1.0,
    "leakyrelu": 1.0,
    "gelu": 1.13,
    "tanh": 1.0,
}
"""Bounds of |b'|."""

_KINKS: dict[BaseActivation, tuple[float, ...]] = {
    "none": (),
    "silu": (),
    "relu": (0.0,),
    "leakyrelu": (0.0,),
    "gelu": (),
    "tanh": (),
}


def activation_kinks(base: BaseActivation) -> tuple[float, ...]:
    """Return the points where b has no derivative; quadrature cells must end there."""
    return _KINKS[base]
