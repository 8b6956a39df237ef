"""What a class of the user's may not do while it computes images, each told by what it leaves behind.

A generator is a function of latents and weights. One that draws random numbers, writes into its latents, changes its
state or has no gradient may pass every comparison of a few images and still not be the one that is trained.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kaem.errors import ConfigError


def require_good_conduct(module: nn.Module, latents: Tensor, name: str) -> None:
    """Refuse a module by what its forward does beside computing images; it has computed some in evaluation mode.

    Args:
        module: The module, in any mode; it comes back in training mode, perhaps with a state that has changed.
        latents: Shape (N, Q).
        name: Name of the class.

    Raises:
        ConfigError: It writes into its latents, draws random numbers where it is evaluated, changes its state, or
            gives images that no gradient leads back from.
    """
    for is_training in (False, True):
        module.train(is_training)
        given, state, chance = latents.clone(), _copy(module), _read_chance()
        try:
            module(given)
        except Exception:
            if not is_training:
                raise
            return  # as batch normalisation of one row does; what it is, the comparison of rows says
        if not torch.equal(given, latents):
            raise ConfigError(
                f"generator.module = {name!r} changes the latents that it is given",
                hint="write z = z * 2 in its forward, and not z *= 2 or z.mul_(2)",
            )
        if not is_training and not _is_same_chance(chance, _read_chance()):
            raise ConfigError(
                f"generator.module = {name!r} draws random numbers as it computes images, in evaluation mode",
                hint="an image is a function of its latents: leave noise out of its forward",
            )
        changed = [key for key, value in _copy(module).items() if not _is_same(value, state.get(key))]
        if changed:
            mode = "training" if is_training else "evaluation"
            raise ConfigError(
                f"generator.module = {name!r} changes its state as it computes images, in {mode} mode: "
                f"{', '.join(changed[:3])}",
                hint="replace batch normalisation by nn.GroupNorm and spectral normalisation by weight normalisation, "
                "and leave running averages out",
            )
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of numbers taken from tensors with a gradient
        images = module(latents.clone().requires_grad_() * 1.0)
    if not images.requires_grad:
        raise ConfigError(
            f"generator.module = {name!r} gives images without a gradient, so nothing could be learned",
            hint="leave torch.no_grad, detach and NumPy out of its forward",
        )


def _copy(module: nn.Module) -> dict[str, Any]:
    state: Mapping[str, Any] = module.state_dict()
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def _is_same(value: Any, before: Any) -> bool:
    if not (isinstance(value, Tensor) and isinstance(before, Tensor)):
        return True
    return value.shape == before.shape and bool(torch.isclose(value, before, rtol=0.0, atol=0.0, equal_nan=True).all())


def _read_chance() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _is_same_chance(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    python, legacy, drawn = before
    same_legacy = np.array_equal(legacy[1], after[1][1]) and legacy[2:] == after[1][2:]
    return python == after[0] and same_legacy and bool(torch.equal(drawn, after[2]))
