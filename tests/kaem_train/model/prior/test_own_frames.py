"""Experts in frames of their own are a normalised density; references are scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from kaem.errors import ConfigError
from kaem_train.config import PriorConfig
from kaem_train.fitting.mixtures import fit_full_mixture
from kaem_train.model.prior.factorised import build_prior
from kaem_train.model.prior.frame import LinearFrame
from kaem_train.model.prior.own_frames import LinearFrames, OwnFramesPrior
from kaem_train.posterior.start import start_prior

pytestmark = pytest.mark.usefixtures("float64")


def _prior(q=2, k=3, *, amplitude=1.0, low=-8.0, high=8.0):
    torch.manual_seed(0)
    config = PriorConfig(variant="experts", num_latents=q, num_components=k, frame="own", low=low, high=high)
    prior = build_prior(config)
    assert isinstance(prior, OwnFramesPrior)
    with torch.no_grad():
        prior.bank.coefficients.normal_(0.0, amplitude)
        prior.bank.spline_weight.uniform_(0.5, 1.5)
        prior.logits.normal_()
        prior.frames.offset.normal_(0.0, 1.5)
        prior.frames.matrix.add_(0.4 * torch.randn(k, q, q))
    return prior


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _gaussians(prior):
    """Weights and scipy's densities of the experts without their functions."""
    matrices = prior.frames.matrix.detach().numpy()
    means = prior.frames.offset.detach().numpy()
    laws = [scipy.stats.multivariate_normal(m, w @ w.T) for m, w in zip(means, matrices, strict=True)]
    return torch.softmax(prior.logits, 0).detach().numpy(), laws


def _density_by_hand(prior, q, k):
    """exp(f_{q,k}) pi0, normalised, straight from the tensors, for u of shape (M,)."""
    state = {name: value.numpy() for name, value in prior.state_dict().items()}
    centers = state["bank.centers"]
    width = (centers[-1] - centers[0]) / (len(centers) - 1) * np.exp(state["bank.log_tau"])

    def density(u):
        radial = np.exp(-0.5 * ((np.asarray(u)[..., None] - centers) / width) ** 2)
        energy = state["bank.spline_weight"][q, k] * (radial @ state["bank.coefficients"][q, k])
        return np.exp(energy - 0.5 * u**2)

    total, _ = scipy.integrate.quad(density, prior.low, prior.high, points=centers.tolist(), limit=400)
    return lambda u: density(u) / total


def test_without_functions_the_density_is_that_of_a_gaussian_mixture():
    prior = _prior(q=3, k=5, amplitude=0.0)
    z = 2.0 * torch.randn(50, 3)
    weights, laws = _gaussians(prior)
    expected = np.log(sum(weight * law.pdf(z.numpy()) for weight, law in zip(weights, laws, strict=True)))
    assert np.allclose(prior.log_density(z).detach().numpy(), expected, atol=1e-9)


