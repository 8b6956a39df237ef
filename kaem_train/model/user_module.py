"""Bring your own decoder: a `torch.nn.Module` of the user's, found by name and tried before it trains.

It is constructed as ClassName(num_latents, image_shape) and maps (N, Q) to images (N, C, H, W) in [0, 1], every row
by itself. Importing it runs its module's code, so names from files are not imported unless the user allows it
(`checkpoint.load_model`).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kaem.errors import ConfigError

_PROBE_ROWS = 7
_SLACK = 1e-4


def build_user_module(name: str, num_latents: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Import, construct and try the user's generator.

    Args:
        name: `package.module:ClassName`; modules are looked up as Python does, then in the current folder.
        num_latents: Q.
        image_shape: (C, H, W).

    Raises:
        ConfigError: It cannot be imported or constructed, is no `torch.nn.Module`, or gives images of another shape
            or range, or rows that depend on their batch or on chance.
    """
    kind = _imported_class(name)
    try:
        module: nn.Module = kind(num_latents, image_shape)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"generator.module = {name!r} cannot be constructed: {_reason(error)}",
            hint=f"it is called as {kind.__name__}(num_latents, image_shape), here ({num_latents}, {image_shape})",
        ) from error
    latents = torch.randn(_PROBE_ROWS, num_latents, generator=torch.Generator().manual_seed(0))
    was_training = module.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        evaluated = _images(module.eval(), latents, name, image_shape)
        for mode in (False, True):
            _require_rows_alone(module.train(mode), latents, evaluated, name)
    module.train(was_training)
    return module


def _imported_class(name: str) -> type[nn.Module]:
    module_name, colon, class_name = name.partition(":")
    if not (colon and class_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(
            f"generator.module = {name!r} does not name a class", hint="write generator.module=package.module:ClassName"
        )
    here = str(Path.cwd())
    sys.path.append(here)  # last, so that nothing installed is hidden by what lies in the folder
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise ConfigError(
            f"generator.module = {name!r} cannot be imported: {_reason(error)}",
            hint="install its package, set PYTHONPATH, or start kaem in the folder that holds it",
        ) from error
    finally:
        sys.path.remove(here)
    found: Any = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = f"has no {class_name}" if found is None else f"has a {class_name} that is no torch.nn.Module class"
        raise ConfigError(f"generator.module = {name!r}: {module_name} {what}", hint="name a subclass of nn.Module")
    return found


def _images(module: nn.Module, latents: Tensor, name: str, image_shape: tuple[int, ...]) -> Tensor:
    try:
        images = module(latents)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"generator.module = {name!r} fails on latents of shape {list(latents.shape)}: {_reason(error)}",
            hint="its forward maps (N, Q) to images (N, C, H, W)",
        ) from error
    wanted = [len(latents), *image_shape]
    if not isinstance(images, Tensor) or list(images.shape) != wanted:
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(
            f"generator.module = {name!r} gives {got} for {len(latents)} latents, not {wanted}",
            hint="its forward maps (N, Q) to images (N, C, H, W)",
        )
    if not bool(((images >= 0.0) & (images <= 1.0)).all()):
        low, high = float(images.min()), float(images.max())
        raise ConfigError(
            f"generator.module = {name!r} gives intensities in [{low:.3g}, {high:.3g}], not in [0, 1]",
            hint="end its forward with torch.sigmoid",
        )
    return images


def _require_rows_alone(module: nn.Module, latents: Tensor, evaluated: Tensor, name: str) -> None:
    """Refuse batch statistics and dropout: the images of training would not be those of the exported model."""
    try:
        alone = module(latents[:1])
    except Exception:  # batch statistics of one value
        difference = float("inf")
    else:
        together = module(latents)[:1]
        difference = float(torch.maximum((alone - evaluated[:1]).abs().max(), (together - evaluated[:1]).abs().max()))
    if not difference <= _SLACK:
        mode = "training" if module.training else "evaluation"
        raise ConfigError(
            f"generator.module = {name!r}: an image depends on its batch, on chance or on the mode, in {mode} mode",
            hint="replace batch normalisation by nn.GroupNorm, and leave dropout out",
        )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
