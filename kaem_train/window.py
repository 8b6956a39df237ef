"""Means of what updates measured, between two reports."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Window:
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
