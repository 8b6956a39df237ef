"""What a running trainer tells: plain events, handed to any number of listeners.

Means of what updates measured, between two reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kaem_train.fitting.refit import Refit


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
class SamplesDrawn:
    """Unselected images drawn from the model: shape (N, C, H, W), in [0, 1]."""

    step: int
    images: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Refitted:
    """The final refit of the prior was tried, or there is a reason why not.

    Attributes:
        step: Updates done.
        refit: What was tried, and the model to use where it is better.
    """

    step: int
    refit: Refit


@dataclass(frozen=True, slots=True, kw_only=True)
class Widened:
    """The prior's domain grew, for too much lay outside.

    Attributes:
        step: Updates done.
        outside: Share of the encoded latents that lay outside.
        before: Ends of the domain before it grew.
        after: Ends of the domain now.
    """

    step: int
    outside: float
    before: tuple[float, float]
    after: tuple[float, float]


Event = Progress | SamplesDrawn | Saved | Refitted | Widened
Listener = Callable[[Event], None]


class RunningMeans:
    """Means of metrics over the updates that had them, and the speed, since the last report."""

    def __init__(self) -> None:
        self._reset()

    def add(self, metrics: dict[str, Tensor], num_images: int) -> None:
        """Take in one update: scalars by name, and how many images it saw."""
        # As tensors: on another device every float() would wait for it.
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value.detach())
        self._images += num_images

    def take(self) -> tuple[dict[str, float], float]:
        """Return the means and the images per second since the last call, and begin anew."""
        means = {name: float(torch.stack(values).double().mean()) for name, values in self._values.items()}
        speed = self._images / max(time.perf_counter() - self._start, 1e-9)
        self._reset()
        return means, speed

    def _reset(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._images = 0
        self._start = time.perf_counter()
