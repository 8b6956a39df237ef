"""Power posteriors p(z|x, t) = p(x|z)^t p(z) / Z_t (eqs. 12, 48), and what a chain knows where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from kaem_train.families.kaem import Kaem
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.training.objective import log_likelihood

LogDensity = Callable[[Tensor], Tensor]
"""Latents, shape (S, *latent_shape), to nats, shape (S,), differentiable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """Where S chains stand. Prior and likelihood are kept apart, so a state holds for every temperature.

    Attributes:
        z: Positions, shape (S, *latent_shape).
        log_prior: log p(z), shape (S,).
        log_likelihood: log p(x|z), shape (S,).
        prior_score: Gradient of `log_prior`, the shape of z.
        likelihood_score: Gradient of `log_likelihood`, the shape of z.
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_score: Tensor
    likelihood_score: Tensor

    def select(self, is_other: Tensor, other: ChainState) -> ChainState:
        """Take `other` where `is_other`, shape (S,)."""
        return ChainState(
            **{
                name: torch.where(per_chain(is_other, here), there, here)
                for name, here, there in ((name, getattr(self, name), getattr(other, name)) for name in _NAMES)
            }
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> ChainState:
        """Apply `change` to every tensor, for example to pick or reorder chains."""
        return ChainState(**{name: change(getattr(self, name)) for name in _NAMES})

    def overwrite(self, other: ChainState) -> None:
        """Copy the tensors of `other` into these."""
        for name in _NAMES:
            getattr(self, name).copy_(getattr(other, name))

    def concatenate(self, other: ChainState) -> ChainState:
        """Return these chains and then the others."""
        return ChainState(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in _NAMES})


_NAMES = tuple(field.name for field in fields(ChainState))


def per_chain(values: Tensor, like: Tensor) -> Tensor:
    """Give values of shape (S,) trailing axes, so that they broadcast against `like`, shape (S, ...)."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPosterior:
    """The target of S chains.

    Attributes:
        log_prior: log p(z) of latents inside the domain.
        log_likelihood: log p(x|z) of the observation that belongs to each chain.
        temperatures: t, shape (S,).
        low: Lower end of the domain of every latent; -inf for none.
        high: Upper end.
    """

    log_prior: LogDensity
    log_likelihood: LogDensity
    temperatures: Tensor
    low: float
    high: float

    def at(self, z: Tensor) -> ChainState:
        """Evaluate densities and scores: gradients of sums over chains, with respect to z alone."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior, log_likelihood = self.log_prior(z), self.log_likelihood(z)
            (prior_score,) = torch.autograd.grad(log_prior.sum(), z)
            (likelihood_score,) = torch.autograd.grad(log_likelihood.sum(), z)
        return ChainState(
            z=z.detach(),
            log_prior=log_prior.detach(),
            log_likelihood=log_likelihood.detach(),
            prior_score=prior_score,
            likelihood_score=likelihood_score,
        )

    def log_density(self, state: ChainState) -> Tensor:
        """Return log p(z) + t log p(x|z), unnormalised: shape (S,)."""
        return state.log_prior + self.temperatures * state.log_likelihood

    def score(self, state: ChainState) -> Tensor:
        """Return the gradient of `log_density`: the shape of z."""
        return state.prior_score + per_chain(self.temperatures, state.z) * state.likelihood_score


def power_posterior(model: Kaem, images: Tensor, temperatures: Tensor) -> PowerPosterior:
    """Return the target of one chain per temperature and image, temperature-major.

    Args:
        model: Its parameters should be `frozen` while chains run.
        images: Shape (B, C, H, W).
        temperatures: Shape (K,); chain k B + b has temperature k and image b.
    """
    repeated = images.repeat(len(temperatures), 1, 1, 1)
    return PowerPosterior(
        log_prior=model.prior.log_density,
        log_likelihood=partial(log_likelihood_of, model, repeated),
        temperatures=temperatures.to(images).repeat_interleave(len(images)),
        low=model.prior.low,
        high=model.prior.high,
    )


def squared_error_of(model: Kaem, images: Tensor, z: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return |x_s - G(z_s)|^2: shapes (S, C, H, W) and (S, *latent_shape) -> (S,); noise as of `Kaem.decode`."""
    return (images - model.decode(z, noise)).square().flatten(1).sum(1)


def log_likelihood_of(model: Kaem, images: Tensor, z: Tensor) -> Tensor:
    """Return log p(x_s|z_s): shapes (S, C, H, W) and (S, *latent_shape) -> (S,)."""
    return log_likelihood(squared_error_of(model, images, z), images[0].numel(), model.sigma)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep the parameters out of every graph built inside, and as they are; chains differentiate latents only."""
    prior = getattr(model, "prior", None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with prior.hold_constants() if isinstance(prior, AbstractPrior) else nullcontext():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
