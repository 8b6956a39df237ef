"""Decoders of other people's autoencoders, as they would export them: real networks, random weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn


def dense_decoder(num_latents: int, image_shape: tuple[int, ...], end: nn.Module) -> nn.Module:
    """Latents (N, Q) -> two dense layers -> images."""
    pixels = int(torch.Size(image_shape).numel())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(num_latents, 24), nn.Linear(24, pixels)
    return nn.Sequential(first, nn.ReLU(), last, end, nn.Unflatten(1, image_shape))


def conv_decoder(num_latents: int, end: nn.Module, *, channels: int = 3) -> nn.Module:
    """Latents (N, Q, 1, 1) -> transposed convolutions with batch normalisation -> 8 x 8 images, as in DCGAN."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.ConvTranspose2d(num_latents, 8, 4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, channels, 4, 2, 1),
            end,
        )


def write_decoder(path: Path, network: nn.Module, latent: torch.Tensor, *, dynamo: bool = True) -> Path:
    """Export with either of torch's exporters, as its documentation says: a free batch size, weights inside."""
    names = {"input_names": ["z"], "output_names": ["x"]}
    free = {"dynamic_shapes": ({0: torch.export.Dim("N")},), "external_data": False}
    named = {"dynamic_axes": {"z": {0: "N"}, "x": {0: "N"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network.eval(),
            (latent,),
            path,
            dynamo=dynamo,
            opset_version=18,
            verbose=False,
            **names,
            **(free if dynamo else named),
        )
    return path
