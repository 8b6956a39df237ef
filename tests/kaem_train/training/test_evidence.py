"""Estimates of log p(x) agree with its closed form, and miss it where theory says so."""

import math

import pytest
import torch
from linear_gaussian import double, exact_evidence, exact_latents, exact_mean_log_likelihood, linear_model, observe

from kaem_train.config import PosteriorConfig
from kaem_train.posterior.importance import ImportancePosterior
from kaem_train.posterior.power import log_likelihood_of
from kaem_train.posterior.tempering import temperature_ladder
from kaem_train.training.objective import (
    corrected_evidence,
    log_mean_exp,
    steppingstone_evidence,
    thermodynamic_evidence,
)

pytestmark = pytest.mark.usefixtures("float64")
NUM = 20_000


@pytest.fixture(scope="module")
def levels():
    with double(), torch.no_grad():
        model, images = linear_model(), observe(3)
        temperatures = temperature_ladder(5, 2.0)
        many = images.repeat(NUM, 1, 1, 1)
        drawn = [
            log_likelihood_of(model, many, exact_latents(many, float(t), seed)).reshape(NUM, 3)
            for seed, t in enumerate(temperatures)
        ]
    return images, temperatures, drawn


def test_the_steppingstone_estimate_is_the_evidence(levels):
    images, temperatures, drawn = levels
    # Each of the 5 ratios has a relative error below .01 with 20,000 draws (weights of variance about 1).
    assert torch.allclose(steppingstone_evidence(drawn, temperatures), exact_evidence(images), atol=0.04)


def test_the_trapezium_rule_is_that_of_the_exact_expectations_and_is_biased(levels):
    images, temperatures, drawn = levels
    exact = torch.stack([exact_mean_log_likelihood(images, float(t)) for t in temperatures])
    expected = torch.trapezoid(exact, temperatures, dim=0)
    # The rule weighs E_k by (t_{k+1} - t_{k-1}) / 2; levels are drawn independently. 3 comparisons.
    weights = 0.5 * (
        torch.nn.functional.pad(temperatures.diff(), (0, 1)) + torch.nn.functional.pad(temperatures.diff(), (1, 0))
    )
    variances = torch.stack([level.var(0) for level in drawn]) / NUM
    error = (weights.square()[:, None] * variances).sum(0).sqrt()
    assert bool(((thermodynamic_evidence(drawn, temperatures) - expected).abs() < 4.5 * error).all())
    assert bool(((expected - exact_evidence(images)).abs() > 9.0 * error).any())
    fine = torch.linspace(0.0, 1.0, 20_001) ** 2
    means = torch.stack([exact_mean_log_likelihood(images, float(t)) for t in fine])
    assert torch.allclose(torch.trapezoid(means, fine, dim=0), exact_evidence(images), atol=1e-5)


def test_the_divergences_correct_the_trapezium_rule(levels):
    images, temperatures, drawn = levels
    assert torch.allclose(corrected_evidence(drawn, temperatures), exact_evidence(images), atol=0.04)


def test_importance_sampling_from_the_prior_gives_the_evidence():
    model, images = linear_model(), observe(3)
    posterior = ImportancePosterior(PosteriorConfig(kind="importance"), "quadrature")
    weights = posterior.log_weights(model, images, 100_000, torch.Generator().manual_seed(0))
    # The effective share of the draws is above 1 %, so the relative error is below .03.
    assert torch.allclose(log_mean_exp(weights, 1), exact_evidence(images), atol=0.1)
    assert float(log_mean_exp(torch.full((4,), math.log(3.0)), 0)) == pytest.approx(math.log(3.0))
