"""Uniforms shared over q (eq. 13): every latent keeps its law, and all of them move together."""

import numpy as np
import pytest
import scipy.stats
import torch

from kaem.errors import ConfigError
from kaem_train.config import PriorConfig
from kaem_train.config.settings import load_config
from kaem_train.model.prior.factorised import build_prior


def _prior(u_sharing, p=3):
    torch.manual_seed(0)
    config = PriorConfig(variant="independent", num_latents=4, num_components=p, u_sharing=u_sharing)
    prior = build_prior(config)
    with torch.no_grad():
        prior.bank.coefficients.normal_()
    return prior


def _samples(prior, num):
    return prior.sample(num, torch.Generator().manual_seed(1))


def test_latents_that_share_a_uniform_are_comonotone_and_others_are_not():
    z = _samples(_prior("per_p"), 2000)
    order = z[:, 0].argsort(0)  # (S, P): the order of u_p, told by the first latent
    for q in range(1, 4):
        ascending = z[:, q].gather(0, order)
        assert bool((ascending.diff(dim=0) >= 0).all())
    between = torch.corrcoef(z[:, 0].T) - torch.eye(3)
    assert float(between.abs().max()) < 4.5 / np.sqrt(2000)


def test_latents_with_uniforms_of_their_own_are_uncorrelated_over_q():
    num = 20_000
    z = _samples(_prior("per_qp"), num)
    for p in range(3):
        between = torch.corrcoef(z[:, :, p].T) - torch.eye(4)
        assert float(between.abs().max()) < 4.5 / np.sqrt(num)


def test_sharing_leaves_the_law_of_every_latent_and_the_density_as_they_are():
    shared, own = _prior("per_p"), _prior("per_qp")
    a, b = _samples(shared, 5000), _samples(own, 5000)
    for q, p in np.ndindex(4, 3):
        assert scipy.stats.ks_2samp(a[:, q, p].numpy(), b[:, q, p].numpy()).pvalue > 1e-3
    assert torch.equal(shared.log_density(a), own.log_density(a))


def test_one_uniform_for_everything_makes_the_generator_see_a_curve():
    # The price of sharing (method of the paper, eq. 13): with P = 1 the inputs are functions of one number.
    s = _prior("per_p", p=1).generator_input(_samples(_prior("per_p", p=1), 500))
    ranks = s.argsort(0).argsort(0)
    assert bool((ranks == ranks[:, :1]).all())


@pytest.mark.parametrize("variant", ["mixture", "experts"])
def test_variants_whose_latents_have_a_uniform_each_refuse_sharing(variant):
    with pytest.raises(ConfigError, match=r"prior\.u_sharing=per_qp or prior\.variant=independent"):
        PriorConfig(variant=variant, num_latents=2, num_components=2, u_sharing="per_p")


def test_an_encoder_refuses_a_prior_that_is_not_sampled_from_its_density():
    settings = ["prior.variant=independent", "prior.frame=none", "prior.u_sharing=per_p"]
    with pytest.raises(ConfigError, match=r"posterior\.kind=importance"):
        load_config("digits", settings)
    config = load_config("digits", [*settings, "posterior.kind=importance"])
    assert (config.prior.num_uniforms, config.prior.is_collapsed) == (config.prior.num_components, False)
