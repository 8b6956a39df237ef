"""Where the numbers of latents and images lie: one form inside, (N, Q) to (N, C, H, W), whatever a decoder takes."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from kaem.errors import ArtifactError
from kaem_train.fitting.decoder_graph import EXPORT_AGAIN, read_declared_shape

_CHANNELS = (1, 3)
_MOST_CHANNELS = 4
"""What begins with more and ends in one or three has its channels last."""


def latent_sides(source: onnx.ValueInfoProto, latent_shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Return the shape in which a decoder takes one latent.

    Latents are filled in in C order where that is not the shape they came in: (Q,), (Q, 1, 1), or the decoder's own.

    Args:
        source: The decoder's input as declared; free sizes fit anything.
        latent_shape: Shape of one latent as it came.
        path: The decoder, for messages.

    Raises:
        ArtifactError: It takes another number of numbers, or a fixed number of rows.
    """
    declared = read_declared_shape(source)
    if declared is None:
        return latent_shape
    size = math.prod(latent_shape)
    own = tuple(side for side in declared[1:] if side is not None)
    possible = list(dict.fromkeys([latent_shape, (size,), (size, 1, 1)]))
    if math.prod(own) == size:
        possible.append(own)
    fits = [sides for sides in possible if _fits(declared[1:], sides)]
    if not declared or not fits:
        wanted = " or ".join(_written((None, *sides)) for sides in possible)
        raise ArtifactError(
            f"the decoder {path} takes {_written(declared)}, the latents need {wanted}",
            hint="give the latents that this decoder decodes, one row per image, in the shape that its encoder gives",
        )
    if declared[0] is not None:
        raise ArtifactError(f"the decoder {path} has the fixed batch size {declared[0]}", hint=EXPORT_AGAIN)
    return fits[0]


def declare(source: onnx.ValueInfoProto, sides: tuple[int, ...]) -> None:
    """Write the shape (N, *sides) on an input, in place: exporters leave sizes free that are not."""
    shape = source.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add(dim_param="N")
    for side in sides:
        shape.dim.add(dim_value=side)


def is_channels_last(image_shape: tuple[int, ...]) -> bool:
    """Whether a decoder's images are (H, W, C): grey or RGB at their end, and no channels at their beginning."""
    first, _, last = image_shape
    return first > _MOST_CHANNELS and last in _CHANNELS


def _fits(declared: tuple[int | None, ...], sides: tuple[int, ...]) -> bool:
    return len(declared) == len(sides) and all(size in (None, side) for size, side in zip(declared, sides, strict=True))


def _written(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"
