"""Reference densities are scipy's, their scores are right in the tails, and the learnable one learns."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from kaem_train.config import PriorConfig
from kaem_train.model.prior.factorised import build_prior
from kaem_train.model.prior.reference import log_reference
from kaem_train.posterior.start import start_prior

pytestmark = pytest.mark.usefixtures("float64")


def _learnable(variant="independent", *, grid_size=20, mean=0.0, std=1.0):
    torch.manual_seed(0)
    config = PriorConfig(
        variant=variant, num_latents=2, num_components=3, reference="learnable_gaussian", grid_size=grid_size
    )
    prior = build_prior(config)
    with torch.no_grad():
        prior.bank.coefficients.zero_()
    prior.reference.start(torch.full((2, 3), mean), torch.full((2, 3), std))
    return prior


@pytest.mark.parametrize(
    ("reference", "law", "low"),
    [("lognormal", scipy.stats.lognorm(1.0), 0.0), ("gaussian", scipy.stats.norm(), -math.inf)],
)
def test_a_reference_is_the_normalised_density_of_scipy_and_integrates_to_one(reference, law, low):
    def density(z):
        return math.exp(float(log_reference(reference, torch.tensor(z))))

    assert scipy.integrate.quad(density, low, math.inf)[0] == pytest.approx(1.0, abs=1e-7)
    points = law.ppf([1e-6, 0.01, 0.3, 0.9, 1 - 1e-6])
    assert np.allclose(log_reference(reference, torch.tensor(points)).numpy(), law.logpdf(points), atol=1e-10)


def test_one_lognormal_latent_in_a_hundred_lies_below_a_tenth():
    # Without the square in its exponent, 90 % would.
    prior = build_prior(
        PriorConfig(
            variant="mixture",
            num_latents=1,
            num_components=1,
            reference="lognormal",
            low=1e-3,
            high=8.0,
            grid_low=1e-3,
            grid_high=8.0,
        )
    )
    with torch.no_grad():
        prior.bank.coefficients.zero_()
    z = prior.sample(50_000, torch.Generator().manual_seed(0))
    assert float((z < 0.1).double().mean()) == pytest.approx(0.0109, abs=0.002)


def test_the_score_of_a_lognormal_is_the_analytic_one_at_four():
    z = torch.tensor(4.0, requires_grad=True)
    (score,) = torch.autograd.grad(log_reference("lognormal", z), z)
    assert float(score) == pytest.approx(-(math.log(4.0) + 1.0) / 4.0, abs=1e-12)


@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_the_score_of_a_learnable_gaussian_is_the_analytic_one_in_its_tails(variant):
    prior = _learnable(variant, mean=0.7, std=0.6)
    z = torch.full((1, *prior.latent_shape), 4.0)
    z[0, 0] = -4.0
    z.requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(z).sum(), z)
    assert torch.allclose(score, -(z - 0.7) / 0.36, atol=1e-9)


def test_a_learnable_gaussian_starts_as_the_standard_normal():
    mean, std = build_prior(
        PriorConfig(variant="mixture", num_latents=2, num_components=3, reference="learnable_gaussian")
    ).reference.moments()
    assert torch.equal(mean, torch.zeros(2, 3))
    assert torch.allclose(std, torch.ones(2, 3), atol=1e-12)


@given(mean=st.floats(-3.0, 3.0), std=st.floats(0.1, 1.5), grid_size=st.sampled_from([2, 7, 20]))
def test_any_learnable_gaussian_is_the_one_of_scipy_and_sampled_as_the_truncated_one(mean, std, grid_size):
    # However few knots there are, and however narrow it is.
    prior = _learnable(grid_size=grid_size, mean=mean, std=std)
    whole, law = scipy.stats.norm(mean, std), scipy.stats.truncnorm((-6 - mean) / std, (6 - mean) / std, mean, std)
    z = torch.linspace(-5.9, 5.9, 13)[:, None, None].expand(-1, 2, 3)
    log_density = prior.bank.paired(z) + prior.reference.paired(z) - prior.log_normalizer()
    assert np.allclose(log_density[:, 1, 2].detach().numpy(), whole.logpdf(z[:, 1, 2].numpy()), atol=1e-6)
    cumulative = prior.cumulative()
    assert np.allclose(cumulative.at_edges[1, 2].numpy(), law.cdf(cumulative.edges.numpy()), atol=1e-6)


def test_gradients_reach_mean_and_deviation_through_the_density_and_through_its_normaliser():
    # At mean 2.9 and deviation 1.4 the domain cuts off 1.3 %, so the gradient of log Z is no rounding error.
    mean, std, step = 2.9, 1.4, 1e-5
    prior = _learnable(mean=mean, std=std)
    prior.has_tails = False
    z = torch.linspace(-2.0, 5.0, 6).reshape(1, 2, 3)
    gradients = torch.autograd.grad(prior.log_density(z).sum(), [prior.reference.mean, prior.reference.rho])

    def log_density(mean, std):
        return scipy.stats.truncnorm((-6 - mean) / std, (6 - mean) / std, mean, std).logpdf(z[0].numpy())

    by_mean = (log_density(mean + step, std) - log_density(mean - step, std)) / (2 * step)
    by_std = (log_density(mean, std + step) - log_density(mean, std - step)) / (2 * step)
    assert np.allclose(gradients[0].numpy(), by_mean, atol=1e-7)
    slope = 1.0 - math.exp(-(std - 1e-3))  # of softplus(rho) where it is std - 0.001
    assert np.allclose(gradients[1].numpy(), by_std * slope, atol=1e-7)
    without_normaliser = (z[0].numpy() - mean) / std**2
    assert np.abs(gradients[0].numpy() - without_normaliser).min() > 1e-3


def test_a_learnable_gaussian_stays_where_the_domain_holds_most_of_it():
    prior = _learnable()
    with torch.no_grad():
        prior.reference.mean.copy_(torch.tensor([[-50.0, 50.0, 1.0]] * 2))
        prior.reference.rho.copy_(torch.tensor([[50.0, -50.0, 0.5]] * 2))
    mean, std = (values[0].tolist() for values in prior.reference.moments())
    assert mean == [-3.0, 3.0, 1.0]
    assert std == pytest.approx([1.5, 0.1, math.log1p(math.exp(0.5)) + 1e-3])


def test_a_learnable_gaussian_learns_the_moments_of_its_latents():
    prior = _learnable("mixture")
    data = 0.8 + 0.5 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam([prior.reference.mean, prior.reference.rho], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (-prior.log_density(data).mean()).backward()
        optimiser.step()
    mean, std = prior.reference.moments()
    assert torch.allclose(mean, data.mean(0)[:, None].expand(2, 3), atol=0.02)
    assert torch.allclose(std, data.std(0)[:, None].expand(2, 3), atol=0.02)


def test_a_learnable_reference_starts_at_the_encoded_images_and_leaves_the_energies_alone():
    prior = _learnable("independent")
    before = prior.bank.coefficients.clone()
    rng = torch.Generator().manual_seed(0)
    latents = 0.5 + 0.7 * torch.randn(4000, 2, 3, generator=rng)
    start_prior(prior, latents, torch.full_like(latents, 1e-3), rng)
    mean, std = prior.reference.moments()
    assert torch.allclose(mean, torch.full((2, 3), 0.5), atol=0.05)
    assert torch.allclose(std, torch.full((2, 3), 0.7), atol=0.05)
    assert torch.equal(prior.bank.coefficients, before)
