"""What is left of a prior's univariate energies, in words: a fit may drop them in favour of Gaussians."""

from __future__ import annotations

import torch

from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior


@torch.no_grad()
def has_energies(prior: Prior) -> bool:
    """Whether any univariate energy is not 0 everywhere."""
    has_base = prior.bank.base != "none" and bool(prior.bank.base_weight.any())
    return has_base or bool(prior.bank.weights().any())


def describe_energies(prior: Prior) -> str:
    """Return one sentence that says what the univariate densities are made of."""
    if has_energies(prior):
        return "The prior's univariate densities follow the energies that were trained."
    if isinstance(prior, OwnFramesPrior):
        frames = "a frame of its own" if prior.num_components == 1 else "frames of their own"
        return f"All univariate energies are 0: the prior is {_count(prior.num_components)} in {frames}."
    if isinstance(prior, ExpertsPrior):
        return f"All univariate energies are 0: the prior is {_count(prior.num_components)}."
    return f"All univariate energies are 0: every univariate density is the reference, {prior.reference.name}."


def _count(number: int) -> str:
    return "one Gaussian" if number == 1 else f"a mixture of {number} Gaussians"
