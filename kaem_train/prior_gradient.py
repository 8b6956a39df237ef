"""The prior's part of the likelihood gradient, with an exact normaliser or by contrastive divergence."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

from kaem_train.model.prior import IndependentPrior, Prior

PriorGradient = Literal["quadrature", "contrastive"]


def log_prior_term(prior: Prior, z: Tensor, gradient: PriorGradient, rng: torch.Generator) -> Tensor:
    """Return values whose gradient in the prior's parameters estimates that of log p(z).

    `quadrature` is log p(z) itself, log Z differentiated through eq. 20. `contrastive` is

        E(z+) - mean E(z-),    E(z) = sum_{q,p} f(z) + log pi0(z),    z- from the prior       (eq. 16)

    with as many z- as z+: equal in expectation (eq. 41), and noisy.

    Args:
        prior: The prior, of the independent variant where `gradient` is contrastive; the configuration sees to it.
        z: z+, held constant, inside the domain: shape (S, *latent_shape).
        gradient: Which form.
        rng: Source of z-.

    Returns:
        Shape (S,), in nats.
    """
    match gradient:
        case "quadrature":
            return prior.log_density(z)
        case "contrastive" if isinstance(prior, IndependentPrior):
            return _energy(prior, z) - _energy(prior, prior.sample(len(z), rng)).mean()
        case "contrastive":
            raise AssertionError("the configuration allows contrastive gradients of independent latents only")
        case _:
            assert_never(gradient)


def _energy(prior: IndependentPrior, z: Tensor) -> Tensor:
    return (prior.bank.paired(z) + prior.reference.paired(z)).sum((1, 2))
