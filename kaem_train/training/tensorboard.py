"""TensorBoard: every metric as a scalar, samples as one grid."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Self

from torch import Tensor

from kaem_train.training.events import Event, Progress, SamplesDrawn

_COLUMNS = 8


class TensorBoardLog:
    """A listener that writes event files into a folder; use it as a context manager.

    Args:
        folder: Folder of this run's event files.
        step: Updates already done; what an earlier run logged after it is hidden.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        with warnings.catch_warnings():
            # Deprecations inside TensorBoard's own imports are not this program's user's concern.
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if isinstance(event, Progress):
            for name, value in event.metrics.items():
                self._writer.add_scalar(f"train/{name}", value, event.step)
            self._writer.add_scalar("train/images_per_second", event.images_per_second, event.step)
        elif isinstance(event, SamplesDrawn):
            self._writer.add_image("samples", lay_out_images(event.images), event.step)


def lay_out_images(images: Tensor) -> Tensor:
    """Lay images out row by row: shape (N, C, H, W), N a multiple of 8 -> (C, N / 8 H, 8 W)."""
    rows = images.reshape(-1, _COLUMNS, *images.shape[1:])  # (R, 8, C, H, W)
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
