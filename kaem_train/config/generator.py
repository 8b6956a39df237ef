"""The generator: its kind and widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.config.checks import (
    MOST_WIDTH,
    BaseActivation,
    BasisName,
    least_grid_size,
    require_at_least,
    require_at_most,
    require_decay,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """The generator G that maps the Q latents to an image with pixels in [0, 1].

    Attributes:
        kind: `cnn` (transposed convolutions), `kan` (Kolmogorov-Arnold layers, eq. 30-32), `module` (a class of your
            own) or `onnx` (a finished decoder, which `kaem fit-prior` puts into a checkpoint; not trained).
        module: Module: `package.module:ClassName`, a `torch.nn.Module` constructed as ClassName(num_latents,
            image_shape) that maps (N, Q) to images (N, C, H, W) in [0, 1], every row by itself.
        dense: CNN: width of a fully connected layer before the first convolution; 0 leaves it out.
        channels: CNN: channels after each layer but the last; without `kernels` one per doubling of the image size.
        kernels: CNN: kernel of each layer, the last included. The first is the side of the first feature map; after
            it 4 doubles the side and 3 keeps it. Empty: 4 or 7 by the image size, then as many 4s as fill it.
        latent_concat: CNN: whether the latent vector, repeated at every pixel, joins the input of every convolution
            after the first.
        hidden: KAN: widths of the hidden layers; empty gives the single layer of eq. 30.
        basis: KAN: family of the functions B_g, as `prior.basis`.
        base: KAN: base activation b of the term w_b b(x).
        layer_norm: KAN: whether the outputs of every hidden layer are normalised (LayerNorm) before the next one.
        grid_size: KAN: G, which counts what `prior.grid_size` counts, for each layer.
        refit_interval: KAN: updates between the first two grid refits; 0 keeps the first refit only.
        refit_decay: KAN: the interval f grows to floor(f (2 - decay)^i) after the refit at update i.
    """

    kind: Literal["cnn", "kan", "module", "onnx"] = "cnn"
    module: str = ""
    dense: int = 0
    channels: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    latent_concat: bool = False
    hidden: tuple[int, ...] = ()
    basis: BasisName = "rbf"
    base: BaseActivation = "silu"
    layer_norm: bool = False
    grid_size: int = 20
    refit_interval: int = 100
    refit_decay: float = 0.999

    def __post_init__(self) -> None:
        require_at_least("dense", self.dense, 0)
        require_at_least("grid_size", self.grid_size, least_grid_size(self.basis))
        require_at_most("dense", self.dense, MOST_WIDTH)
        require_at_most("grid_size", self.grid_size, 4096)
        require_at_least("refit_interval", self.refit_interval, 0)
        for name, widths in (("channels", self.channels), ("hidden", self.hidden)):
            if any(width < 1 for width in widths):
                raise ConfigError(f"{name} = {list(widths)} holds a width below 1")
            if widths and max(widths) > MOST_WIDTH:
                raise ConfigError(f"{name} = {list(widths)} holds a width above {MOST_WIDTH}")
        if any(kernel not in {3, 4} for kernel in self.kernels[1:]) or (self.kernels and self.kernels[0] < 1):
            raise ConfigError(
                f"kernels = {list(self.kernels)} holds another than 3 and 4 after the first, or a first below 1",
                hint="4 doubles the side of a feature map, 3 keeps it",
            )
        if (self.kind == "module") != bool(self.module):
            raise ConfigError(
                f"generator.kind = {self.kind!r} does not go with module = {self.module!r}",
                hint="set both: generator.kind=module and generator.module=package.module:ClassName",
            )
        if self.latent_concat and self.kind != "cnn":
            raise ConfigError(
                f"latent_concat = True does not suit kind = {self.kind!r}, which has no feature maps",
                hint="set generator.latent_concat=false or generator.kind=cnn",
            )
        if self.layer_norm and self.kind != "kan":
            raise ConfigError(
                f"layer_norm = True does not suit kind = {self.kind!r}, which has no Kolmogorov-Arnold layers",
                hint="set generator.layer_norm=false or generator.kind=kan",
            )
        require_decay("refit_decay", self.refit_decay)


def cnn_kernels(image_shape: tuple[int, ...], config: GeneratorConfig) -> tuple[int, ...]:
    """Return the kernel of every layer of the CNN, as configured or as they follow from the image size.

    Raises:
        ConfigError: They do not lead to the image, or their number is not that of the channels and the image's.
    """
    _, height, width = image_shape
    if config.kernels:
        side = config.kernels[0] * 2 ** config.kernels[1:].count(4)
        if (height, width) != (side, side):
            raise ConfigError(
                f"generator.kernels = {list(config.kernels)} makes images of {side} x {side}, not {height} x {width}",
                hint="the first kernel is the side of the first feature map; after it 4 doubles, 3 keeps",
            )
        kernels = config.kernels
    else:
        first, doublings = first_size_and_doublings(image_shape)
        kernels = (first, *(4,) * doublings)
    if len(config.channels) != len(kernels) - 1:
        needed = f"images of {list(image_shape)} need" if not config.kernels else f"{len(kernels)} kernels need"
        raise ConfigError(
            f"generator.channels = {list(config.channels)} has {len(config.channels)} widths, {needed} "
            f"{len(kernels) - 1}",
            hint="give one width per layer but the last: without generator.kernels, per doubling of the image size",
        )
    return kernels


def first_size_and_doublings(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the side of the CNN's first feature map and how often it doubles: 28 -> (7, 2), 32 -> (4, 3).

    Raises:
        ConfigError: The image is not square, or its side is not 4 or 7 times a power of two.
    """
    _, height, width = image_shape
    for first in (4, 7):
        doublings = round(math.log2(height / first))
        if height == width and doublings >= 1 and first * 2**doublings == height:
            return first, doublings
    raise ConfigError(
        f"image_shape = {list(image_shape)} does not suit the CNN generator",
        hint="its sides must be equal and 8, 14, 16, 28, 32, 56, 64, ...; or set generator.kind=kan",
    )
