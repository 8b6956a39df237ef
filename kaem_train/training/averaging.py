"""Exponential moving averages of the weights: what is evaluated, sampled and exported in place of the last ones.

    a <- a + (1 - d) (w - a),    d = min(decay, (1 + n) / (10 + n))

n counts the updates since the average of this weight began, so that it forgets where it began.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """Averages of named parameters.

    Some parameters jump: the prior when it starts at encoded images, the functions of a layer whose knots move.
    An average across the jump would belong to neither side, so the averages of that module begin anew.

    Args:
        parameters: Parameters by name; changed by training, only read here.
        decay: Weight of the past, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self._averages = {name: value.detach().clone() for name, value in parameters.items()}
        self._counts = dict.fromkeys(parameters, 0)
        self._last = {name: value.detach().clone() for name, value in parameters.items()}
        self._versions = {name: value._version for name, value in parameters.items()}

    @torch.no_grad()
    def restart_jumped(self) -> None:
        """Begin anew for every module of which a parameter has changed since the last `follow`."""
        # Values are compared only where something was written: a GPU would be waited for.
        written = [name for name, value in self._parameters.items() if value._version != self._versions[name]]
        changed = [name for name in written if not torch.equal(self._parameters[name], self._last[name])]
        modules = {_name_module(name) for name in changed}
        for name, value in self._parameters.items():
            if _name_module(name) in modules:
                self._averages[name].copy_(value)
                self._counts[name] = 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the parameters as an update left them."""
        for name, value in self._parameters.items():
            count = self._counts[name]
            decay = min(self.decay, (1 + count) / (10 + count))
            self._averages[name].lerp_(value, 1.0 - decay)
            self._counts[name] = count + 1
            self._last[name].copy_(value)
            self._versions[name] = value._version

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their averages inside; outside they are as they were, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counts, to continue from."""
        return {"averages": dict(self._averages), "counts": dict(self._counts)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, with parameters that are already those of the same moment.

        Raises:
            KeyError: The state lacks a parameter.
            RuntimeError: A shape differs.
        """
        for name, value in self._parameters.items():
            self._averages[name].copy_(state["averages"][name])
            self._counts[name] = int(state["counts"][name])
            self._last[name].copy_(value)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._parameters.items():
            average = self._averages[name]
            held = value.clone()
            value.copy_(average)
            average.copy_(held)


def _name_module(name: str) -> str:
    return name.rpartition(".")[0]
