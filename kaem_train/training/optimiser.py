"""The optimiser: its groups and rates, clipping, and the guard against numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kaem_train.config import TrainingConfig
from kaem_train.config.settings import Config
from kaem_train.families.build import Model

_BETA1 = 0.9


def build_optimiser(model: Model, network: nn.Module, config: Config) -> torch.optim.Adam:
    """Return Adam over two groups: the networks, and the prior; a model without a prior has the first alone.

    Args:
        model: Model of any family.
        network: Network of the posterior.
        config: The rates of both groups, and Adam's decay.
    """
    groups = [{"params": group} for group in model.parameter_groups(network)]
    betas = (_BETA1, config.training.adam_beta2)
    return torch.optim.Adam(groups, lr=config.learning_rates[0], betas=betas, fused=True)


class FiniteGuard:
    """Keeps updates that are not finite from changing a parameter.

    On a CPU it answers at once. Another device would have to be waited for, at every update: there Adam itself passes
    over such an update, and over all after it, and `find_first_failure` says which it was when somebody asks.

    Args:
        optimiser: Fused Adam, which knows `found_inf`.
        device: Device of the parameters that should not be waited for; None for a CPU.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device | None) -> None:
        self._optimiser = optimiser
        self._first = None if device is None else torch.zeros((), device=device)

    def admits(self, loss: Tensor, norm: Tensor, step: int) -> bool:
        """Whether update `step` (from 0) may be done, with this loss and this norm of the gradient, scalars.

        Where the answer lies on another device it is yes, and the optimiser does nothing if it should have been no.
        """
        is_finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if self._first is None:
            return bool(is_finite)
        is_new = (self._first == 0.0) & ~is_finite
        self._first = torch.where(is_new, float(step + 1), self._first)
        self._optimiser.found_inf = (self._first > 0.0).float()  # type: ignore[attr-defined]
        return True

    def find_first_failure(self) -> int:
        """Return the number of the first update (from 1) that another device passed over, 0 if there is none."""
        return 0 if self._first is None else int(self._first)


def set_rates(optimiser: torch.optim.Optimizer, config: Config, step: int) -> None:
    """Give both groups their learning rates of update `step` (from 0)."""
    for group, rate in zip(optimiser.param_groups, config.learning_rates, strict=True):
        group["lr"] = rate * rate_factor(config.training, step)


def rate_factor(settings: TrainingConfig, step: int) -> float:
    """Return the factor of both rates at update `step` (from 0), in (0, 1].

    `linear` is 1 up to `decay_from` of the updates and falls to 0 at their end, `cosine` falls as half a cosine
    over the same span, `constant` stays 1. During the first `warmup` updates it is multiplied by
    (step + 1) / warmup.
    """
    left = 1.0 - step / settings.updates
    share = min(1.0, left / max(1.0 - settings.decay_from, 1e-9))
    shape = {"linear": share, "cosine": 0.5 - 0.5 * math.cos(math.pi * share), "constant": 1.0}[settings.schedule]
    return shape * min(1.0, (step + 1) / max(settings.warmup, 1))


def find_first_not_finite(parameters: Iterable[tuple[str, Tensor]], loss: Tensor | None = None) -> str:
    """Name what first went wrong: a parameter's value, else the loss, else a parameter's gradient; "" if nothing.

    In that order, because a parameter that is not finite makes the loss so, and the loss every gradient.

    Args:
        parameters: Names and parameters.
        loss: Scalar, after `backward`; without it gradients are not looked at.
    """
    named = list(parameters)
    for name, value in named:
        if not bool(torch.isfinite(value).all()):
            return f"the parameter {name} is not finite"
    if loss is None:
        return ""
    if not bool(torch.isfinite(loss)):
        return f"the loss became {float(loss.detach()):g}"
    for name, value in named:
        if value.grad is not None and not bool(torch.isfinite(value.grad).all()):
            return f"the gradient of {name} is not finite"
    return "the norm of the gradient is not finite"
