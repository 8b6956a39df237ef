"""Generators: the map from the Q latents to the mean image, pixels in [0, 1] (eqs. 6, 19)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import assert_never, cast

import torch
from torch import Tensor, nn

from kaem_train.config import GeneratorConfig, cnn_kernels
from kaem_train.model.generators.kan import KanLayer
from kaem_train.model.generators.onnx_generator import OnnxGenerator
from kaem_train.model.generators.user_module import build_user_module

_SLOPE = 0.2


class SigmoidGenerator(nn.Module):
    """A network that ends in a sigmoid."""

    @abstractmethod
    def logits(self, latent: Tensor) -> Tensor:
        """Return the image before the sigmoid: shape (N, Q) -> (N, C, H, W)."""

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the mean image in [0, 1]: shape (N, Q) -> (N, C, H, W); `noise` goes before the sigmoid."""
        logits = self.logits(latent)
        return torch.sigmoid(logits if noise is None else logits + noise)


class CnnGenerator(SigmoidGenerator):
    """Transposed convolutions with LeakyReLU(0.2) after every layer but the last, then a sigmoid.

    The latent vector is a 1 x 1 image. An optional dense layer (a 1 x 1 convolution) comes first, then one
    layer to 4 x 4 or 7 x 7, then layers of kernel 4 and stride 2 that each double the size. Where kernels are
    given, the first decides the first size, and one of 3 has stride 1 and keeps the size. Weights start Xavier
    normal. There is no batch normalisation: a row never depends on its batch.

    With `latent_concat` the latent vector, the same at every pixel, is appended to the channels that enter each
    of the layers after the first: their kernels get Q more input channels.

    Args:
        num_latents: Q.
        image_shape: (C, H, W).
        config: Widths.
    """

    def __init__(self, num_latents: int, image_shape: tuple[int, ...], config: GeneratorConfig) -> None:
        super().__init__()
        first, *others = cnn_kernels(image_shape, config)
        widths = (*config.channels, image_shape[0])
        appended = num_latents if config.latent_concat else 0
        self._appends_latent = config.latent_concat
        layers: list[nn.Module] = []
        width = num_latents
        if config.dense:
            layers += [nn.ConvTranspose2d(width, config.dense, 1), nn.LeakyReLU(_SLOPE)]
            width = config.dense
        layers.append(nn.ConvTranspose2d(width, widths[0], first))
        for (narrow, wide), kernel in zip(pairwise(widths), others, strict=True):
            stride = 2 if kernel == 4 else 1
            convolution = nn.ConvTranspose2d(narrow + appended, wide, kernel, stride=stride, padding=1)
            layers += [nn.LeakyReLU(_SLOPE), convolution]
        for layer in layers:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)

    def logits(self, latent: Tensor) -> Tensor:
        """Return the image before the sigmoid: shape (N, Q) -> (N, C, H, W)."""
        image = latent
        for layer in self.layers:
            if isinstance(layer, nn.ConvTranspose2d) and image.dim() == 2:
                if layer.padding == (0, 0):
                    image = _apply_to_point(layer, image)
                    continue
                image = image[:, :, None, None]  # of a first kernel of 1, which left one pixel
            if self._appends_latent and isinstance(layer, nn.ConvTranspose2d):
                image = torch.cat([image, latent[:, :, None, None].expand(-1, -1, *image.shape[2:])], 1)
            image = layer(image)
        return image


def _apply_to_point(layer: nn.ConvTranspose2d, point: Tensor) -> Tensor:
    """Apply a transposed convolution to 1 x 1 images, a linear map: (N, I) -> (N, O, h, w), or (N, O) for 1 x 1.

    As one matrix product that leaves channels last in memory it takes half the time of the convolution, and
    the next one starts in the layout that it is fastest in.
    """
    weight = layer.weight  # (I, O, h, w)
    num_outputs, height, width = weight.shape[1:]
    if height == width == 1:
        return nn.functional.linear(point, weight.flatten(1).T, layer.bias)
    image = (point @ weight.permute(0, 2, 3, 1).flatten(1)).reshape(-1, height, width, num_outputs)
    if layer.bias is not None:
        image = image + layer.bias
    return image.permute(0, 3, 1, 2)


class KanGenerator(SigmoidGenerator):
    """Kolmogorov-Arnold layers x_o = sum_i phi_{o,i}(s_i), then a sigmoid (eqs. 30-32).

    With `layer_norm` the outputs of every layer but the last are normalised, x -> (x - mean) / deviation over the
    layer's outputs, scaled and shifted by trained numbers.

    Args:
        num_latents: Q.
        image_shape: (C, H, W).
        config: Hidden widths and grid size.
    """

    def __init__(self, num_latents: int, image_shape: tuple[int, ...], config: GeneratorConfig) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        widths = (num_latents, *config.hidden, channels * height * width)
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(
            KanLayer(a, b, grid_size=config.grid_size, basis=config.basis, base=config.base) for a, b in pairs
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.hidden if config.layer_norm)

    def logits(self, latent: Tensor) -> Tensor:
        """Return the image before the sigmoid: shape (N, Q) -> (N, C, H, W)."""
        for norm, layer in self._pair_steps():
            latent = layer(norm(latent))
        return latent.reshape(-1, *self.image_shape)

    @torch.no_grad()
    def refit_grids(self, latent: Tensor) -> list[nn.Parameter]:
        """Move the knots of every layer that has any to where its inputs lie, keeping its functions, first layer first.

        Args:
            latent: Generator inputs to follow, shape (N, Q).

        Returns:
            The parameters that changed; an optimiser must forget their moments.
        """
        changed = []
        for norm, layer in self._pair_steps():
            latent = norm(latent)
            if layer.refit(latent):
                changed.append(layer.coefficients)
            latent = layer(latent)
        return changed

    def _pair_steps(self) -> Iterable[tuple[nn.Module, KanLayer]]:
        """Return the layers, each with what its inputs go through before."""
        norms = self.norms if len(self.norms) else [nn.Identity()] * (len(self.layers) - 1)
        return zip((nn.Identity(), *norms), cast(Iterable[KanLayer], self.layers), strict=True)


def build_generator(num_latents: int, image_shape: tuple[int, ...], config: GeneratorConfig) -> nn.Module:
    """Return the configured generator with freshly drawn parameters; an `onnx` one is still without its decoder.

    Raises:
        ConfigError: The user's own module is unusable.
    """
    match config.kind:
        case "cnn":
            return CnnGenerator(num_latents, image_shape, config)
        case "kan":
            return KanGenerator(num_latents, image_shape, config)
        case "module":
            return build_user_module(config.module, num_latents, image_shape)
        case "onnx":
            return OnnxGenerator()
        case _:
            assert_never(config.kind)


def refit_steps(interval: int, decay: float, updates: int) -> tuple[int, ...]:
    """Return the updates (from 1) before which KAN grids are refitted.

    The first is 1: the latents start outside the initial grid. After the refit at update i the interval f
    becomes floor(f (2 - decay)^i), so refits thin out quickly; interval 0 keeps the first only.
    """
    steps = [1]
    while interval:
        # Beyond 40 e-folds the next refit is out of any run's reach, and the power out of a float's.
        if steps[-1] * math.log(2.0 - decay) > 40.0:
            break
        interval = int(interval * (2.0 - decay) ** steps[-1])
        if steps[-1] + interval > updates:
            break
        steps.append(steps[-1] + interval)
    return tuple(steps)