def test_the_density_is_the_documented_formula():
    prior = _prior(q=3, k=4, amplitude=1.5)
    z = torch.randn(20, 3)
    joint = np.zeros((20, 4))
    for k in range(4):
        matrix = prior.frames.matrix[k].detach().numpy()
        u = np.linalg.solve(matrix, (z - prior.frames.offset[k]).detach().numpy().T).T
        joint[:, k] = -np.linalg.slogdet(matrix).logabsdet
        for q in range(3):
            joint[:, k] += np.log(_density_by_hand(prior, q, k)(u[:, q]))
    expected = scipy.special.logsumexp(joint, b=torch.softmax(prior.logits, 0).detach().numpy(), axis=1)
    assert np.allclose(prior.log_density(z).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("low", [-8.0, -4.0])
def test_two_latents_integrate_to_one(low):
    prior = _prior(q=2, amplitude=0.7, low=low)
    axis = torch.linspace(-12.0, 12.0, 401)
    with torch.no_grad():
        density = prior.log_density(torch.cartesian_prod(axis, axis)).exp().reshape(401, 401).numpy()
    total = scipy.integrate.simpson(scipy.integrate.simpson(density, x=axis.numpy()), x=axis.numpy())
    assert total == pytest.approx(1.0, abs=3e-4)


def test_one_expert_is_the_single_energy_prior_in_a_common_frame():
    own = _prior(q=3, k=1)
    config = PriorConfig(variant="mixture", frame="global", num_latents=3, num_components=1, low=-8.0, high=8.0)
    single = build_prior(config)
    with torch.no_grad():
        single.bank.load_state_dict(own.bank.state_dict())
        single.frame.offset.copy_(own.frames.offset[0])
        single.frame.matrix.copy_(own.frames.matrix[0])
    z = 3.0 * torch.randn(200, 3)
    assert torch.allclose(own.log_density(z), single.log_density(z), atol=1e-7)
    assert own.is_outside(z).any()
    assert torch.equal(own.is_outside(z), single.is_outside(z))
    moments = torch.randn(20, 3), torch.rand(20, 3)
    assert torch.allclose(own.expected_log_prob(*moments), single.expected_log_prob(*moments), atol=1e-7)


def test_outside_an_experts_domain_only_the_others_have_density():
    prior = _prior(q=2, k=2, amplitude=0.0, low=-4.0, high=4.0)
    with torch.no_grad():
        prior.frames.offset.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
        prior.frames.matrix.copy_(torch.eye(2).repeat(2, 1, 1))
    kept = scipy.stats.norm.cdf(4.0) - scipy.stats.norm.cdf(-4.0)
    found = prior.log_density(torch.tensor([[-1.0, 0.0], [9.0, 0.0]])).detach()
    weight = float(prior.log_weights()[0].detach())
    expected = weight + scipy.stats.multivariate_normal(np.zeros(2), 1.0).logpdf([-1.0, 0.0]) - 2 * math.log(kept)
    assert float(found[0]) == pytest.approx(expected, abs=1e-5)
    assert float(found[1]) == -math.inf


@pytest.mark.parametrize("k", [1, 4])
def test_the_closed_form_is_a_bound_and_exact_for_one_expert(k):
    prior = _prior(q=3, k=k, amplitude=0.5)
    mean, std = 0.7 * torch.randn(4, 3), 0.05 + 0.3 * torch.rand(4, 3)
    draws = mean + std * torch.randn(20_000, 4, 3, generator=_rng())
    values = prior.log_density(draws.flatten(0, 1)).unflatten(0, draws.shape[:2]).detach()
    error = values.std(0) / math.sqrt(len(draws))
    closed = prior.expected_log_prob(mean, std).detach()
    assert bool((closed < values.mean(0) + 4.5 * error).all())
    if k == 1:
        assert bool((closed > values.mean(0) - 4.5 * error).all())


def test_every_frame_maps_as_it_would_alone():
    torch.manual_seed(3)
    frames = LinearFrames(4, 3)
    with torch.no_grad():
        frames.matrix.add_(0.4 * torch.randn(4, 3, 3))
    z, std = torch.randn(7, 3), torch.rand(7, 3)
    u, (mean, deviation) = frames.inverse(z), frames.inverse_moments(z, std)
    for k in range(4):
        alone = LinearFrame(3)
        alone.load_state_dict({"offset": frames.offset[k], "matrix": frames.matrix[k]})
        assert torch.allclose(u[..., k], alone.inverse(z))
        assert torch.allclose(mean[..., k], alone.inverse_moments(z, std)[0])
        assert torch.allclose(deviation[..., k], alone.inverse_moments(z, std)[1])
        assert torch.allclose(frames.log_det_inverse()[k], alone.log_det_inverse())


def test_samples_follow_every_expert_along_its_own_axes():
    prior = _prior(q=2, k=3, amplitude=1.5)
    with torch.no_grad():  # far apart, so that a sample tells its expert
        prior.frames.offset.copy_(torch.tensor([[-60.0, 0.0], [0.0, 60.0], [60.0, 0.0]]))
    z = prior.sample(60_000, _rng(1))
    expert = torch.cdist(z, prior.frames.offset).argmin(1)
    weights = torch.softmax(prior.logits, 0).detach().numpy()
    assert scipy.stats.chisquare(torch.bincount(expert).numpy(), weights * len(z)).pvalue > 1e-3
    fine = np.linspace(-8.0, 8.0, 20_001)
    for q, k in np.ndindex(2, 3):
        u = prior.frames.inverse(z[expert == k])[:, q, k].detach().numpy()
        cdf = scipy.integrate.cumulative_simpson(_density_by_hand(prior, q, k)(fine), x=fine, initial=0.0)
        assert scipy.stats.kstest(u, lambda x, cdf=cdf: np.interp(x, fine, cdf)).pvalue > 1e-3


def test_samples_of_gaussian_experts_project_to_mixtures_of_normals():
    prior = _prior(q=3, k=4, amplitude=0.0)
    z = prior.sample(30_000, _rng()).numpy()
    weights, laws = _gaussians(prior)
    for direction in np.random.default_rng(0).normal(size=(3, 3)):
        normals = [scipy.stats.norm(law.mean @ direction, (direction @ law.cov @ direction) ** 0.5) for law in laws]
        found = scipy.stats.kstest(z @ direction, lambda x, n=normals: weights @ [law.cdf(x) for law in n])
        assert found.pvalue > 1e-3


def test_every_parameter_learns_in_float32():
    prior = _prior(q=20, k=8, amplitude=0.1).float()
    (-prior.expected_log_prob(torch.randn(8, 20).float(), torch.rand(8, 20).float()).mean()).backward()
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().sum()) > 0.0, name


