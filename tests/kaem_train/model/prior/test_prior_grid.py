"""Grid and domain of the prior follow the latents, and its functions stay what they are."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from kaem_train.config import PriorConfig
from kaem_train.model.prior.factorised import build_prior
from kaem_train.model.prior.grid import find_used_range, place_knots

DOMAINS = {
    "gaussian": {"low": -6.0, "high": 6.0, "grid_low": -4.0, "grid_high": 4.0},
    "uniform": {"low": 0.0, "high": 1.0, "grid_low": 0.0, "grid_high": 1.0},
    "none": {"low": -1.2, "high": 1.2, "grid_low": -1.2, "grid_high": 1.2},
}


def _prior(basis="rbf", reference="gaussian", variant="mixture", **settings):
    """Energies are smooth hills that end before the grid does."""
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(
            variant=variant,
            num_latents=3,
            num_components=2,
            basis=basis,
            reference=reference,
            **{"refit_interval": 100, **DOMAINS[reference], **settings},
        )
    )
    if basis == "rswaf":
        # Bumps as narrow as their spacing sum to a ripple of a thousandth, on every grid another.
        prior.bank.log_tau.data.fill_(0.7)
    low, high = prior.bank.range
    nodes = torch.linspace(low, high, 300)
    places = torch.tensor([0.35, 0.5, 0.6, 0.45, 0.55, 0.4]).reshape(3, 2, 1)
    hills = 1.5 * torch.exp(-0.5 * (((nodes - low) / (high - low) - places) / 0.11) ** 2)
    prior.bank.fit(hills, torch.full_like(hills, 1 / 300), nodes, ridge=1e-9)
    return prior


def _samples(prior):
    return prior.sample(2000, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reference", DOMAINS)
@pytest.mark.parametrize("basis", ["rbf", "rswaf", "bspline"])
def test_a_refit_changes_no_function_by_a_thousandth_where_the_latents_are(basis, reference, float64):
    prior = _prior(basis, reference, grid_size=30)
    z = _samples(prior)
    where = z.flatten().sort().values[6:-6][None, None]
    with torch.no_grad():
        before = prior.bank.nodes(where)
        first_grid = prior.bank.grid.clone()
        assert prior.refit_grid(z) == [prior.bank.coefficients]
        change = (prior.bank.nodes(where) - before).abs()
    assert float(before.std()) > 0.2
    assert reference != "gaussian" or not torch.allclose(first_grid, prior.bank.grid)
    assert float(change.max()) < 1e-3


@pytest.mark.parametrize("reference", DOMAINS)
def test_a_refitted_prior_is_a_density_and_its_samples_follow_it(reference, float64):
    prior = _prior("rbf", reference, grid_update_ratio=0.3)
    prior.refit_grid(_samples(prior))
    fine = np.linspace(prior.low, prior.high, 40_001)
    with torch.no_grad():
        log_density = prior.unnormalised_log_density(torch.from_numpy(fine)[None, None]).numpy()
    total = scipy.integrate.simpson(np.exp(log_density), x=fine)
    assert np.allclose(prior.log_normalizer().detach().numpy(), np.log(total), atol=1e-7)
    cdf = scipy.integrate.cumulative_simpson(np.exp(log_density), x=fine, initial=0.0) / total[..., None]
    marginal = np.einsum("qp,qpm->qm", prior.log_weights().exp().detach().numpy(), cdf)
    z = prior.sample(20_000, torch.Generator().manual_seed(2)).numpy()
    for q in range(3):
        assert scipy.stats.kstest(z[:, q], lambda x, q=q: np.interp(x, fine, marginal[q])).pvalue > 1e-3


@pytest.mark.parametrize("basis", ["bspline", "rbf", "fourier"])
def test_without_a_reference_the_domain_stays_however_often_latents_from_inside_are_followed(basis):
    # A margin added to samples that fill the domain would widen it by a fifth at every refit.
    prior = _prior(basis, "none", grid_size=10)
    for _ in range(5):
        prior.refit_grid(_samples(prior))
    assert (prior.low, prior.high) == pytest.approx((-1.2, 1.2))
    if prior.bank.grid is not None:
        assert torch.allclose(prior.bank.grid[[0, -1]], torch.tensor([-1.2, 1.2]))


def test_the_domain_that_a_former_version_widened_is_kept():
    prior = _prior("bspline", "none")
    prior.load_state_dict({**prior.state_dict(), "domain": torch.tensor([-1.5, 1.5])})
    prior.refit_grid(_samples(prior))
    assert (prior.low, prior.high) == (-1.5, 1.5)
    assert torch.allclose(prior.bank.grid[[0, -1]], torch.tensor([-1.5, 1.5]))


def test_the_domain_of_the_uniform_reference_stays():
    prior = _prior("rbf", "uniform")
    prior.refit_grid(_samples(prior))
    assert (prior.low, prior.high) == (0.0, 1.0)


@pytest.mark.parametrize("basis", ["fourier", "chebyshev", "legendre", "morlet"])
def test_functions_without_knots_keep_every_value_while_the_domain_grows(basis):
    prior = _prior(basis, "gaussian", grid_size=4)
    where = torch.linspace(-6.0, 6.0, 50)[None, None]
    before = prior.bank.nodes(where)
    assert prior.refit_grid(torch.tensor([[0.0, 7.0, -1.0]])) == []
    assert (prior.low, prior.high) == (-6.0, 7.125)
    assert torch.equal(prior.bank.nodes(where), before)


def test_knots_cover_what_is_used_and_a_margin_inside_the_domain():
    z = torch.linspace(-1.0, 3.0, 4001)
    width = 0.998 * 4.0  # between the quantiles of .001 and .999
    assert find_used_range(z, (-6.0, 3.0)) == pytest.approx((-0.996 - 0.1 * width, 3.0))


@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.0])
def test_knots_mix_quantiles_and_equal_spacing(ratio):
    z = torch.randn(999, generator=torch.Generator().manual_seed(0))
    knots = place_knots(z, 10, ratio, (-5.0, 5.0))
    ordered = np.concatenate([[-5.0], np.sort(z.numpy()), [5.0]])
    adaptive = ordered[[1001 * j // 10 for j in range(10)] + [1000]]
    expected = ratio * np.linspace(-5.0, 5.0, 11) + (1.0 - ratio) * adaptive
    assert np.allclose(knots.numpy(), expected, atol=1e-6)


def test_grid_and_domain_come_back_from_a_state_and_a_domain_that_never_moved_is_not_in_it():
    prior, other = (_prior("rbf", "gaussian") for _ in range(2))
    prior.refit_grid(4.0 * _samples(prior))
    z = 0.9 * torch.rand(20, 3)
    other.log_density(z)  # a rule for the first domain is in use by now
    other.load_state_dict(prior.state_dict())
    assert prior.low < -6.0
    assert (other.low, other.high) == (prior.low, prior.high)
    assert torch.equal(other.log_density(z), prior.log_density(z))
    plain = _prior("rbf", "gaussian", refit_interval=0)
    assert "domain" not in plain.state_dict()
    plain.widen(torch.full((1, 3), 9.0))
    again = _prior("rbf", "gaussian", refit_interval=0)
    again.load_state_dict(plain.state_dict())
    assert again.high == plain.high > 9.0
