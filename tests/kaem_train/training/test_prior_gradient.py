"""Contrastive divergence is the quadrature gradient in expectation, with noise."""

import math

import pytest
import torch

from kaem.errors import ConfigError
from kaem_train.config import PriorConfig
from kaem_train.config.settings import load_config
from kaem_train.model.prior.factorised import build_prior
from kaem_train.training.objective import log_prior_term

pytestmark = pytest.mark.usefixtures("float64")


def _prior():
    torch.manual_seed(0)
    prior = build_prior(PriorConfig(variant="independent", num_latents=2, num_components=2, base="silu"))
    with torch.no_grad():
        prior.bank.coefficients.normal_()
    return prior


def test_the_contrastive_gradient_is_the_quadrature_one_in_expectation():
    prior = _prior()
    observed = prior.sample(1, torch.Generator().manual_seed(5)).expand(2000, -1, -1)
    parameters = [prior.bank.coefficients, prior.bank.base_weight]
    exact = torch.autograd.grad(log_prior_term(prior, observed, "quadrature", torch.Generator()).mean(), parameters)
    estimates = [
        torch.autograd.grad(
            log_prior_term(prior, observed, "contrastive", torch.Generator().manual_seed(seed)).mean(), parameters
        )
        for seed in range(60)
    ]
    for index, expected in enumerate(exact):
        drawn = torch.stack([estimate[index] for estimate in estimates])
        # 88 comparisons by a t statistic of 59 degrees of freedom: 5 fails with probability 5e-4.
        assert bool(((drawn.mean(0) - expected).abs() < 5.0 * drawn.std(0) / math.sqrt(60) + 1e-9).all())
        assert float(drawn.std(0).max()) > 0.0


def test_contrastive_divergence_is_refused_where_it_is_wrong():
    with pytest.raises(ConfigError, match="alpha_p Z_p"):
        load_config("digits", ["prior.frame=none", "training.prior_gradient=contrastive", "posterior.kind=langevin"])
    with pytest.raises(ConfigError, match="normalised density"):
        load_config("digits", ["prior.frame=none", "training.prior_gradient=contrastive", "prior.variant=independent"])
