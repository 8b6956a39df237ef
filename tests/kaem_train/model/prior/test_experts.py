"""Experts are a normalised density over all latents at once; references are scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from kaem_train.config import PriorConfig
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import build_prior

pytestmark = pytest.mark.usefixtures("float64")


def _prior(q=2, k=3, *, amplitude=1.0, frame="none", low=-8.0, high=8.0):
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(variant="experts", num_latents=q, num_components=k, frame=frame, low=low, high=high)
    )
    assert isinstance(prior, ExpertsPrior)
    with torch.no_grad():
        prior.bank.coefficients.normal_(0.0, amplitude)
        prior.bank.spline_weight.uniform_(0.5, 1.5)
        prior.logits.normal_()
        prior.means.normal_(0.0, 1.5)
        prior.log_stds.uniform_(-1.5, 0.4)
        if prior.frame is not None:
            prior.frame.offset.normal_()
            prior.frame.matrix.add_(0.3 * torch.randn(q, q))
    return prior


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _density_by_hand(prior, q, k):
    """exp(f_{q,k}) straight from the tensors, for z of shape (M,)."""
    state = {name: value.numpy() for name, value in prior.state_dict().items()}
    centers = state["bank.centers"]
    width = (centers[-1] - centers[0]) / (len(centers) - 1) * np.exp(state["bank.log_tau"])
    mean, std = state["means"][q, k], np.exp(state["log_stds"][q, k])

    def density(z):
        radial = np.exp(-0.5 * ((np.asarray(z)[..., None] - centers) / width) ** 2)
        energy = state["bank.spline_weight"][q, k] * (radial @ state["bank.coefficients"][q, k])
        return np.exp(energy - 0.5 * ((z - mean) / std) ** 2)

    return density


def _cdf_by_hand(prior, q, k):
    fine = np.linspace(prior.low, prior.high, 20_001)
    cdf = scipy.integrate.cumulative_simpson(_density_by_hand(prior, q, k)(fine), x=fine, initial=0.0)
    return lambda z: np.interp(z, fine, cdf / cdf[-1])


def test_one_latent_integrates_to_one():
    prior = _prior(q=1, amplitude=2.0)

    def density(z):
        return float(prior.log_density(torch.tensor([[z]])).exp().detach())

    total, _ = scipy.integrate.quad(density, -8, 8, points=prior.bank.centers.tolist(), limit=400)
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("frame", ["none", "global"])
def test_two_latents_integrate_to_one_in_any_frame(frame):
    prior = _prior(q=2, frame=frame)
    axis = torch.linspace(-12.0, 12.0, 801)
    z = torch.cartesian_prod(axis, axis)
    density = prior.log_density(z).exp().detach().reshape(801, 801).numpy()
    total = scipy.integrate.simpson(scipy.integrate.simpson(density, x=axis.numpy()), x=axis.numpy())
    assert total == pytest.approx(1.0, abs=1e-4)


def test_the_density_is_the_documented_formula():
    prior = _prior(q=3, k=4, amplitude=2.0)
    z = torch.randn(20, 3)
    joint = np.zeros((20, 4))
    for q, k in np.ndindex(3, 4):
        density = _density_by_hand(prior, q, k)
        total, _ = scipy.integrate.quad(density, -8, 8, points=prior.bank.centers.tolist(), limit=400)
        joint[:, k] += np.log(density(z[:, q].numpy()) / total)
    expected = scipy.special.logsumexp(joint, b=torch.softmax(prior.logits, 0).detach().numpy(), axis=1)
    assert np.allclose(prior.log_density(z).detach().numpy(), expected, atol=1e-6)


def test_experts_without_radial_terms_are_a_diagonal_gaussian_mixture():
    prior = _prior(q=3, k=5, amplitude=0.0)
    z = torch.randn(50, 3)
    weights = torch.softmax(prior.logits, 0).detach().numpy()
    means, stds = prior.means.detach().numpy(), prior.log_stds.exp().detach().numpy()
    laws = [scipy.stats.multivariate_normal(means[:, k], np.diag(stds[:, k] ** 2)) for k in range(5)]
    expected = np.log(sum(weight * law.pdf(z.numpy()) for weight, law in zip(weights, laws, strict=True)))
    assert np.allclose(prior.log_density(z).detach().numpy(), expected, atol=1e-6)


def test_one_standard_expert_is_the_single_energy_prior():
    expert = _prior(q=3, k=1)
    single = build_prior(PriorConfig(variant="mixture", num_latents=3, num_components=1, low=-8.0, high=8.0))
    with torch.no_grad():
        expert.means.zero_()
        expert.log_stds.zero_()
        single.bank.load_state_dict(expert.bank.state_dict())
    z = torch.randn(20, 3)
    assert torch.allclose(expert.log_density(z), single.log_density(z), atol=1e-9)
    moments = torch.randn(20, 3), torch.rand(20, 3)
    assert torch.allclose(expert.expected_log_prob(*moments), single.expected_log_prob(*moments), atol=1e-9)


@pytest.mark.parametrize("variant", ["mixture", "experts"])
def test_a_frame_adds_the_log_determinant(variant):
    torch.manual_seed(1)
    config = {"variant": variant, "num_latents": 3, "num_components": 2, "low": -8.0, "high": 8.0}
    framed, plain = (build_prior(PriorConfig(**config, frame=frame)) for frame in ("global", "none"))
    with torch.no_grad():
        framed.frame.offset.normal_()
        framed.frame.matrix.add_(0.3 * torch.randn(3, 3))
        plain.load_state_dict({name: value for name, value in framed.state_dict().items() if "frame" not in name})
    z = torch.randn(20, 3)
    u = torch.linalg.solve(framed.frame.matrix, (z - framed.frame.offset).T).T
    expected = plain.log_density(u) - torch.slogdet(framed.frame.matrix).logabsdet
    assert torch.allclose(framed.log_density(z), expected)


@pytest.mark.parametrize("frame", ["none", "global"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_closed_form_is_a_bound_and_exact_for_one_expert(k, frame):
    prior = _prior(q=3, k=k, amplitude=0.5, frame=frame)
    mean, std = 0.7 * torch.randn(4, 3), 0.05 + 0.4 * torch.rand(4, 3)
    draws = mean + std * torch.randn(40_000, 4, 3, generator=_rng())
    values = prior.log_density(draws.flatten(0, 1)).unflatten(0, draws.shape[:2]).detach()
    error = values.std(0) / math.sqrt(len(draws))
    closed = prior.expected_log_prob(mean, std).detach()
    assert bool((closed < values.mean(0) + 4.5 * error).all())
    if k == 1:
        assert bool((closed > values.mean(0) - 4.5 * error).all())


def test_samples_follow_every_expert_as_often_as_its_weight():
    prior = _prior(q=2, k=3)
    with torch.no_grad():  # far apart, so that a sample tells its expert
        prior.means.copy_(torch.tensor([[-5.0, 0.0, 5.0], [-5.0, 0.0, 5.0]]))
        prior.log_stds.fill_(-1.0)
    z = prior.sample(60_000, _rng()).numpy()
    drawn = np.digitize(z[:, 0], [-2.5, 2.5])
    assert np.array_equal(drawn, np.digitize(z[:, 1], [-2.5, 2.5]))
    weights = torch.softmax(prior.logits, 0).detach().numpy()
    assert scipy.stats.chisquare(np.bincount(drawn), weights * len(z)).pvalue > 1e-3
    for q, k in np.ndindex(2, 3):
        assert scipy.stats.kstest(z[drawn == k, q], _cdf_by_hand(prior, q, k)).pvalue > 1e-3


def test_samples_of_a_framed_prior_follow_it():
    prior = _prior(q=2, k=3, amplitude=2.0, frame="global")
    u = prior.frame.inverse(prior.sample(60_000, _rng())).detach().numpy()
    weights = torch.softmax(prior.logits, 0).detach().numpy()
    for q in range(2):
        laws = [_cdf_by_hand(prior, q, k) for k in range(3)]
        found = scipy.stats.kstest(u[:, q], lambda x, laws=laws: weights @ [law(x) for law in laws])
        assert found.pvalue > 1e-3


def test_every_parameter_learns_in_float32():
    prior = _prior(q=40, k=16, frame="global").float()
    (-prior.expected_log_prob(torch.randn(8, 40).float(), torch.rand(8, 40).float()).mean()).backward()
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().sum()) > 0.0, name


def test_deviations_stay_in_their_range():
    prior = _prior(q=1, k=2)
    with torch.no_grad():
        prior.log_stds.copy_(torch.tensor([[-9.0, 9.0]]))
    assert torch.allclose(prior.stds, torch.tensor([[-2.0, 1.5]]).exp())
