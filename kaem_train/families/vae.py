"""The variational autoencoder (Kingma & Welling 2014): a KAEM whose energies are zero and stay zero.

Generator, encoder, updates and deviation are those of the KAEM it is compared with, so all that differs is the
prior: N(0, I), with the divergence from it in closed form.
"""

from __future__ import annotations

import torch

from kaem_train.families.kaem import Kaem


def fix_standard_normal(model: Kaem) -> None:
    """Set every energy of a prior to zero and take its parameters out of training: p(z) is its reference N(0, I)."""
    with torch.no_grad():
        model.prior.bank.coefficients.zero_()
    model.prior.requires_grad_(False)
