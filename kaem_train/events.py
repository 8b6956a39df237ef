"""What a running trainer tells: plain events, handed to any number of listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Means over the updates since the last report.

    Attributes:
        step: Updates done.
        updates: Updates of the whole run.
        images_per_second: Training speed.
        metrics: Loss, its parts in nats per image, and diagnostics.
    """

    step: int
    updates: int
    images_per_second: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Unselected images drawn from the model: shape (N, C, H, W), in [0, 1]."""

    step: int
    images: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


Event = Progress | Samples | Saved
Listener = Callable[[Event], None]
