"""What makes generator and encoder faster where the machine can: half precision and compilation.

Both touch the two networks alone. Energies, normalisers, log densities and the loss stay in the precision of
their parameters: exp(f) and differences of log densities do not survive eight bits of mantissa.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kaem.errors import ConfigError
from kaem_train.config import TrainingConfig
from kaem_train.devices import set_tf32
from kaem_train.families.build import Model
from kaem_train.model.encoder import Encoder


def networks(model: Model, posterior: nn.Module) -> list[nn.Module]:
    """Return the generator, and the encoder where the posterior has one."""
    return [model.generator, *(module for module in posterior.modules() if isinstance(module, Encoder))]


def accelerate(modules: Iterable[nn.Module], settings: TrainingConfig) -> None:
    """Give modules the precision of `settings`, and compile them if asked; parameters stay as they are.

    Raises:
        ConfigError: Compilation needs a C++ compiler, and there is none.
    """
    if settings.compile:
        _require_compiler()
    for module in modules:
        if settings.precision == "bfloat16":
            module.forward = _run_in_bfloat16(module.forward)
        if settings.compile:
            # One graph per batch size: one graph for all would depend on which sizes were seen before.
            module.compile(dynamic=False)


@contextmanager
def plain(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules in their parameters' precision and uncompiled inside: for evaluation."""
    taken = [(module, module.__dict__.pop("forward")) for module in modules if "forward" in module.__dict__]
    try:
        with torch.compiler.set_stance("force_eager"), set_tf32(False):
            yield
    finally:
        for module, forward in taken:
            module.forward = forward


def _run_in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(values: Tensor, *others: Any, **options: Any) -> Any:
        with torch.autocast(values.device.type, torch.bfloat16):
            found = forward(values, *others, **options)
        if isinstance(found, tuple):
            return tuple(part.to(values.dtype) for part in found)
        return found.to(values.dtype)

    return run


def _require_compiler() -> None:
    compiler = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ("g++", "clang++", "c++"))):
        raise ConfigError(
            "training.compile = true needs a C++ compiler, and there is none",
            hint="install g++ or clang++, name one in CXX, or set training.compile=false",
        )
