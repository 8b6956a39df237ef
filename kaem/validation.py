"""What may be asked of a sampler: ranges of seed, index and count, shapes of uniforms, sizes that fit in memory."""

from __future__ import annotations

import operator
import os

import numpy as np
from numpy.typing import NDArray

from kaem.errors import RequestError

NUM_INDICES = 1 << 64
"""Seeds and sample indices are unsigned 64-bit integers."""


_LEAST_NEGATIVE = np.float32(-(2.0**-149))


def check_range(num: int, seed: int, start: int) -> tuple[int, int, int]:
    """Check that samples `start .. start + num - 1` of `seed` exist.

    Returns:
        `num`, `seed` and `start` as plain integers: arithmetic on NumPy's own would wrap around at their width.

    Raises:
        RequestError: `num` is below 1, `seed` or `start` is not in [0, 2^64), or the range passes 2^64.
    """
    num, seed, start = whole("num", num), whole("seed", seed), whole("start", start)
    if num < 1:
        raise RequestError(f"num is {num}; ask for at least 1 sample")
    for name, value in (("seed", seed), ("start", start)):
        if not 0 <= value < NUM_INDICES:
            raise RequestError(f"{name} is {value}, outside 0 .. 2^64 - 1")
    if start + num > NUM_INDICES:
        raise RequestError(f"start {start} + num {num} passes 2^64, the last sample index")
    return num, seed, start


def check_version(version: int) -> int:
    """Check that a model can have a version; return it as a plain integer.

    Args:
        version: 1 or more, or 0 for the newest one.

    Raises:
        RequestError: It cannot.
    """
    version = whole("version", version)
    if not 0 <= version < NUM_INDICES:
        raise RequestError(f"version is {version}", hint="give 1 or more, or 0 for the newest one")
    return version


def check_memory(num_bytes: int) -> None:
    """Refuse an allocation larger than this machine's physical memory, before it is made.

    Raises:
        RequestError: The size does not fit.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > total:
        raise RequestError(
            f"these samples take {num_bytes / 2**30:.1f} GiB; this machine has {total / 2**30:.1f} GiB",
            hint="ask for fewer, or stream them",
        )


def check_uniforms(uniform: NDArray[np.float32], noise_dim: int) -> NDArray[np.float32]:
    """Check rows of uniforms for a model and return them contiguous, as float32.

    Args:
        uniform: Shape (N, D), N at least 1, each value in [-1/2, 1): signed (see `kaem.noise`) or plain.
        noise_dim: D, what the model expects.

    Raises:
        RequestError: Wrong shape, an element type other than a float, a value that is not finite or not in range.
    """
    rows = np.asarray(uniform)
    if rows.ndim != 2 or rows.shape[1] != noise_dim or rows.shape[0] < 1:
        raise RequestError(f"uniforms have shape {rows.shape}; this model takes (N, {noise_dim}) with N >= 1")
    if rows.dtype.kind != "f":
        raise RequestError(f"uniforms are {rows.dtype}; give float32")
    if not (np.min(rows) >= -0.5 and np.max(rows) < 1.0):  # also false for NaN
        bad = rows[~((rows >= -0.5) & (rows < 1.0))][0]
        raise RequestError(f"a uniform is {bad}; values must be in [-0.5, 0.5] (signed) or [0, 1)")
    # Rounding float64 to float32 may reach 1.0, which names no quantile, and may turn a tiny negative number (the
    # top of the distribution) into zero (its bottom).
    single = np.minimum(np.ascontiguousarray(rows, np.float32), np.float32(1 - 2**-24))
    return np.where((rows < 0) & (single == 0), _LEAST_NEGATIVE, single) if rows.dtype != np.float32 else single


def whole(name: str, value: int) -> int:
    """Return a whole number as a plain integer.

    Raises:
        RequestError: `value` is not a whole number.
    """
    if isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}; give a whole number")
    try:
        return operator.index(value)
    except TypeError:
        raise RequestError(f"{name} is {value!r}; give a whole number") from None
