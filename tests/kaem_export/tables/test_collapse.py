from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from models import MORE_FUNCTIONS, VARIANTS, random_model

from kaem.errors import ArtifactError
from kaem_export.proof.oracle import LatentOracle
from kaem_export.tables.collapse import collapse, function_laws


def _density_by_hand(model, q, p):
    """exp(f) pi0 of one component of a gaussian-reference model, straight from the tensors."""
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    centers = state["prior.bank.centers"]
    width = (centers[-1] - centers[0]) / (len(centers) - 1) * np.exp(state["prior.bank.log_tau"])

    def density(z):
        basis = np.exp(-0.5 * ((z - centers) / width) ** 2)
        energy = state["prior.bank.spline_weight"][q, p] * (state["prior.bank.coefficients"][q, p] @ basis)
        return np.exp(energy - z * z / 2)

    return density, centers


def test_a_mixture_collapses_to_its_marginal_as_adaptive_quadrature_finds_it():
    config, model = random_model()
    laws = collapse(model.prior)
    weights = torch.softmax(model.prior.logits.double(), -1).detach().numpy()
    for q in range(config.prior.num_latents):
        x = 0.37
        expected = 0.0
        for p in range(config.prior.num_components):
            density, centers = _density_by_hand(model, q, p)
            below, _ = scipy.integrate.quad(density, -6, x, points=list(centers[centers < x]), epsabs=1e-13, limit=500)
            total, _ = scipy.integrate.quad(density, -6, 6, points=list(centers), epsabs=1e-13, limit=500)
            expected += weights[q, p] * below / total
        assert laws.evaluate(q, np.array(x))[0] == pytest.approx(expected, abs=1e-12)


def test_flat_energies_of_the_uniform_reference_sum_to_the_irwin_hall_law():
    config, model = random_model(*VARIANTS["uniform sum of three"], amplitude=0.0)
    laws = collapse(model.prior)
    assert config.prior.num_components == 3
    x = np.linspace(0, 3, 501)
    cdf, survival, density = laws.evaluate(0, x)
    assert np.abs(cdf - scipy.stats.irwinhall(3).cdf(x)).max() < 1e-14
    assert np.abs(survival - scipy.stats.irwinhall(3).sf(x)).max() < 1e-14
    assert np.abs(density - scipy.stats.irwinhall(3).pdf(x)).max() < 1e-12


def test_flat_energies_of_the_gaussian_reference_sum_to_a_wider_gaussian():
    _, model = random_model(*VARIANTS["gaussian independent"], amplitude=0.0)
    laws = collapse(model.prior)
    x = np.linspace(-8, 8, 501)
    cdf, survival, _ = laws.evaluate(1, x)
    # Components end at 6 deviations, beyond which a mass of 2e-9 lies.
    assert np.abs(cdf - scipy.stats.norm(0, 2).cdf(x)).max() < 2e-8
    assert np.abs(survival - scipy.stats.norm(0, 2).sf(x)).max() < 2e-8


def _laws(config, prior):
    """Distributions and, for each, the oracle's row."""
    count, terms = config.prior.num_latents, config.prior.num_components
    if config.prior.variant == "experts":
        return function_laws(prior), [(row % terms) * count + row // terms for row in range(count * terms)]
    if config.prior.u_sharing == "per_p":
        return function_laws(prior), list(range(count * terms))
    return collapse(prior), list(range(count))


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE_FUNCTIONS])
def test_the_collapsed_cdf_agrees_with_the_independent_oracle(variant):
    config, model = random_model(*(VARIANTS | MORE_FUNCTIONS)[variant])
    oracle = LatentOracle(model.state_dict(), config.prior)
    laws, rows = _laws(config, model.prior)
    assert len(laws) == len(rows)
    for row, other in enumerate(rows):
        z = np.linspace(*laws.ends(row), 300)
        cdf, survival, density = laws.evaluate(row, z)
        assert cdf[0] < 1e-12
        assert survival[-1] < 1e-12
        assert np.all(np.diff(cdf) > -1e-14)
        assert np.abs(cdf + survival - 1).max() < 1e-13
        assert density.min() >= 0
        # What the oracle itself is off by, for sums of densities that jump, is the most of it.
        assert np.abs(oracle.cdf(other, z) - cdf).max() < 1e-9


@pytest.mark.parametrize("variant", ["splines", "uniform sum of three", "experts", "many waves, tanh"])
def test_a_grid_and_a_domain_that_were_refitted_are_those_of_the_oracle(variant):
    config, model = random_model(*(VARIANTS | MORE_FUNCTIONS)[variant], "prior.refit_interval=9", amplitude=0.5)
    before = model.prior.low
    model.prior.refit_grid(model.prior.sample(500, torch.Generator().manual_seed(0)))
    # Waves do not end, so their tails are bounded by their amplitudes, and the domain grows.
    assert (model.prior.low < before) == (variant == "many waves, tanh")
    oracle = LatentOracle(model.state_dict(), config.prior)
    laws, rows = _laws(config, model.prior)
    for row, other in enumerate(rows):
        z = np.linspace(*laws.ends(row), 100)
        assert np.abs(oracle.cdf(other, z) - laws.evaluate(row, z)[0]).max() < 1e-9


def test_experts_without_radial_terms_are_gaussians_to_the_oracle():
    config, model = random_model(*VARIANTS["experts"], amplitude=0.0)
    oracle = LatentOracle(model.state_dict(), config.prior)
    z = np.linspace(-7.5, 7.5, 301)
    means, stds = model.prior.means.double().detach().numpy(), model.prior.stds.double().detach().numpy()
    for k, q in np.ndindex(4, 3):
        law = scipy.stats.truncnorm(*((np.array([-8, 8]) - means[q, k]) / stds[q, k]), means[q, k], stds[q, k])
        assert np.abs(oracle.cdf(k * 3 + q, z) - law.cdf(z)).max() < 1e-7


def test_an_energy_that_is_not_finite_is_named():
    _, model = random_model()
    with torch.no_grad():
        model.prior.bank.coefficients[1, 2, 5] = torch.nan
    with pytest.raises(ArtifactError, match="latent 1, component 2"):
        collapse(model.prior)
