"""Reference densities pi0, in log and in closed form.

The logarithm is never taken of a computed density plus an epsilon: that damps the score in the tails.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reference = Literal["gaussian", "uniform", "none"]


def log_reference(reference: Reference, z: Tensor) -> Tensor:
    """Return log pi0(z) inside the prior's domain, elementwise.

    `gaussian` is N(0, 1); `uniform` on [0, 1] and `none` on the grid range are 0. The domain itself is
    the prior's business: outside it every density is 0.
    """
    if reference == "gaussian":
        return -0.5 * z * z - 0.5 * math.log(2.0 * math.pi)
    return torch.zeros_like(z)
