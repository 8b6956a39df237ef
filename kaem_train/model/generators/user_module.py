"""Bring your own decoder: a `torch.nn.Module` of the user's, found by name and tried wherever it is built.

What a checkpoint keeps of it is its name and its `state_dict`. So it is built twice by other random numbers, and the
second has to give the images of the first from its state alone. What takes longer is tried before training only
(`trial.py`).

It is constructed as ClassName(num_latents, image_shape) and maps (N, Q) to images (N, C, H, W) in [0, 1], every row
by itself. Importing it runs its module's code, so names from files are not imported unless the user allows it
(`checkpoint.load_model`).
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kaem.errors import ConfigError
from kaem_train.library_errors import describe_error
from kaem_train.model.generators.module_conduct import require_good_conduct

_PROBE_ROWS = 7
_SLACK = 1e-4


def build_user_module(name: str, num_latents: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Import, construct and try the user's generator.

    Args:
        name: `package.module:ClassName`; modules are looked up as Python does, then in the current folder.
        num_latents: Q.
        image_shape: (C, H, W).

    Raises:
        ConfigError: It cannot be imported or constructed, is no `torch.nn.Module`, is not of float32, gives images of
            another shape or range, or rows that depend on their batch, on chance or on what was computed before,
            holds numbers that are not in its `state_dict`, or does more than compute (`module_conduct.py`).
    """
    kind = import_class(name)
    module = _construct(kind, name, num_latents, image_shape)
    _require_float32(module, name)
    latents = probe_latents(num_latents)
    was_training = module.training
    with torch.no_grad(), _change_chance():
        evaluated = _compute_images(module.eval(), latents, name, image_shape)
        state = {key: value.clone() for key, value in _tensors(module, name).items()}
        require_good_conduct(module, latents, name)
        for mode in (False, True):
            _require_rows_alone(module.train(mode), latents, evaluated, name)
        module.train()(3.0 * latents)
        if not _is_close(module.eval()(latents), evaluated):
            raise ConfigError(
                f"generator.module = {name!r}: an image depends on what was computed before it",
                hint="leave caches and running averages out of its forward",
            )
        module.load_state_dict(state)
        twin = _construct(kind, name, num_latents, image_shape).eval()
        require_same_images(twin, state, evaluated, latents, name)
    module.train(was_training)
    return module


def probe_latents(num_latents: int) -> Tensor:
    """Return the latents that a module is tried on: shape (7, Q)."""
    return torch.randn(_PROBE_ROWS, num_latents, generator=torch.Generator().manual_seed(0))


def require_same_images(
    twin: nn.Module, state: dict[str, Tensor], images: Tensor, latents: Tensor, name: str, where: str = ""
) -> None:
    """Refuse a module whose state does not make another instance of its class the same.

    Args:
        twin: The other instance, in evaluation mode.
        state: `state_dict` of the first.
        images: What the first makes of `latents`, shape (N, C, H, W).
        latents: Shape (N, Q).
        name: Name of the class.
        where: The twin was built, for the message.

    Raises:
        ConfigError: The state does not load, or the images differ.
    """
    try:
        twin.load_state_dict(state)
        found = twin(latents)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"generator.module = {name!r}: another instance{where} does not take its state: {describe_error(error)}",
            hint="build the same layers in every call of its constructor",
        ) from error
    if not _is_close(found, images):
        loose = _find_loose_tensors(twin)
        which = f" (perhaps {', '.join(loose)})" if loose else ""
        raise ConfigError(
            f"generator.module = {name!r} holds numbers that are not in its state_dict{which}: another instance{where} "
            "with the same state gives other images",
            hint="register them: self.register_buffer('name', tensor) in its constructor",
        )


def _construct(kind: type[nn.Module], name: str, num_latents: int, image_shape: tuple[int, ...]) -> nn.Module:
    try:
        module: nn.Module = kind(num_latents, image_shape)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"generator.module = {name!r} cannot be constructed: {describe_error(error)}",
            hint=f"it is called as {kind.__name__}(num_latents, image_shape), here ({num_latents}, {image_shape})",
        ) from error
    return module


@contextmanager
def _change_chance() -> Iterator[None]:
    """Let all random numbers of this process be others inside, and go on as before afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # a user's code may draw from it
    with torch.random.fork_rng(devices=[]):
        seed = 1 + torch.randint(1 << 30, ()).item()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(int(seed))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _require_float32(module: nn.Module, name: str) -> None:
    for key, value in _tensors(module, name).items():
        if value.is_complex() or (value.is_floating_point() and value.dtype != torch.float32):
            raise ConfigError(
                f"generator.module = {name!r} holds {key} in {str(value.dtype).removeprefix('torch.')}; models train "
                "and are exported in float32",
                hint="leave .double(), .half() and dtype= out; training.precision sets the arithmetic of training",
            )


def _tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the state of a module, all of which a checkpoint can keep."""
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"generator.module = {name!r} keeps {key}, a {type(value).__name__}, in its state",
                hint="keep tensors alone there: a checkpoint holds nothing else",
            )
    return state


def _find_loose_tensors(module: nn.Module) -> list[str]:
    """Return names of attributes that are tensors or arrays, and so no part of a state."""
    return [
        f"{prefix}.{key}".lstrip(".")
        for prefix, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, (Tensor, np.ndarray))
    ]


def _is_close(found: Any, images: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == images.shape and bool((found - images).abs().max() <= _SLACK)


def import_class(name: str) -> type[nn.Module]:
    """Import the user's class, and so run its module's code.

    Raises:
        ConfigError: There is none of this name.
    """
    module_name, colon, class_name = name.partition(":")
    if not (colon and class_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(
            f"generator.module = {name!r} does not name a class", hint="write generator.module=package.module:ClassName"
        )
    here = str(Path.cwd())
    sys.path.append(here)  # last, so that nothing installed is hidden by what lies in the folder
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise ConfigError(
            f"generator.module = {name!r} cannot be imported: {describe_error(error)}",
            hint="install its package, set PYTHONPATH, or start kaem in the folder that holds it",
        ) from error
    finally:
        sys.path.remove(here)
    found: Any = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = f"has no {class_name}" if found is None else f"has a {class_name} that is no torch.nn.Module class"
        raise ConfigError(f"generator.module = {name!r}: {module_name} {what}", hint="name a subclass of nn.Module")
    return found


def _compute_images(module: nn.Module, latents: Tensor, name: str, image_shape: tuple[int, ...]) -> Tensor:
    try:
        images = module(latents)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"generator.module = {name!r} fails on latents of shape {list(latents.shape)}: {describe_error(error)}",
            hint="its forward maps (N, Q) to images (N, C, H, W)",
        ) from error
    wanted = [len(latents), *image_shape]
    if not isinstance(images, Tensor) or list(images.shape) != wanted:
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(
            f"generator.module = {name!r} gives {got} for {len(latents)} latents, not {wanted}",
            hint="its forward maps (N, Q) to images (N, C, H, W)",
        )
    if images.dtype != torch.float32:
        raise ConfigError(
            f"generator.module = {name!r} gives images in {str(images.dtype).removeprefix('torch.')}, not in float32",
            hint="end its forward with .float()",
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
