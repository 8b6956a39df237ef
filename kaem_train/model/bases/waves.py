"""Sine and cosine, in an exported graph by arithmetic alone.

ONNX Runtime evaluates Cos by vectors of numbers and the rest of an array one by one, by another formula. A row's
image would then depend on its place in the batch by a rounding. Products and sums round the same everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TURN_HIGH = 6.28125
_TERMS = 11
"""Of the sine's power series: on [-pi/2, pi/2] what is left out is below 2e-18."""


def cosine(angle: Tensor) -> Tensor:
    """Return cos(angle), elementwise."""
    return cosine_by_arithmetic(angle) if torch.compiler.is_exporting() else torch.cos(angle)


def sine(angle: Tensor) -> Tensor:
    """Return sin(angle), elementwise."""
    return cosine_by_arithmetic(angle - 0.5 * math.pi) if torch.compiler.is_exporting() else torch.sin(angle)


def cosine_by_arithmetic(angle: Tensor) -> Tensor:
    """Return cos(r) = sin(pi/2 - |r|), r = angle - 2 pi round(angle / (2 pi)), by the power series of the sine."""
    turns = (angle * (0.5 / math.pi)).round()
    # 2 pi in two parts: the product with the first is exact in float32, so nothing is lost in the difference.
    rest = (angle - turns * _TURN_HIGH) - turns * (2.0 * math.pi - _TURN_HIGH)
    x = 0.5 * math.pi - rest.abs()
    square = x * x
    series = torch.full_like(x, (-1.0) ** (_TERMS - 1) / math.factorial(2 * _TERMS - 1))
    for term in reversed(range(_TERMS - 1)):
        series = series * square + (-1.0) ** term / math.factorial(2 * term + 1)
    return series * x
