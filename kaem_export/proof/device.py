"""What a GPU really computes of an artifact: its latents, images and rows, measured on the device that will run them.

The figures are those of the certificate that a device can change. A GPU adds in another order than a CPU and may choose
other kernels for other sizes of a batch, so bounds allow for the rounding of float32 with TF32 off; TF32 breaks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kaem.artifact import Figure, ImageType, Manifest
from kaem.engines.cpu import LocalSampler
from kaem.engines.cuda import CudaEngine
from kaem.engines.tensorrt import TensorRtEngine
from kaem.errors import ConfigError
from kaem.sampler import Images, Uniforms
from kaem_export.proof.rows import probe_uniforms

LATENT_BOUND = 4e-6
"""Largest difference of a latent between device and CPU, as a share of its size, or of 1 where that is more."""

IMAGE_BOUNDS = {"float32": 2e-5, "float16": 2e-2}
"""Largest difference of an intensity between device and torch, by the precision of the generator."""

_ROUNDING: dict[ImageType, float] = {"float32": 0.0, "uint8": 0.5 / 255}
_MOST_CUDA_ROWS = 1024
_ROWS = 256


class CheckedDevice(Protocol):
    """A device with an artifact on it."""

    @property
    def manifest(self) -> Manifest: ...  # noqa: D102
    def decode_with_latents(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]: ...  # noqa: D102


class OnDevice:
    """An engine, asked for any number of rows by batches of certain sizes.

    Args:
        engine: The device with the artifact.
        most_rows: Rows of its largest batch.
    """

    def __init__(self, engine: CheckedDevice, most_rows: int) -> None:
        self.manifest = engine.manifest
        self.most_rows = most_rows
        self._engine = engine

    def decode(self, uniform: Uniforms, rows: int | None = None) -> Images:
        """Return the images of some rows, shape (N, D) -> (N, C, H, W), in batches of `rows` or of what fits."""
        return np.concatenate([images for images, _ in self._batches(uniform, rows)])

    def latents(self, uniform: Uniforms) -> NDArray[np.float32]:
        """Return the latent vectors of some rows: shape (N, D) -> (N, Q)."""
        return np.concatenate([latents for _, latents in self._batches(uniform, None)])

    def _batches(self, uniform: Uniforms, rows: int | None) -> Iterator[tuple[Images, NDArray[np.float32]]]:
        for first in range(0, len(uniform), rows or self.most_rows):
            piece = uniform[first : first + (rows or self.most_rows)]
            whole = rows or min(1 << (len(piece) - 1).bit_length(), self.most_rows)  # few sizes, for each is recorded
            filled = np.zeros((whole, uniform.shape[1]), np.float32)
            filled[: len(piece)] = piece
            images, latents = self._engine.decode_with_latents(filled)
            yield images[: len(piece)], latents[: len(piece)]


@contextmanager
def open_on_device(artifact: Path, device: str) -> Iterator[OnDevice]:
    """Open an artifact on a GPU.

    Args:
        artifact: An exported ONNX file; for TensorRT its engine lies beside it.
        device: `cuda:N` or `tensorrt:N`, the number being 0 where it is left out.

    Raises:
        ConfigError: The device has another name.
        BackendError: There is no such device, or it cannot run the artifact.
        ArtifactError: A file is missing, damaged, or belongs to something else.
    """
    found = re.fullmatch(r"(cuda|tensorrt)(?::([0-9]{1,3}))?", device, re.ASCII)
    if found is None:
        raise ConfigError(f"device is {device!r}", hint="write cpu, cuda:0 or tensorrt:0")
    number = int(found[2] or 0)
    match found[1]:
        case "cuda":
            with CudaEngine(artifact, device_id=number) as engine:
                yield OnDevice(engine, max(engine.manifest.batch_sizes, default=_MOST_CUDA_ROWS))
        case "tensorrt":
            with TensorRtEngine(artifact, device_id=number) as engine:
                yield OnDevice(engine, engine.most_rows)
        case unknown:
            raise AssertionError(f"no engine is of the kind {unknown!r}")


def device_figures(
    there: OnDevice, here: LocalSampler, generator: torch.nn.Module | None, device: str
) -> tuple[Figure, ...]:
    """Measure what a device changes.

    Args:
        there: The artifact on the device.
        here: The same artifact on the CPU.
        generator: Module that maps latents to images; None where images are not a function of latents alone.
        device: Name of the device.
    """
    manifest = here.manifest
    tails = probe_uniforms(manifest.noise_dim, 4 * _ROWS)
    expected, latents = here.latents(tails), there.latents(tails)
    figures = [
        Figure(
            name="device_latents",
            value=float((np.abs(latents - expected) / np.maximum(1.0, np.abs(expected))).max()),
            bound=LATENT_BOUND,
            meaning=f"max difference of a latent between {device} and the CPU that the certificate was measured on, "
            "tails included, relative to its size",
        )
    ]
    image_bound = IMAGE_BOUNDS[_precision(manifest)] + _ROUNDING[manifest.image_type]
    if generator is not None:
        with torch.no_grad():
            decoded = generator(torch.from_numpy(latents[:_ROWS])).numpy()
        images = _intensities(there.decode(tails[:_ROWS]))
        figures.append(
            Figure(
                name="device_images",
                value=float(np.abs(images - decoded).max()),
                bound=image_bound,
                meaning=f"max |{device} - torch| over images of the same latents, intensities in [0, 1]",
            )
        )
    return (*figures, _row_figure(there, image_bound, device))


def _row_figure(there: OnDevice, image_bound: float, device: str) -> Figure:
    """Compare samples alone with the same samples at other places of batches of every size up to the largest."""
    sizes = sorted({min(1 << power, there.most_rows) for power in range(there.most_rows.bit_length() + 1)})
    uniform = probe_uniforms(there.manifest.noise_dim, 8)[:7]  # no multiple of two: every place is met
    alone = _intensities(there.decode(uniform, 1))
    worst = 0.0
    for size in sizes:
        order = np.arange(size * -(-7 // size)) % 7
        images = _intensities(there.decode(np.ascontiguousarray(uniform[order]), size))
        worst = max(worst, float(np.abs(images - alone[order]).max()))
    return Figure(
        name="device_rows",
        value=worst,
        bound=image_bound + _ROUNDING[there.manifest.image_type],  # a whole step of 8 bits
        meaning=f"max difference of one sample between places of batches of 1 to {there.most_rows} rows on {device}; "
        "0 means equal bits",
    )


def _precision(manifest: Manifest) -> str:
    precision = manifest.compilation.get("precision", "float32")
    if precision not in IMAGE_BOUNDS:
        raise ConfigError(
            f"the artifact's precision is {precision}, which is for processors",
            hint="verify it without --device, or export it without --precision int8",
        )
    return str(precision)


def _intensities(images: Images) -> NDArray[np.float32]:
    """Return images in [0, 1]."""
    values: NDArray[np.float32] = images.astype(np.float32)
    return values / np.float32(255.0) if images.dtype == np.uint8 else values
