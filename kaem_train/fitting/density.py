"""Maximum likelihood of a prior on given latents: the best parameters seen on held-out latents stay.

    maximise E_z log p(z),    z from a finite set

There is no generator and no posterior here, and log Z is exact, so this is plain density estimation by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kaem_train.model.prior.factorised import Prior

_BETAS = (0.9, 0.99)
_FIRST_RATE, _LAST_RATE = 2e-2, 1e-3  # falling geometrically
_EVALUATIONS = 10
_SCORED_TOGETHER = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityFit:
    """What a fit reached.

    Attributes:
        before: Held-out mean log p(z) of the start, in nats.
        after: Held-out mean log p(z) of the parameters that were left in place, in nats; never below `before`.
        step: After how many steps those were met; 0 is the start.
    """

    before: float
    after: float
    step: int


def fit_density(
    prior: Prior,
    train: Tensor,
    held_out: Tensor,
    *,
    steps: int,
    rng: torch.Generator,
    batch_size: int = 256,
    parameters: Iterable[nn.Parameter] | None = None,
    progress: Callable[[int, float], None] = lambda _step, _score: None,
) -> DensityFit:
    """Maximise the likelihood of latents and keep the parameters that were best on the held-out ones.

    Args:
        prior: Changed in place.
        train: Shape (S, *latent_shape).
        held_out: Shape (S', *latent_shape); scored before the first step and ten times on the way.
        steps: Number of steps of Adam.
        rng: Chooses the batches.
        batch_size: Latents per step; no more than there are.
        parameters: What to fit; all of the prior's where None. Others stay as they are.
        progress: Told (steps done, held-out mean log p(z) in nats) at every evaluation.

    Returns:
        The held-out score before and after.
    """
    fitted = list(prior.parameters() if parameters is None else parameters)
    before = mean_log_density(prior, held_out)
    progress(0, before)
    best = DensityFit(before=before, after=before, step=0)
    kept = [parameter.detach().clone() for parameter in fitted]
    optimiser = torch.optim.Adam(fitted, lr=_FIRST_RATE, betas=_BETAS)
    decay = (_LAST_RATE / _FIRST_RATE) ** (1.0 / max(1, steps - 1))
    every = max(1, steps // _EVALUATIONS)
    with _train_only(prior, fitted):
        for step in range(1, steps + 1):
            chosen = torch.randint(len(train), (min(batch_size, len(train)),), generator=rng)
            loss = -prior.log_density(train[chosen]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not all(torch.isfinite(p.grad).all() for p in fitted if p.grad is not None):
                break  # what follows would be no better than what is kept
            optimiser.step()
            for group in optimiser.param_groups:
                group["lr"] *= decay
            if step % every == 0 or step == steps:
                score = mean_log_density(prior, held_out)
                progress(step, score)
                if score > best.after:
                    best = DensityFit(before=before, after=score, step=step)
                    kept = [parameter.detach().clone() for parameter in fitted]
    with torch.no_grad():
        for parameter, value in zip(fitted, kept, strict=True):
            parameter.copy_(value)
    return best


@torch.no_grad()
def mean_log_density(prior: Prior, z: Tensor) -> float:
    """Return the mean of log p(z) in nats, by which fits and priors are compared.

    Args:
        prior: Any prior.
        z: Shape (S, *latent_shape).
    """
    return float(log_densities(prior, z).mean())


@torch.no_grad()
def log_densities(prior: Prior, z: Tensor) -> Tensor:
    """Return log p(z) of every latent in nats: shape (S, *latent_shape) -> (S,), float64."""
    return torch.cat([prior.log_density(part).double() for part in torch.split(z, _SCORED_TOGETHER)])


@contextmanager
def _train_only(prior: nn.Module, fitted: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to these parameters alone, whatever the module said before."""
    flags = [(parameter, parameter.requires_grad) for parameter in prior.parameters()]
    try:
        prior.requires_grad_(False)
        for parameter in fitted:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
