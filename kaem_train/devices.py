"""Where tensors live. What is random is drawn where its generator is, and what is kept in files lies on the CPU.

Generators of a run are on the CPU, so noise and checkpoints are the same whatever device it is on; only rounding
differs between devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, TypeVar, assert_never

import torch
from torch import Tensor, nn

from kaem.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Module = TypeVar("Module", bound=nn.Module)


def choose_device(name: Device = "auto") -> torch.device:
    """Return the device of a run.

    Args:
        name: `auto` is an NVIDIA GPU where there is one, else the CPU.

    Raises:
        ConfigError: `cuda`, and torch sees no GPU.
    """
    is_present = torch.cuda.is_available()
    match name:
        case "cpu":
            return torch.device("cpu")
        case "cuda" if not is_present:
            raise ConfigError(
                "training.device = 'cuda', and torch sees no NVIDIA GPU",
                hint="set training.device=cpu or auto, or install torch with CUDA and a driver",
            )
        case "cuda" | "auto":
            return torch.device("cuda" if is_present else "cpu")
        case _:
            assert_never(name)


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's tensors lie; the CPU for one without any."""
    first = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def normal(shape: tuple[int, ...] | torch.Size, rng: torch.Generator, like: Tensor) -> Tensor:
    """Return N(0, 1) drawn where `rng` is, in the type and on the device of `like`."""
    return torch.randn(shape, generator=rng, dtype=like.dtype, device=rng.device).to(like.device)


def uniform(shape: tuple[int, ...] | torch.Size, rng: torch.Generator, like: Tensor) -> Tensor:
    """Return U(0, 1) drawn where `rng` is, in the type and on the device of `like`."""
    return torch.rand(shape, generator=rng, dtype=like.dtype, device=rng.device).to(like.device)


def on_cpu(state: Any) -> Any:
    """Return nested dictionaries, lists and tuples with every tensor in them on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state


@contextmanager
def moved_to_cpu(module: Module) -> Iterator[Module]:
    """Give a module on the CPU inside, for what is rare and was made for it; changes to its state are taken over.

    It is the module itself where that lies there already, and a copy otherwise.
    """
    if device_of(module).type == "cpu":
        yield module
        return
    copy = deepcopy(module).cpu()
    yield copy
    module.load_state_dict(copy.state_dict())
