"""Distances at n -> infinity (Chong and Forsyth 2020), as the paper reports them: FID_inf, KID_inf.

The bias of a distance that is estimated from n images falls as 1/n, so

    d(n) = d_inf + slope / n

is fitted by ordinary least squares to several n, each with its own n of the generated images, drawn without
replacement, against the whole real set. The real set is not extrapolated: its size belongs beside the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kaem.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """The fitted line.

    Attributes:
        sizes: n of every point, ascending.
        distances: d(n).
        intercept: d_inf.
        standard_error: Standard error of d_inf, from the scatter about the line.
        r_squared: Share of the variance of d(n) that the line explains; near 0, and without meaning, for the
            kernel distance, which has no bias.
    """

    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    intercept: float
    standard_error: float
    r_squared: float


def extrapolated(sizes: Sequence[int], distances: Sequence[float]) -> Extrapolation:
    """Fit d(n) = d_inf + slope / n.

    Raises:
        RequestError: Fewer than three different sizes, with which a line says nothing about its own error.
    """
    from scipy.stats import linregress  # slow to load, and options are checked with this module

    require_sizes(sizes)
    fit = linregress(1.0 / np.asarray(sizes, np.float64), np.asarray(distances, np.float64))
    return Extrapolation(
        sizes=tuple(sizes),
        distances=tuple(distances),
        intercept=float(fit.intercept),
        standard_error=float(fit.intercept_stderr),
        r_squared=float(fit.rvalue) ** 2,
    )


def require_sizes(sizes: Sequence[int]) -> None:
    """Refuse sizes that no line can be fitted to.

    Raises:
        RequestError: Fewer than three different sizes, or one below 2.
    """
    if len(set(sizes)) < 3 or min(sizes) < 2:
        raise RequestError(
            f"sizes {', '.join(map(str, sizes))} do not determine a line in 1/n",
            hint="give at least three different numbers of images, each at least 2",
        )


def choose_sizes(num: int) -> tuple[int, ...]:
    """Return num/10, 2 num/10, ..., num: the paper's 2000, 4000, ..., 20000 for 20,000 images."""
    return tuple(sorted({max(2, num * part // 10) for part in range(1, 11)}))


def subset(num: int, size: int, seed: int) -> np.ndarray:
    """Return `size` different indices below `num`; each size has its own draw."""
    return np.random.default_rng((seed, size)).permutation(num)[:size]
