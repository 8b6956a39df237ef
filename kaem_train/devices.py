"""Where tensors live. What is random is drawn where its generator is, and what is kept in files lies on the CPU.

Generators of a run are on the CPU, so noise and checkpoints are the same whatever device it is on; only rounding
differs between devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kaem.errors import ConfigError
from kaem_train.config.checks import require_device

Module = TypeVar("Module", bound=nn.Module)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a run.

    Args:
        name: `auto` is an NVIDIA GPU where there is one, else the CPU; `cuda` is the first GPU, `cuda:1` the second.

    Raises:
        ConfigError: The name is no device's, or torch sees no such GPU.
    """
    require_device("device", name)
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and num == 0):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= num:
        seen = f"only {num} of them (cuda:0 to cuda:{num - 1})" if num else "no NVIDIA GPU"
        raise ConfigError(
            f"the device is {name!r}, and torch sees {seen}",
            hint="choose cpu or auto, or install torch with CUDA and a driver",
        )
    return torch.device("cuda", number)


@contextmanager
def set_tf32(is_on: bool) -> Iterator[None]:
    """Let products and convolutions on a GPU round their factors to 10 bits of mantissa inside, or forbid it.

    It is a switch of the whole process. Left alone, torch uses TF32 in convolutions and nowhere else.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = is_on
    try:
        yield
    finally:
        for switch, was_on in zip(switches, before, strict=True):
            switch.allow_tf32 = was_on


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, without waiting for that device where it is a GPU.

    A copy from memory that the system may move waits until all is done that was asked of the GPU before.
    """
    if device.type == "cpu":
        return tensor
    pinned = tensor.pin_memory() if torch.cuda.is_available() else tensor
    return pinned.to(device, non_blocking=True)


def find_device(module: nn.Module) -> torch.device:
    """Return where a module's tensors lie; the CPU for one without any."""
    first = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def normal(shape: tuple[int, ...] | torch.Size, rng: torch.Generator, like: Tensor) -> Tensor:
    """Return N(0, 1) drawn where `rng` is, in the type and on the device of `like`."""
    drawn = torch.randn(shape, generator=rng, dtype=like.dtype, device=rng.device)
    return _move(drawn, like.device)


def uniform(shape: tuple[int, ...] | torch.Size, rng: torch.Generator, like: Tensor) -> Tensor:
    """Return U(0, 1) drawn where `rng` is, in the type and on the device of `like`."""
    drawn = torch.rand(shape, generator=rng, dtype=like.dtype, device=rng.device)
    return _move(drawn, like.device)


def _move(drawn: Tensor, device: torch.device) -> Tensor:
    return upload(drawn, device) if drawn.device.type == "cpu" else drawn.to(device)


def bring_to_cpu(state: Any) -> Any:
    """Return nested dictionaries, lists and tuples with every tensor in them on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: bring_to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(bring_to_cpu(value) for value in state)
    return state


@contextmanager
def move_to_cpu(module: Module) -> Iterator[Module]:
    """Give a module on the CPU inside, for what is rare and was made for it; changes to its state are taken over.

    It is the module itself where that lies there already, and a copy otherwise.
    """
    if find_device(module).type == "cpu":
        yield module
        return
    copy = deepcopy(module).cpu()
    yield copy
    module.load_state_dict(copy.state_dict())