def test_the_start_is_the_mixture_that_made_the_latents():
    rng = _rng(5)
    means = torch.tensor([[-4.0, 0.0], [4.0, 1.0]])
    factors = torch.tensor([[[1.0, 0.0], [0.8, 0.3]], [[0.4, 0.0], [-0.6, 1.0]]])
    member = torch.randint(2, (4000,), generator=rng)
    noise = torch.randn(4000, 2, 1, generator=rng)
    latents = means[member] + (factors[member] @ noise).squeeze(-1)
    prior = _prior(q=2, k=2, amplitude=0.0)
    start_prior(prior, latents, torch.full_like(latents, 1e-6), _rng())
    order = prior.frames.offset[:, 0].argsort()
    assert torch.allclose(prior.frames.offset[order], means, atol=0.1)
    matrices = prior.frames.matrix[order]
    assert torch.allclose(matrices @ matrices.mT, factors @ factors.mT, atol=0.1)
    assert torch.allclose(torch.softmax(prior.logits, 0), torch.tensor([0.5, 0.5]), atol=0.03)


@pytest.mark.parametrize("num", [4, 12])
def test_few_or_equal_latents_still_give_invertible_frames(num):
    latents = torch.randn(num, 6, generator=_rng()) * torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 1.0])
    mixture = fit_full_mixture(latents, 3, seed=0)
    condition = torch.linalg.cond(mixture.covariances)
    assert bool((condition < 1.01e4).all())
    assert float(mixture.weights.sum()) == pytest.approx(1.0)


def test_the_same_latents_give_the_same_mixture():
    latents = torch.randn(500, 4, generator=_rng())
    first, second = (fit_full_mixture(latents, 5, seed=1) for _ in range(2))
    assert torch.equal(first.covariances, second.covariances)


def test_only_experts_have_frames_of_their_own():
    with pytest.raises(ConfigError, match=r"frame = 'own'.*mixture"):
        PriorConfig(variant="mixture", frame="own", num_latents=2, num_components=2)
